"""Stage `screen`: samples topologies and scores them with training-free proxies. Nothing is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.reports.csv_text import csv_text
from orchestrator.spec.budget import Budget
from orchestrator.spec.plugin_checks import choice_problems, one_of, proxy_problems, sampler_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.proxy_choices import Direction, parts_of, proxy_directions, scored_choices
from orchestrator.spec.stage_model import Count, ModelSize, SpecModel, StageModel, StageName
from orchestrator.spec.topology_checks import (
    extreme_cost,
    first_topology,
    largest_task,
    shape_problem,
    smallest_task,
)
from orchestrator.stages.context import StageContext
from orchestrator.stages.improvement import with_patience
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.topology_ranking import Ranked, add_pool_scores, rank_topologies
from orchestrator.store.records import TrialRecord
from plugins import registry
from search_spaces.base import Costs, SearchSpace
from search_spaces.dimensions import Dimension, Point
from search_spaces.recipes import PluginChoice
from search_spaces.shape_rules import ShapeRules
from trainers.config import DataConfig, ScoreTask
from trainers.yaml_source import KeyPath

_COST_PROXIES = frozenset({"params", "flops", "depth", "latency"})
"""Proxies that measure only size; by default they do not count for the ranking."""


class Limits(SpecModel):
    """Bounds on a topology's closed-form costs, and rules of its shape; an omitted one does not limit the search."""

    min_params: ModelSize | None = Field(default=None, description="minimum number of parameters")
    max_params: ModelSize | None = Field(default=None, description="maximum number of parameters")
    min_macs: ModelSize | None = Field(
        default=None, description="minimum number of multiply-accumulates per image and forward pass"
    )
    max_macs: ModelSize | None = Field(
        default=None, description="maximum number of multiply-accumulates per image and forward pass"
    )
    multiples: ShapeRules = Field(
        default=ShapeRules(), description="numbers that widths must be multiples of, such as 64, for faster hardware"
    )

    def bounds(self) -> tuple[tuple[Literal["parameters", "macs"], int | None, int | None], ...]:
        """Attributes of `search_spaces.base.Costs` with their lower and upper bounds."""
        return ("parameters", self.min_params, self.max_params), ("macs", self.min_macs, self.max_macs)


class ScreenStage(StageModel):
    """Scores topologies with training-free proxies."""

    stage: Literal["screen"]
    name: StageName = Field(default="screen", description="name of the stage in reports; unique in the study")
    space: PluginChoice = Field(default=PluginChoice(name="as-vit"), description="search space of the topologies")
    sampler: PluginChoice = Field(default=PluginChoice(name="random"), description="chooses the next topology")
    num_trials: Count = Field(description="number of topologies to score")
    budget: Budget | None = Field(
        default=None, description="what the stage may spend, such as `30m`; it ends early with the trials that it has"
    )
    no_improvement: Count | None = Field(
        default=None, description="end the search if this many trials in a row have not improved it"
    )
    batch_size: Count = Field(default=16, description="number of real images per proxy")
    proxies: tuple[PluginChoice, ...] = Field(
        default=tuple(PluginChoice(name=name) for name in ("length-distortion", "ntk-condition", "params", "flops")),
        min_length=1,
        description="training-free scores, each computed for every topology",
    )
    rank_by: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="proxies that rank the topologies, by the sum of their ranks; by default the first two that "
        "measure more than size",
    )
    limits: Limits = Field(
        default=Limits(), description="bounds on parameters and multiply-accumulates, and shape rules"
    )

    @property
    def proxy_names(self) -> tuple[str, ...]:
        """Names of `proxies`."""
        return tuple(proxy.name for proxy in self.proxies)

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names of the proxies whose rank sum orders the topologies."""
        if self.rank_by is not None:
            return self.rank_by
        return tuple(name for name in self.proxy_names if name not in _COST_PROXIES)[:2] or self.proxy_names[:1]

    @cached_property
    def search_space(self) -> SearchSpace:
        """The space of topologies.

        Raises:
            ValueError: No such space is installed, or it rejects the settings.
        """
        return registry.create_space(self.space.name, self.space.settings)

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self._dimensions(), (*at, "sampler"))
        yield from choice_problems("spaces", self.space, (*at, "space"))
        yield from proxy_problems(self.proxies, (*at, "proxies"))
        for index, name in enumerate(self.rank_by or ()):
            if name not in self.proxy_names:
                yield Problem((*at, "rank_by", index), one_of("the stage's proxies", name, self.proxy_names))

    def data_problems(self, before: Sequence[StageModel], data: DataConfig, at: KeyPath) -> Iterator[Problem]:  # noqa: ARG002
        """Yield a space that does not fit the images, and limits that no topology satisfies."""
        space = self.search_space
        problem = space.problem(first_topology(space), smallest_task(data))
        if problem:
            size = data.image_size
            yield Problem((*at, "space"), f"must fit images of {size} pixels (data.image_size), but {problem}")
        else:
            yield from _limit_problems(self, space, data, (*at, "limits"))
            shape = shape_problem(space, self.limits.multiples)
            if shape:
                advice = "Choose other settings of the space, or smaller numbers."
                yield Problem((*at, "limits", "multiples"), f"{shape}. {advice}")

    def _dimensions(self) -> tuple[Dimension, ...] | None:
        """The dimensions to search; `None` if the space is invalid, which is reported separately."""
        try:
            return tuple(self.search_space.dimensions())
        except ValueError:
            return None


class RankedTopology(StageResult):
    """A scored topology with its rank sum."""

    topology: str
    trial: int
    rank_sum: int
    """Sum of the topology's dense ranks under the proxies of `rank_by`; lower is better."""
    scores: dict[str, float]


