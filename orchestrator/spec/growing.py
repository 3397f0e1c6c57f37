"""What a change of each field of a study file means for a study that has begun.

`STUDY`, `DATA` and `STAGES` are one table: an entry for each field of the file. `plan_growth` compares two files by it.
A stage that has not begun may change in every field. Nothing is written here; `orchestrator.store.growth_rows` does.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.study_file import StudySpec, differences
from search_spaces.dimensions import Point
from search_spaces.shape_rules import ShapeRules
from search_spaces.widening import widen
from trainers.yaml_source import KeyPath, format_path

Effect = Literal["execution", "reopens", "extends", "rescores", "lengthens", "repeats", "identity"]
"""What a changed field does to its stage.

`execution` affects execution only. `reopens` continues a stage that a budget has ended early. `extends` keeps all
trials and adds more. `rescores` keeps the sampled topologies and scores them again (known scores come from the cache).
`lengthens` gives all trials more epochs. `repeats` runs a stage again that has nothing expensive to lose. `identity`
makes it another study.
"""


class BegunStage(NamedTuple):
    """What a stage has done so far."""

    num_trials: int
    """Number of trials that have begun."""
    has_copies: bool = False
    """Whether trials have copied each other's weights (population-based training)."""
    is_short: bool = False
    """Whether it has fewer trials than asked for, or trainings that a budget has ended."""


Problem = Callable[[Any, Any, BegunStage], str | None]
"""Gives the reason why a field cannot change from one value to another, or `None`."""


