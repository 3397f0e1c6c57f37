"""Stage `grow`: grows a topology to a target size by As-ViT's scaling rule, guided by training-free scores."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from pydantic import Field

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.reports.csv_text import csv_text
from orchestrator.spec.plugin_checks import proxy_problems
from orchestrator.spec.problems import Problem, plain
from orchestrator.spec.proxy_choices import Direction, proxy_directions
from orchestrator.spec.stage_model import Count, Fraction, ModelSize, StageModel, StageName, latest
from orchestrator.spec.topology_checks import first_topology, search_space_of, smallest_task, topology_text_problems
from orchestrator.stages.context import StageContext, StageFailedError, StageInterruptedError
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.screen import SCREEN, ScreenStage
from orchestrator.stages.topology_ranking import rank_sums
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.protocols import FinalChoice
from search_spaces.base import Costs, Growable, ImageTask, Topology
from search_spaces.dimensions import Point
from search_spaces.recipes import PluginChoice
from search_spaces.shape_rules import ShapeRules, width_step
from trainers.config import DataConfig, ScoreTask
from trainers.yaml_source import KeyPath

CEILING = 1.375
"""Networks above this multiple of a target are excluded. As-ViT's code allows 110 M for a target of 80 M."""
_UNITS = {"parameters": "parameters", "macs": "multiply-accumulates"}


class GrowStage(StageModel):
    """Grows one topology to a target size by As-ViT's scaling rule."""

    stage: Literal["grow"]
    name: StageName = Field(default="grow", description="name of the stage in reports; unique in the study")
    topology: str | None = Field(
        default=None, description="topology to start from, as space:text; by default the best of the preceding screen"
    )
    start: Literal["best", "final-choice"] = Field(
        default="best",
        description="topology of the preceding screen: the best ranked, or the sampler's final choice (reinforce)",
    )
    target_params: ModelSize | None = Field(
        default=None,
        description="stop at the first topology with at least this many parameters; this or `target_macs` is required",
    )
    target_macs: ModelSize | None = Field(
        default=None,
        description="stop at the first topology with at least this many multiply-accumulates per image and forward "
        "pass; with two targets, growth stops at the first one reached",
    )
    max_steps: Count = Field(default=20, description="maximum number of steps")
    width_ratios: tuple[Fraction, ...] = Field(
        default=(0.05, 0.10, 0.15, 0.20), min_length=1, description="relative increases in width to try in each step"
    )
    repeats: Count = Field(default=2, description="number of fresh initialisations over which a score is averaged")
    reduction: Count = Field(
        default=4,
        description="score networks with 1/reduction of the width; the width then grows in multiples of `reduction`",
    )
    multiples: ShapeRules = Field(
        default=ShapeRules(),
        description="numbers that the widths of every grown network must be multiples of; a step without a possible "
        "width within `width_ratios` takes the next possible one",
    )
    proxies: tuple[PluginChoice, ...] = Field(
        default=(PluginChoice(name="ntk-condition"), PluginChoice(name="length-distortion")),
        min_length=1,
        description="training-free scores; the sum of their ranks chooses a step",
    )
    batch_size: Count = Field(default=16, description="number of real images per proxy")

    def targets(self) -> dict[Literal["parameters", "macs"], int]:
        """The given targets, by attribute of `search_spaces.base.Costs`."""
        given: dict[Literal["parameters", "macs"], int | None] = {
            "parameters": self.target_params,
            "macs": self.target_macs,
        }
        return {cost: target for cost, target in given.items() if target is not None}

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        if not self.targets():
            message = "growth needs `target_params` or `target_macs`, but has neither. Add one."
            yield Problem((*at, "target_params"), message)
        yield from proxy_problems(self.proxies, (*at, "proxies"))
        for index, proxy in enumerate(self.proxies):
            is_known = proxy.name in registry.available("proxies")
            if is_known and "repeats" not in registry.setting_types("proxies", proxy.name):
                message = (
                    f"growth averages scores over fresh initialisations, but {proxy.name!r} has no setting `repeats`."
                )
                yield Problem((*at, "proxies", index), f"{message} Choose another proxy.")

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        screen = latest(before, ScreenStage)
        if screen is None and self.topology is None:
            yield Problem(
                at,
                "a grow stage needs a screen stage before it or a `topology` to start from, but has neither. Add one.",
            )
        if self.start == "final-choice":
            yield from _final_choice_problems(self, screen, (*at, "start"))

    def data_problems(self, before: Sequence[StageModel], data: DataConfig, at: KeyPath) -> Iterator[Problem]:
        """Yield starts that cannot be scored at the reduced width or already have the target size."""
        if self.topology is not None:
            unfit = list(topology_text_problems(self.topology, data, (*at, "topology")))
            yield from unfit
            if unfit:
                return
        task = smallest_task(data)
        for start in _growth_starts(self, before):
            for cost, target in self.targets().items():
                value = getattr(search_space_of(start).costs(start, task), cost)
                if self.topology is not None and value >= target:
                    yield Problem(
                        (*at, "target_params" if cost == "parameters" else "target_macs"),
                        f"must be above {value:,}, the {cost} of `topology`, but got {target:,}. Raise it.",
                    )
            problem = growth_start_problem(start, self.reduction, task)
            if not problem and (shape := _shape_problem(start, self)):
                yield Problem((*at, "multiples"), shape)
            if problem:
                yield Problem((*at, "reduction") if isinstance(start, Growable) else at, problem)


