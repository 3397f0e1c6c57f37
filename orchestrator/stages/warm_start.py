"""Warm start of a train stage: points of earlier work that are tried first, and results that the sampler knows.

The points are kept in the stage's folder when the study begins, so that it resumes in the same way whatever happens to
their source. They are fitted to the search when the stage begins.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.engines.interfaces import KnownResult, Objective
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageResult
from search_spaces.dimensions import Dimension, Point
from search_spaces.recipe_points import encode_recipe
from search_spaces.recipes import Recipe, RecipeSpace, base_point, describe_plugin
from trainers.storage.artifacts import published

_FILE = "warm-start.json"
_DIFFER = {
    "data": "images or split",
    "epochs": "number of epochs",
    "stopping": "stopping criterion",
    "weights": "weights to start from",
}
"""What must be the same for results to be comparable, in words."""


class PastTrial(BaseModel):
    """A trained configuration of another study, or a configuration alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    label: str
    """Where it comes from, such as `photos, train, trial 7`."""
    topology: str
    recipe: Recipe
    metrics: dict[str, float] = Field(default_factory=dict)


class WarmStartRecord(BaseModel):
    """What a stage was warm-started from, as it was when the study began."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    origin: str
    first: tuple[PastTrial, ...]
    """Configurations to try first, best first."""
    results: tuple[PastTrial, ...] = ()
    """All trials with a result."""
    conditions: dict[str, Any] | None = None
    """What results depend on besides topology and recipe; see `conditions_of`."""


class WarmStarted(StageResult):
    """How a stage was warm-started."""

    origin: str
    num_tried_first: int
    """Number of points to try after the base recipe."""
    num_known: int
    """Number of results that the sampler knew from the beginning."""
    notes: tuple[str, ...]
    """What was ignored and why, in words."""


class WarmPlan(NamedTuple):
    """A warm start, fitted to a search."""

    first: tuple[Point, ...]
    known: tuple[KnownResult, ...]
    origins: Mapping[str, str]
    """Origin of each point, by its text."""
    summary: WarmStarted

    def origin(self, point: Point) -> str | None:
        """Where a point comes from; `None` if it is none of `first`."""
        return self.origins.get(_text(point))


def has_stored_warm_start(folder: Path) -> bool:
    """Whether a warm start is kept in the folder of a stage."""
    return (folder / _FILE).is_file()


def store_warm_start(folder: Path, record: WarmStartRecord) -> None:
    """Keep a warm start in the folder of a stage."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_FILE}"
    temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    temporary.replace(folder / _FILE)
    published(folder / _FILE)