def _anything(_old: Any, _new: Any, _begun: BegunStage) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The meaning of a change of one field."""

    effect: Effect
    problem: Problem = _anything


def _fewer_trials(_old: int, new: int, begun: BegunStage) -> str | None:
    return f"{begun.num_trials} trials have begun" if new < begun.num_trials else None


def _fewer_epochs(old: int, new: int, begun: BegunStage) -> str | None:
    if not begun.num_trials:
        return None
    if new < old:
        return f"{begun.num_trials} trials have begun with {old} epochs"
    return "its trials have copied each other's weights, so they cannot get more epochs" if begun.has_copies else None


def _smaller(old: int, new: int, _begun: BegunStage) -> str | None:
    return f"must be at least {old}, because these topologies have been chosen" if new < old else None


def _fewer_repeats(old: int, new: int, begun: BegunStage) -> str | None:
    return f"must be at least {old}, because trainings have been repeated" if begun.num_trials and new < old else None


def _missing(old: Sequence[Any], new: Sequence[Any], _begun: BegunStage) -> str | None:
    gone = [one for one in old if one not in new]
    return f"must still contain {getattr(gone[0], 'name', gone[0])}" if gone else None


def _higher(old: int | None, new: int | None, _begun: BegunStage) -> str | None:
    return "must not exclude topologies that were allowed" if new is not None and (old is None or new > old) else None


def _lower(old: int | None, new: int | None, _begun: BegunStage) -> str | None:
    return "must not exclude topologies that were allowed" if new is not None and (old is None or new < old) else None


def _stricter(old: ShapeRules, new: ShapeRules, _begun: BegunStage) -> str | None:
    return None if new.contains(old) else "must not exclude topologies that were allowed"


EXECUTION, REPEATS, IDENTITY = Rule(effect="execution"), Rule(effect="repeats"), Rule(effect="identity")

STUDY: Mapping[str, Rule] = {
    "study": IDENTITY,
    "seed": IDENTITY,
    "metric": IDENTITY,
    "budget": Rule(effect="reopens"),
    "engine": EXECUTION,
    "pool": EXECUTION,
    "resources": EXECUTION,
}
"""Fields of the study, besides `data` and `stages`. Engine, pool and resources stand for everything inside."""

DATA: Mapping[str, Rule] = dict.fromkeys(
    (
        "source",
        "image_size",
        "resize",
        "validation",
        "test",
        "max_images",
        "max_test_images",
        "background",
        "skip_broken",
        "duplicates",
        "label_noise",
        "label_noise_kind",
        "split_seed",
        "num_classes",
    ),
    IDENTITY,
)
"""Fields of `data`."""

STAGES: Mapping[str, Mapping[str, Rule]] = {
    "screen": {
        "space": IDENTITY,
        "sampler": IDENTITY,
        "num_trials": Rule(effect="extends", problem=_fewer_trials),
        "budget": Rule(effect="reopens"),
        "no_improvement": Rule(effect="reopens"),
        "batch_size": IDENTITY,
        "proxies": Rule(effect="rescores", problem=_missing),
        "rank_by": IDENTITY,
        "limits.min_params": Rule(effect="extends", problem=_higher),
        "limits.max_params": Rule(effect="extends", problem=_lower),
        "limits.min_macs": Rule(effect="extends", problem=_higher),
        "limits.max_macs": Rule(effect="extends", problem=_lower),
        "limits.multiples": Rule(effect="extends", problem=_stricter),
    },
    "grow": dict.fromkeys(
        (
            "topology",
            "start",
            "target_params",
            "target_macs",
            "max_steps",
            "width_ratios",
            "repeats",
            "reduction",
            "multiples",
            "proxies",
            "batch_size",
        ),
        REPEATS,
    ),
    "train": {
        "candidates.best": Rule(effect="extends", problem=_smaller),
        "candidates.spread": Rule(effect="extends", problem=_smaller),
        "topologies": Rule(effect="extends", problem=_missing),
        "sampler": IDENTITY,
        "repeats": Rule(effect="extends", problem=_fewer_repeats),
        "num_trials": Rule(effect="extends", problem=_fewer_trials),
        "budget": Rule(effect="reopens"),
        "no_improvement": Rule(effect="reopens"),
        "epochs": Rule(effect="lengthens", problem=_fewer_epochs),
        "keep_checkpoints": EXECUTION,
        "rank_by": IDENTITY,
        "stopping": IDENTITY,
        "recipe": Rule(effect="extends"),
        "weights": IDENTITY,
        "teacher": IDENTITY,
        "warm_start": IDENTITY,
        "signals": IDENTITY,
    },
    "stopping": dict.fromkeys(("num_trials", "sampler", "criteria", "max_accuracy_lost"), REPEATS),
    "averaging": dict.fromkeys(("num_trials", "sampler", "methods", "stop_at", "max_accuracy_lost"), REPEATS),
    "correlate": dict.fromkeys(
        (
            "truth",
            "further",
            "proxies",
            "baselines",
            "seeds",
            "repeats",
            "batch_size",
            "resamples",
            "confidence",
            "combine",
            "transfer",
        ),
        REPEATS,
    ),
    "promote": {**dict.fromkeys(("finalists", "seeds", "refit"), REPEATS), "limit": IDENTITY},
}
"""Fields of each kind of stage, besides `stage` and `name`, which identify it. `recipe` is compared by dimensions."""

READ_AT_START: Mapping[str, tuple[str, ...]] = {"train": ("weights", "teacher", "warm_start")}
"""Fields that name what a stage takes from elsewhere. It is read and kept when the study begins, so that even a stage
that has not begun keeps them."""
INDEPENDENT = frozenset({"screen"})
"""Kinds of stages that read no earlier stage."""
KEEPS_TRIALS = frozenset({"screen", "train"})
"""Kinds of stages whose trials are kept when an earlier stage changes. The others run again."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What a changed file adds to a study."""

    changes: tuple[str, ...] = ()
    """Lines such as `stages[2].num_trials: 9 -> 12`."""
    refused: tuple[str, ...] = ()
    """Lines of changes that make it another study, with the reason. If there are any, the study must not grow."""
    extended: frozenset[str] = frozenset()
    """Names of stages that keep their trials and continue."""
    repeated: frozenset[str] = frozenset()
    """Names of stages that run again."""
    added: frozenset[str] = frozenset()
    """Names of stages that the study did not have."""
    rerun: frozenset[str] = frozenset()
    """Names of extended stages whose trials all run again, with more epochs or further scores."""
    longer: Mapping[str, int] = field(default_factory=dict)
    """The earlier number of epochs of each train stage that gets more."""
    filled: Mapping[str, Point] = field(default_factory=dict)
    """Values to add to the points of a stage's trials, because a fixed field is now searched."""

    @property
    def affects_stages(self) -> bool:
        """Whether any stage has something left to do because of it."""
        return bool(self.extended or self.repeated or self.added)