class ScreenedTopology(RankedTopology):
    """A scored topology with its rank sum and size."""

    parameters: int
    macs: int


class SamplersChoice(StageResult):
    """The sampler's final choice of topology."""

    topology: str
    place: int | None
    """Place in the ranking, starting at 1. If the topology was not scored, this and all later fields are `None`."""
    trial: int | None = None
    rank_sum: int | None = None
    scores: dict[str, float] | None = None
    parameters: int | None = None
    macs: int | None = None


class ScreenResult(StageResult):
    """The scored topologies, best first."""

    num_topologies: int
    num_failed: int
    rank_by: dict[str, Direction]
    best: ScreenedTopology
    top: tuple[ScreenedTopology, ...]
    """The ten best topologies."""
    ranking: tuple[RankedTopology, ...] = ()
    """All topologies. Version 0.1.0 stored none; `StageContext.earlier` adds them to its rows."""
    final_choice: SamplersChoice | None = None
    """Set only if the sampler makes a final choice."""


def run_screen(context: StageContext, spec: ScreenStage) -> StageOutcome:
    """Score `num_trials` different topologies and order them by the sum of their ranks.

    If the sampler makes a final choice, such as the argmax of a policy, the last trial scores it.
    """
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.searching import run_search

    space, directions = spec.search_space, proxy_directions(spec.ranking)
    proxies = context.as_begun(scored_choices(spec.proxies))
    objectives = screening_objectives(spec)
    suggester = OptunaSuggester(
        space.dimensions(),
        objectives=objectives,
        sampler=spec.sampler,
        seed=context.seed,
        problem=lambda point: _topology_problem(space, point, spec, context),
        final_number=spec.num_trials - 1,
    )
    search = Search(
        num_trials=spec.num_trials,
        objectives=objectives,
        suggester=with_patience(suggester, objectives, spec.no_improvement),
        make_task=lambda trial: ScoreTask(
            data=context.spec.data,
            topology=space.decode(trial.point).id,
            proxies=proxies,
            batch_size=spec.batch_size,
            seed=context.seed,  # paired comparison: all topologies share images, weight seeds and circles
        ),
    )
    ranked = _rank(run_search(context, search), spec)
    best, choice = ranked[0], suggester.final_choice()
    return StageOutcome(
        result=ScreenResult(
            num_topologies=len(ranked),
            num_failed=sum(trial.state == "failed" for trial in context.store.trials(context.stage.id)),
            rank_by=directions,
            best=_screened(best, spec),
            top=tuple(_screened(row, spec) for row in ranked[:10]),
            ranking=_ranking(ranked, spec),
            final_choice=None if choice is None else _samplers_choice(space.decode(choice).id, ranked, spec),
        ),
        summary=f"{len(ranked)} topologies scored; best {best.topology}",
        metrics={
            "num_topologies": len(ranked),
            **{f"best.{name}": best.trial.metrics[name] for name in spec.proxy_names},
        },
        texts={"screening.csv": _table(ranked, space)},
    )


def screening_objectives(spec: ScreenStage) -> tuple[Objective, ...]:
    """What the sampler of a screening optimises.

    The value of a pool proxy is known only after all topologies are scored, so the sampler optimises its parts.
    """
    parts = [part for name in spec.ranking for part in parts_of(name) or (name,)]
    return tuple(Objective(proxy, direction) for proxy, direction in proxy_directions(parts).items())