class GrowthStep(StageResult):
    """The network chosen by one growth step."""

    step: int
    """Number of the step, starting at 1."""
    topology: str
    parameters: int
    macs: int
    width: int
    depths: tuple[int, ...]
    scores: dict[str, float]
    """Scores of the network at the reduced width, by proxy."""
    trial: int


class GrowResult(StageResult):
    """The family of networks from the start to the target."""

    start: str
    family: tuple[GrowthStep, ...]
    """The network of each step, without the start."""
    selected: tuple[str, ...]
    """Topologies for a later train stage."""
    final: GrowthStep


def run_grow(context: StageContext, spec: GrowStage) -> StageOutcome:
    """Grow a `Growable` topology to `target_params` or `target_macs`, and return the whole family of networks.

    Each step adds one block to one stage and widens the network by one ratio. Every combination is scored at the
    reduced width, and the one with the lowest sum of ranks is chosen. The rule, ratios, scores and reduction are those
    of the As-ViT paper, which did not test other spaces. Widths are whole multiples of `reduction * width_unit`, so
    that both the network and its reduced form can be built, and keep the shape rules in `multiples`.

    Raises:
        StageFailedError: The target cannot be reached within `max_steps` or below the ceiling.
        StageInterruptedError: A stop was requested, or the deadline passed before the target was reached.

    Source: Chen et al. 2022, arXiv:2202.11921, section 3.3. Ties are broken by the proxy with the largest relative
    range over all tied candidates, in that proxy's direction (the released code compares only two candidates and
    always takes the smaller value).
    """
    from orchestrator.reports.plots import growth
    from orchestrator.stages.searching import run_search

    start = _start(context, spec)
    costs = search_space_of(start).costs(start, context.image_task)
    if _reaches(costs, spec):
        raise StageFailedError(
            f"growth must start below {_describe_targets(spec)}, but {start.id} has {costs.parameters:,} parameters "
            f"and {costs.macs:,} multiply-accumulates already. Raise the target, or screen narrower topologies."
        )
    suggester = GrowthSuggester(start, spec, context.image_task)
    proxies = context.as_begun(
        choice.model_copy(update={"settings": {"repeats": spec.repeats, **choice.settings}}) for choice in spec.proxies
    )
    search = Search(
        num_trials=spec.max_steps * (len(spec.width_ratios) + spec.multiples.is_strict) * len(_growable(start).depths),
        objectives=tuple(Objective(name, way) for name, way in suggester.directions.items()),
        suggester=suggester,
        make_task=lambda trial: ScoreTask(
            data=context.spec.data,
            topology=str(trial.point["scored"]),
            proxies=proxies,
            batch_size=spec.batch_size,
            seed=context.seed,
        ),
    )
    run_search(context, search)
    family = suggester.family
    if not suggester.has_arrived and context.control.deadline_reached():
        raise StageInterruptedError("its deadline passed before the target was reached")
    if not suggester.has_arrived:
        last: GrowthStep | Costs = family[-1] if family else costs
        name = family[-1].topology if family else start.id
        ended = " and ".join(f"{getattr(last, cost):,} {_UNITS[cost]}" for cost in spec.targets())
        raise StageFailedError(
            f"growth must reach {_describe_targets(spec)}, but it ended at {ended} ({name}) after "
            f"{len(family)} steps: {suggester.ending}. Raise max_steps, lower the target, or start from a smaller "
            "topology."
        )
    path = context.folder / "growth.png"
    growth([step.model_dump() for step in family], list(suggester.directions), path)
    final = family[-1]
    return StageOutcome(
        result=GrowResult(start=start.id, family=tuple(family), selected=(final.topology,), final=final),
        summary=f"{len(family)} steps to {final.parameters:,} parameters: {final.topology}",
        metrics={"num_steps": len(family), "parameters": final.parameters, "macs": final.macs},
        texts={"family.csv": _table(family)},
        plots=(path,),
    )