def plan_growth(
    old: StudySpec, new: StudySpec, begun: Mapping[str, BegunStage], *, retried: Collection[str] = ()
) -> Growth:
    """Compare the stored file of a study with a changed one.

    Args:
        old: The stored file.
        new: The changed file.
        begun: The stages that have begun, by name.
        retried: Names of stages whose failed trials run again.
    """
    if not differences(old, new) and not retried:
        return Growth()
    plan = _Plan(old, new, begun, retried)
    plan.compare_study()
    plan.compare_stages()
    return plan.result()


class _Plan:
    """Collects the parts of a `Growth`."""

    def __init__(
        self, old: StudySpec, new: StudySpec, begun: Mapping[str, BegunStage], retried: Collection[str]
    ) -> None:
        self._old, self._new, self._begun, self._retried = old, new, begun, retried
        self._changes: list[str] = []
        self._refused: list[str] = []
        self._effects: dict[str, Effect] = {}
        self._added: set[str] = set()
        self._longer: dict[str, int] = {}
        self._filled: dict[str, Point] = {}
        self._is_reopened = False

    def compare_study(self) -> None:
        for name, rule in STUDY.items():
            self._compare(rule, getattr(self._old, name), getattr(self._new, name), (name,), BegunStage(0))
        for name, rule in DATA.items():
            before, after = (getattr(spec.data, name) for spec in (self._old, self._new))
            self._compare(rule, before, after, ("data", name), BegunStage(0))

    def compare_stages(self) -> None:
        before = {stage.name: stage for stage in self._old.stages}
        after = {stage.name: stage for stage in self._new.stages}
        places = {stage.name: index for index, stage in enumerate(self._new.stages)}
        common = [name for name in before if name in after]
        if common != [name for name in after if name in before]:
            self._refused.append(f"stages: must keep their order ({', '.join(common)})")
        is_changed = False
        for name in before.keys() - after.keys():
            if name in self._begun:
                self._refused.append(f"stages: {name!r} has begun, so the file must still have it")
            else:
                self._changes.append(f"stages: without {name!r}, which had not begun")
                is_changed = True
        for name, stage in after.items():
            at: KeyPath = ("stages", places[name])
            if name not in before:
                self._added.add(name)
                self._changes.append(f"{format_path(at)}: further stage {name!r}")
                is_changed = True
            elif before[name].stage != stage.stage:
                self._refused.append(f"{format_path((*at, 'stage'))}: {before[name].stage} -> {stage.stage}")
            elif name in self._begun:
                self._compare_stage(before[name], stage, at)
                if name in self._retried:
                    self._mark(name, "extends")
                if self._is_reopened:
                    self._reopen(stage)
                if is_changed and stage.stage not in INDEPENDENT:
                    self._mark(name, "extends" if stage.stage in KEEPS_TRIALS else "repeats")
                is_changed |= name in self._effects
            elif before[name] != stage:
                self._changes.append(f"{format_path(at)}: changed before it began")
                for key in READ_AT_START.get(stage.stage, ()):
                    values = _value(before[name], key), _value(stage, key)
                    self._compare(IDENTITY, *values, (*at, key), BegunStage(0))

    def result(self) -> Growth:
        named: dict[Effect, set[str]] = {}
        for name, effect in self._effects.items():
            named.setdefault(effect, set()).add(name)
        rerun = named.get("rescores", set()) | named.get("lengthens", set())
        return Growth(
            changes=tuple(self._changes),
            refused=tuple(self._refused),
            extended=frozenset(named.get("extends", set()) | rerun),
            repeated=frozenset(named.get("repeats", set())),
            added=frozenset(self._added),
            rerun=frozenset(rerun),
            longer=self._longer,
            filled=self._filled,
        )

    def _compare_stage(self, old: StageModel, new: StageModel, at: KeyPath) -> None:
        begun = self._begun[new.name]
        for key, rule in STAGES[new.stage].items():
            if key == "recipe":
                self._compare_recipe(old, new, (*at, key))
                continue
            before, after = _value(old, key), _value(new, key)
            effect = self._compare(rule, before, after, (*at, *key.split(".")), begun)
            if effect == "reopens":
                self._reopen(new)
            elif effect is not None:
                self._mark(new.name, effect)
            if effect == "lengthens":
                self._longer[new.name] = before
        self._compare_derived(old, new, at)

    def _compare_recipe(self, old: Any, new: Any, at: KeyPath) -> None:
        found = widen(old.recipe_space, new.recipe_space)
        for name, reason in found.problems:
            shown = f"{_shown(old.recipe.get(name))} -> {_shown(new.recipe.get(name))}"
            self._refused.append(f"{format_path((*at, name))}: {shown} ({reason})")
        if found.is_wider and not found.problems:
            wider = [name for name in {**old.recipe, **new.recipe} if old.recipe.get(name) != new.recipe.get(name)]
            self._changes += [
                f"{format_path((*at, name))}: {_shown(old.recipe.get(name))} -> {_shown(new.recipe.get(name))}"
                for name in wider
            ]
            self._mark(new.name, "extends")
            if found.filled:
                self._filled[new.name] = found.filled

    def _compare_derived(self, old: Any, new: Any, at: KeyPath) -> None:
        """Compare what a stage derives from its fields and from other stages."""
        if new.stage == "screen" and old.ranking != new.ranking:
            self._refused.append(
                f"{format_path((*at, 'rank_by'))}: {list(old.ranking)} -> {list(new.ranking)} (the ranking by default "
                "depends on the order of the proxies)"
            )
        if new.stage == "train" and bool(old.topologies) != bool(new.topologies):
            self._refused.append(f"{format_path((*at, 'topologies'))}: must be given if and only if they were given")
        if new.stage == "train" and self._begun[new.name].num_trials:
            wanted = _recorded(self._new, new) - _recorded(self._old, old)
            if wanted:
                self._refused.append(
                    f"{format_path(at)}: a further stage reads the signal {min(wanted)}, which the trainings have not "
                    "recorded"
                )

    def _compare(self, rule: Rule, old: Any, new: Any, path: KeyPath, begun: BegunStage) -> Effect | None:
        """Note a change of one field, and return its effect if it is allowed."""
        if old == new:
            return None
        line = f"{format_path(path)}: {_shown(old)} -> {_shown(new)}"
        if rule.effect == "identity":
            self._refused.append(line)
            return None
        reason = rule.problem(old, new, begun)
        if reason is not None:
            self._refused.append(f"{line} ({reason})")
            return None
        if path[0] in STUDY:
            if rule.effect == "reopens":
                self._changes.append(line)
                self._is_reopened = True
            return None
        self._changes.append(line)
        return rule.effect

    def _reopen(self, stage: StageModel) -> None:
        """Continue a stage that has ended early."""
        if stage.stage in KEEPS_TRIALS and self._begun[stage.name].is_short:
            self._mark(stage.name, "extends")

    def _mark(self, name: str, effect: Effect) -> None:
        """Note the effect on a stage; the one that repeats most work wins."""
        order: tuple[Effect, ...] = ("execution", "extends", "rescores", "lengthens", "repeats")
        known = self._effects.get(name, "execution")
        strongest = max(known, effect, key=order.index)
        if strongest != "execution":
            self._effects[name] = strongest


def _value(stage: Any, key: str) -> Any:
    """The value of a field such as `limits.max_params`. An omitted selection of candidates has its defaults."""
    outer, _, inner = key.partition(".")
    block = stage.chosen_candidates if outer == "candidates" else getattr(stage, outer)
    return getattr(block, inner, None) if inner else block


def _recorded(spec: StudySpec, stage: Any) -> frozenset[Any]:
    """Signals that the trainings of a stage record: those that it names, and those that later stages read."""
    position = spec.stages.index(stage)
    return frozenset(stage.signals).union(*(later.signals_read for later in spec.stages[position + 1 :]))


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    if hasattr(value, "model_dump"):
        return _shown(value.model_dump(mode="json"))
    return "(default)" if value is None else str(value)


def table_fields(kind: str) -> Iterator[str]:
    """The fields of a kind of stage that the table knows, without the inner part of nested ones."""
    yield from dict.fromkeys(key.partition(".")[0] for key in STAGES[kind])