def _rank(usable: Sequence[TrialRecord], spec: ScreenStage) -> list[Ranked]:
    """Trials with a result, best first."""
    return rank_topologies(add_pool_scores(usable, spec.proxies), proxy_directions(spec.ranking))


def _with_ranking(
    raw: Mapping[str, Any], spec: ScreenStage, trials: Callable[[], list[TrialRecord]]
) -> Mapping[str, Any]:
    """Add the ranking to a result stored by version 0.1.0, which did not store it."""
    if "ranking" in raw:
        return raw
    ranked = _rank([trial for trial in trials() if trial.is_usable], spec)
    return {**raw, "ranking": _ranking(ranked, spec)}


def _limit_problems(stage: ScreenStage, space: SearchSpace, data: DataConfig, at: KeyPath) -> Iterator[Problem]:
    """Yield bounds that contradict each other or that no topology of the space satisfies."""
    for cost, low, high in stage.limits.bounds():
        suffix = "params" if cost == "parameters" else "macs"
        if low is not None and high is not None and low > high:
            yield Problem(
                (*at, f"min_{suffix}"), f"must be at most max_{suffix} = {high:,}, but got {low:,}. Swap them."
            )
        if high is not None:
            least, topology = extreme_cost(space, cost, smallest_task(data), sign=1, enough=high)
            if least > high:
                yield Problem(
                    (*at, f"max_{suffix}"),
                    f"must be at least {least:,}, the {cost} of the smallest topology of the space ({topology.id}), "
                    f"but got {high:,}. Raise it or make the space smaller, for example its width.",
                )
        if low is not None:
            most, topology = extreme_cost(space, cost, largest_task(data), sign=-1, enough=low)
            if most < low:
                yield Problem(
                    (*at, f"min_{suffix}"),
                    f"must be at most {most:,}, the {cost} of the largest topology of the space ({topology.id}), "
                    f"but got {low:,}. Lower it or make the space larger, for example its width.",
                )


def _topology_problem(space: SearchSpace, point: Point, spec: ScreenStage, context: StageContext) -> str | None:
    topology = space.decode(point)
    problem = space.problem(topology, context.image_task) or spec.limits.multiples.problem(topology)
    return problem or _limit_problem(spec, space.costs(topology, context.image_task))


def _limit_problem(spec: ScreenStage, costs: Costs) -> str | None:
    for name, low, high in spec.limits.bounds():
        value = getattr(costs, name)
        if (low is not None and value < low) or (high is not None and value > high):
            return f"{name} must lie between {low} and {high}, but they are {value}"
    return None


def _ranking(ranked: Sequence[Ranked], spec: ScreenStage) -> tuple[RankedTopology, ...]:
    return tuple(
        RankedTopology(topology=row.topology, trial=row.trial.number, rank_sum=row.rank_sum, scores=_scores(row, spec))
        for row in ranked
    )


def _screened(row: Ranked, spec: ScreenStage) -> ScreenedTopology:
    return ScreenedTopology(
        topology=row.topology,
        trial=row.trial.number,
        rank_sum=row.rank_sum,
        scores=_scores(row, spec),
        parameters=int(row.trial.metrics["parameters"]),
        macs=int(row.trial.metrics["macs"]),
    )


def _scores(row: Ranked, spec: ScreenStage) -> dict[str, float]:
    return {name: row.trial.metrics[name] for name in spec.proxy_names}


def _samplers_choice(topology: str, ranked: Sequence[Ranked], spec: ScreenStage) -> SamplersChoice:
    for place, row in enumerate(ranked, start=1):
        if row.topology == topology:
            return SamplersChoice(**_screened(row, spec).model_dump(), place=place)
    return SamplersChoice(topology=topology, place=None)


def _table(ranked: Sequence[Ranked], space: SearchSpace) -> str:
    described = [space.describe(space.parse(row.topology.partition(":")[2])) for row in ranked]
    metrics = sorted({name for row in ranked for name in row.trial.metrics})
    header = ["rank", "rank_sum", "trial", "topology", *described[0], *metrics]
    rows = (
        [
            place,
            row.rank_sum,
            row.trial.number,
            row.topology,
            *parameters.values(),
            *(row.trial.metrics.get(name) for name in metrics),
        ]
        for place, (row, parameters) in enumerate(zip(ranked, described, strict=True), start=1)
    )
    return csv_text(header, rows, digits=None)


SCREEN = StageKind(
    model=ScreenStage,
    result=ScreenResult,
    run=run_screen,
    line=lambda result: result.best.topology,
    complete=_with_ranking,
)