class GrowthSuggester:
    """Suggests the candidates of each growth step in turn; its state is derived from the finished trials."""

    def __init__(self, start: Topology, spec: GrowStage, task: ImageTask) -> None:
        self._space = search_space_of(start)
        self._spec = spec
        self._task = task
        self._current = start
        self._queue: list[Point] = []
        self._scored: list[TrialRecord] = []
        self._expected: set[str] = set()
        self.directions = proxy_directions(proxy.name for proxy in spec.proxies)
        self.family: list[GrowthStep] = []
        self.ending = "max_steps was reached"
        self.has_arrived = _reaches(self._space.costs(start, task), spec)
        self._prepare()

    @property
    def shortage(self) -> str | None:
        """`None`, because growth ends when the target is reached."""
        return None

    def ask(self, number: int) -> Suggestion | None:  # noqa: ARG002 - the queue is in the order of trial numbers
        return Suggestion(self._queue.pop(0), {}) if self._queue else None

    def expect(self, trial: TrialRecord) -> None:
        self._queue = [point for point in self._queue if point["topology"] != trial.point["topology"]]

    def tell(self, trial: TrialRecord) -> None:
        name = str(trial.point["topology"])
        self._queue = [point for point in self._queue if point["topology"] != name]
        self._expected.discard(name)
        if trial.is_usable:
            self._scored.append(trial)
        if not self._expected:
            self._step()

    def _prepare(self) -> None:
        self._scored = []
        if self.has_arrived or len(self.family) >= self._spec.max_steps:
            return
        self._queue = [
            {
                "step": len(self.family) + 1,
                "topology": real.id,
                "scored": scored.id,
            }
            for real in growth_candidates(self._current, self._spec)
            if self._space.problem(real, self._task) is None
            and not _reaches(self._space.costs(real, self._task), self._spec, above=CEILING)
            and (scored := at_reduced_width(real, self._spec.reduction)) is not None
            and self._space.problem(scored, self._task) is None
        ]
        self._expected = {str(point["topology"]) for point in self._queue}
        if not self._queue:
            rules = " or breaks the shape rules" if self._spec.multiples.is_strict else ""
            self.ending = f"every further step exceeds {CEILING} times the target or cannot be built{rules}"

    def _step(self) -> None:
        if not self._scored:
            self.ending = "no candidate of the step could be scored"
            return
        chosen = choose_step(self._scored, self.directions)
        topology = registry.parse_topology(str(chosen.point["topology"]))
        self._current = topology
        costs = self._space.costs(topology, self._task)
        self.family.append(
            GrowthStep(
                step=len(self.family) + 1,
                topology=topology.id,
                parameters=costs.parameters,
                macs=costs.macs,
                width=_growable(topology).width,
                depths=tuple(_growable(topology).depths),
                scores={name: chosen.metrics[name] for name in self.directions},
                trial=chosen.number,
            )
        )
        self.has_arrived = _reaches(costs, self._spec)
        self._prepare()


def growth_candidates(topology: Topology, spec: GrowStage) -> list[Topology]:
    """Full-size candidates of the next step: one more block in one stage, with each distinct width of the ratios.

    With shape rules, widths are multiples of the smallest step at which the rules hold. If no ratio gives a larger
    width, the next one is added.
    """
    assert isinstance(topology, Growable)
    unit = spec.reduction * topology.width_unit
    width = topology.width // unit
    widths = [unit * round(width * (1 + ratio)) for ratio in spec.width_ratios]
    if spec.multiples.is_strict:
        widths = _widths_by_rules(topology, spec, multiple=unit)
    candidates = []
    for stage, wider in itertools.product(range(len(topology.depths)), dict.fromkeys(widths)):
        depths = tuple(depth + (place == stage) for place, depth in enumerate(topology.depths))
        with suppress(ValueError):  # wider than the space allows
            candidates.append(topology.with_size(depths=depths, width=wider))
    return [candidate for candidate in candidates if spec.multiples.problem(candidate) is None]