def stored_warm_start(folder: Path) -> WarmStartRecord:
    """The warm start that is kept in the folder of a stage.

    Raises:
        StageFailedError: There is none.
    """
    try:
        return WarmStartRecord.model_validate_json((folder / _FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise StageFailedError(
            f"{folder / _FILE} must contain the points to try first, but cannot be read ({error}). Restore the folder, "
            "or run the study again under another name."
        ) from error


def conditions_of(
    *,
    data: Mapping[str, Any],
    data_digest: str,
    epochs: int,
    stopping: Any,
    weights: str | None,
    teacher: str | None = None,
) -> dict[str, Any]:
    """What the results of a stage depend on besides topology, recipe and seed, as JSON data.

    A stage without a teacher has no entry for it, so that conditions stored by earlier versions are equal.
    """
    found = {"data": [data_digest, dict(data)], "epochs": epochs, "stopping": stopping, "weights": weights}
    return found if teacher is None else {**found, "teacher": teacher}


def plan_warm_start(
    context: StageContext,
    record: WarmStartRecord,
    *,
    space: RecipeSpace,
    dimensions: Sequence[Dimension],
    candidates: Sequence[str],
    objectives: Sequence[Objective],
    conditions: Mapping[str, Any],
    room: int,
) -> WarmPlan:
    """Fit a warm start to a search, and say what it does when the stage begins.

    A value outside the search, or a topology that is not a candidate, is replaced by the base value. A point without
    any value inside is ignored. Results are known to the sampler only if everything they depend on is the same.

    Args:
        context: The context of the stage.
        record: The warm start.
        space: The recipes of the search.
        dimensions: Its dimensions, `topology` first.
        candidates: The candidate topologies, each of which is first trained with the base recipe.
        objectives: Its objectives.
        conditions: What its results depend on; see `conditions_of`.
        room: Number of trials after those with the base recipe.
    """
    fitted = [_fit(trial, space, dimensions, candidates) for trial in record.first]
    known_texts = {_text(base_point(dimensions, topology=candidate)) for candidate in candidates}
    chosen: dict[str, _FittedTrial] = {}
    notes: list[str] = []
    num_same = 0
    for one in fitted:
        if not one.has_value_inside:
            notes.append(f"{one.trial.label}: none of its values lies in this search, so it is ignored")
        elif _text(one.point) in known_texts or _text(one.point) in chosen:
            num_same += 1
        else:
            chosen[_text(one.point)] = one
    notes += _replacements([one for one in fitted if one.has_value_inside])
    if num_same:
        notes.append(f"{_count(num_same, 'point')} not tried separately, because the same point is already planned")
    room = max(0, room)
    if len(chosen) > room:
        notes.append(f"num_trials leaves room for {room} of {_count(len(chosen), 'point')}")
    known, why_not = _known(record, space, dimensions, candidates, objectives, conditions)
    if why_not:
        notes.append(why_not)
    plan = WarmPlan(
        first=tuple(one.point for one in chosen.values()),
        known=known,
        origins={text: one.trial.label for text, one in chosen.items()},
        summary=WarmStarted(
            origin=record.origin, num_tried_first=min(len(chosen), room), num_known=len(known), notes=tuple(notes)
        ),
    )
    if not context.store.trials(context.stage.id):
        context.progress.note(_headline(plan.summary))
        for note in notes:
            context.progress.note(f"warm start: {note}")
    return plan


class _FittedTrial(NamedTuple):
    """A past trial as a point of the search."""

    trial: PastTrial
    point: Point
    replaced: Mapping[str, str]
    """Value there and here of each field that differs, in words."""
    has_value_inside: bool


def _fit(
    trial: PastTrial, space: RecipeSpace, dimensions: Sequence[Dimension], candidates: Sequence[str]
) -> _FittedTrial:
    encoded = encode_recipe(trial.recipe, dimensions, fixed={"topology": trial.topology})
    replaced: dict[str, str] = {}
    if "topology" in encoded.outside:
        replaced["topology"] = f"{trial.topology} is not a candidate, {encoded.point['topology']} is used"
    here = space.decode(encoded.point)
    for name in Recipe.model_fields:
        mine, theirs = getattr(here, name), getattr(trial.recipe, name)
        if mine != theirs:
            replaced[name] = f"{name} {_shown(theirs)} there, {_shown(mine)} here"
    searched = [one.name for one in dimensions if one.name in encoded.point]
    free = [name for name in searched if name != "topology" or len(candidates) > 1]
    has_value = not free or any(name not in encoded.outside for name in free)
    return _FittedTrial(trial, encoded.point, replaced, has_value)


def _known(
    record: WarmStartRecord,
    space: RecipeSpace,
    dimensions: Sequence[Dimension],
    candidates: Sequence[str],
    objectives: Sequence[Objective],
    conditions: Mapping[str, Any],
) -> tuple[tuple[KnownResult, ...], str | None]:
    """Results that the sampler may know, and why it may not know others."""
    if not record.results or record.conditions is None:
        return (), None
    differ = [words for key, words in _DIFFER.items() if record.conditions.get(key) != conditions.get(key)]
    if differ:
        return (), f"its results are not comparable with those here: other {', other '.join(differ)}"
    fitted = [_fit(trial, space, dimensions, candidates) for trial in record.results]
    names = [objective.metric for objective in objectives]
    known = tuple(
        KnownResult(one.point, tuple(one.trial.metrics[name] for name in names))
        for one in fitted
        if not one.replaced and all(name in one.trial.metrics for name in names)
    )
    num_others = len(fitted) - len(known)
    why = f"{_count(num_others, 'result')} not comparable, because recipe, topology or metric are outside this search"
    return known, why if num_others else None


def _replacements(fitted: Sequence[_FittedTrial]) -> list[str]:
    """One line per field, however many points it concerns."""
    found: dict[str, dict[str, None]] = {}
    for one in fitted:
        for name, words in one.replaced.items():
            found.setdefault(name, {}).setdefault(words, None)
    return [
        "ignored: " + "; ".join(list(words)[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")
        for words in found.values()
    ]


def _headline(summary: WarmStarted) -> str:
    tried = f"{_count(summary.num_tried_first, 'point')} tried after the base recipe"
    known = f"; the sampler knows {_count(summary.num_known, 'earlier result')}" if summary.num_known else ""
    return f"warm start from {summary.origin}: {tried}{known}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(describe_plugin(one) for one in value)
    if hasattr(value, "settings"):
        return describe_plugin(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(point: Point) -> str:
    return repr(sorted(point.items()))