def _widths_by_rules(topology: Topology, spec: GrowStage, *, multiple: int) -> list[int]:
    """Widths of the next step that keep the shape rules, none smaller than the present one; empty if there are none."""
    step = width_step(topology, spec.multiples, multiple=multiple)
    if step is None:
        return []
    width = _growable(topology).width
    wanted = [step * round(width * (1 + ratio) / step) for ratio in spec.width_ratios]
    widths = [wider for wider in wanted if wider >= width]
    return widths if any(wider > width for wider in widths) else [*widths, (width // step + 1) * step]


def choose_step(trials: list[TrialRecord], directions: Mapping[str, Direction]) -> TrialRecord:
    """The candidate with the lowest sum of ranks; see `run_grow` for ties."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    sums = rank_sums([trial.metrics for trial in ordered], directions)
    tied = [trial for trial, total in zip(ordered, sums, strict=True) if total == min(sums)]
    if len(tied) == 1:
        return tied[0]

    def relative_range(proxy: str) -> float:
        values = [abs(trial.metrics[proxy]) for trial in tied]
        return (max(values) - min(values)) / max(values) if max(values) else 0.0

    deciding = max(directions, key=relative_range)
    sign = -1.0 if directions[deciding] == "maximize" else 1.0
    return min(tied, key=lambda trial: (sign * trial.metrics[deciding], trial.number))


def _reaches(costs: Costs, spec: GrowStage, *, above: float | None = None) -> bool:
    """Whether any cost is at least its target, or more than `above` times its target."""
    values = [(getattr(costs, cost), target) for cost, target in spec.targets().items()]
    if above is not None:
        return any(value > above * target for value, target in values)
    return any(value >= target for value, target in values)


def _describe_targets(spec: GrowStage) -> str:
    return " or ".join(f"{target:,} {_UNITS[cost]}" for cost, target in spec.targets().items())


def _growable(topology: Topology) -> Growable:
    assert isinstance(topology, Growable)
    return topology


def _start(context: StageContext, spec: GrowStage) -> Topology:
    topology = registry.parse_topology(spec.topology or _screened_start(context, spec))
    problem = growth_start_problem(topology, spec.reduction, context.image_task)
    if problem is not None:
        raise StageFailedError(f"growth {problem}")
    return topology


def _screened_start(context: StageContext, spec: GrowStage) -> str:
    screen = context.required(SCREEN).result
    if spec.start == "best":
        return screen.best.topology
    assert screen.final_choice is not None  # the checks require such a sampler
    return screen.final_choice.topology


def _table(family: Sequence[GrowthStep]) -> str:
    proxies = list(family[0].scores)
    rows = (
        [
            row.step,
            row.topology,
            row.parameters,
            row.macs,
            row.width,
            " ".join(map(str, row.depths)),
            *row.scores.values(),
        ]
        for row in family
    )
    return csv_text(["step", "topology", "parameters", "macs", "width", "depths", *proxies], rows)


def _final_choice_problems(stage: GrowStage, screen: ScreenStage | None, at: KeyPath) -> Iterator[Problem]:
    if stage.topology is not None:
        yield Problem(at, "give `topology` or `start`, but got both. Remove one of them.")
    elif screen is not None and screen.sampler.name in registry.available("samplers"):
        sampler = registry.load("samplers", screen.sampler.name)
        if not isinstance(sampler, FinalChoice):  # the class also has the method
            yield Problem(
                at,
                "final-choice needs a sampler that makes a final choice, such as reinforce, but stage "
                f"{screen.name!r} has {screen.sampler.name!r}. Change one of them.",
            )


def growth_start_problem(topology: Topology, reduction: int, task: ImageTask) -> str | None:
    """Why growth cannot start from a topology and score networks with 1/`reduction` of its width, or `None`."""
    if not isinstance(topology, Growable):
        return f"must start from a topology that can be made deeper and wider, but {topology.id} cannot."
    reduced = at_reduced_width(topology, reduction)
    if reduced is None:
        unit = topology.width_unit
        problem: str | None = f"its width of {topology.width} must be at least {reduction} x {unit}."
    else:
        problem = search_space_of(topology).problem(reduced, task)
    if problem is None:
        return None
    return (
        f"must allow scoring every start at 1/{reduction} of its width, but {topology.id} cannot be built at that "
        f"width: {problem} Lower `reduction` or start wider."
    )


def _shape_problem(start: Topology, spec: GrowStage) -> str | None:
    """Why no width of a start keeps the shape rules, or `None`."""
    if not spec.multiples.is_strict:
        return None
    multiple = spec.reduction * _growable(start).width_unit
    try:
        step = width_step(start, spec.multiples, multiple=multiple)
    except ValueError as error:
        return plain(error)
    if step is not None:
        return None
    return (
        f"must hold at some width that is a multiple of {multiple} (`reduction` x {multiple // spec.reduction}), but "
        f"they hold at none for {start.id}. Use smaller numbers or another start."
    )


def at_reduced_width(topology: Topology, reduction: int) -> Topology | None:
    """The topology with 1/`reduction` of its width in whole units, or `None` if that is less than one unit."""
    assert isinstance(topology, Growable)
    units = topology.width // (reduction * topology.width_unit)
    return topology.with_size(width=units * topology.width_unit) if units else None


def _growth_starts(stage: GrowStage, before: Sequence[StageModel]) -> tuple[Topology, ...]:
    """The topology that growth starts from; for a screen, topologies that cover each value of each dimension."""
    if stage.topology is not None:
        return (registry.parse_topology(stage.topology),)
    screen = latest(before, ScreenStage)
    assert screen is not None  # `order_problems` runs first
    space = screen.search_space
    first = first_topology(space)
    return (first, *space.neighbours(first))


GROW = StageKind(
    model=GrowStage,
    result=GrowResult,
    run=run_grow,
    line=lambda result: f"{result.final.topology} ({result.final.parameters:,} parameters)",
)
