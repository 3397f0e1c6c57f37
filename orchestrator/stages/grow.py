"""Stage `grow`: As-ViT's scaling rule, from a seed topology to a size, scored without training."""

import itertools
from typing import Any

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.reports.plots import growth
from orchestrator.spec.proxy_choices import proxy_directions
from orchestrator.spec.study_file import GrowStage
from orchestrator.spec.topology_checks import at_reduced_width, growth_start_problem, space_of
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.screen import screened
from orchestrator.stages.searching import run_search
from orchestrator.stages.topology_ranking import rank_sums
from orchestrator.store.records import TrialRecord
from plugins import registry
from search_spaces.base import Costs, Growable, ImageTask, Topology
from search_spaces.dimensions import Point
from trainers.config import ScoreTask

CEILING = 1.375
"""Networks above this multiple of a target are not considered: 110 M for a target of 80 M in As-ViT's code."""
_UNITS = {"parameters": "parameters", "macs": "multiply-accumulates"}


def run_grow(context: StageContext, spec: GrowStage) -> StageOutcome:
    """Grow a topology of any space with `Growable` ones to `target_params` or `target_macs`; the whole family is kept.

    Each step adds one block to one stage and widens the network by one ratio; every combination is scored at the
    reduced width, and the lowest sum of ranks is taken. Rule, ratios, scores and reduction are those that the paper has
    for As-ViT; for other spaces they are carried over, not tried by it. There, widths are whole multiples of
    `reduction * width_unit`, so that both the network and its reduced form can be built.

    Raises:
        StageFailedError: The target cannot be reached within `max_steps` or below the ceiling.

    Source: Chen et al. 2022, arXiv:2202.11921, section 3.3. A tie goes to the better value of the proxy that differs
    most among the tied, in that proxy's own direction, over all tied candidates (the released code compares two of
    them, and always takes the smaller value).
    """
    start = _start(context, spec)
    costs = space_of(start).costs(start, context.image_task)
    if _reaches(costs, spec):
        raise StageFailedError(
            f"growth must start below {_describe_targets(spec)}, but {start.id} has {costs.parameters:,} parameters "
            f"and {costs.macs:,} multiply-accumulates already. Raise the target, or screen narrower topologies."
        )
    suggester = GrowthSuggester(start, spec, context.image_task)
    proxies = tuple(
        choice.model_copy(update={"settings": {"repeats": spec.repeats, **choice.settings}}) for choice in spec.proxies
    )
    search = Search(
        num_trials=spec.max_steps * len(spec.width_ratios) * len(_growable(start).depths),
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
    if not suggester.has_arrived:
        last = family[-1] if family else {"topology": start.id, **costs._asdict()}
        ended = " and ".join(f"{last[cost]:,} {_UNITS[cost]}" for cost in spec.targets())
        raise StageFailedError(
            f"growth must reach {_describe_targets(spec)}, but it ended at {ended} ({last['topology']}) after "
            f"{len(family)} steps: {suggester.ending}. Raise max_steps, lower the target, or start from a smaller "
            "topology."
        )
    path = context.folder / "growth.png"
    growth(family, list(suggester.directions), path)
    final = family[-1]
    return StageOutcome(
        result={"start": start.id, "family": family, "selected": [final["topology"]], "final": final},
        summary=f"{len(family)} steps to {final['parameters']:,} parameters: {final['topology']}",
        metrics={"num_steps": len(family), "parameters": final["parameters"], "macs": final["macs"]},
        texts={"family.csv": _table(family)},
        plots=(path,),
    )


class GrowthSuggester:
    """Suggests the candidates of one growth step after another; the state follows from the finished trials."""

    def __init__(self, start: Topology, spec: GrowStage, task: ImageTask) -> None:
        self._space = space_of(start)
        self._spec = spec
        self._task = task
        self._current = start
        self._queue: list[Point] = []
        self._scored: list[TrialRecord] = []
        self._expected: set[str] = set()
        self.directions = proxy_directions(proxy.name for proxy in spec.proxies)
        self.family: list[dict[str, Any]] = []
        self.ending = "max_steps was reached"
        self.has_arrived = _reaches(self._space.costs(start, task), spec)
        self._prepare()

    def ask(self, number: int) -> Suggestion | None:  # noqa: ARG002 - the order of the queue is the order of numbers
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
            self.ending = f"every further step passes {CEILING} times the target or cannot be built"

    def _step(self) -> None:
        if not self._scored:
            self.ending = "no candidate of the step could be scored"
            return
        chosen = choose_step(self._scored, self.directions)
        topology = registry.parse_topology(str(chosen.point["topology"]))
        self._current = topology
        costs = self._space.costs(topology, self._task)
        self.family.append(
            {
                "step": len(self.family) + 1,
                "topology": topology.id,
                "parameters": costs.parameters,
                "macs": costs.macs,
                "width": _growable(topology).width,
                "depths": list(_growable(topology).depths),
                "scores": {name: chosen.metrics[name] for name in self.directions},
                "trial": chosen.number,
            }
        )
        self.has_arrived = _reaches(costs, self._spec)
        self._prepare()


def growth_candidates(topology: Topology, spec: GrowStage) -> list[Topology]:
    """Real networks one step on: one more block in one stage, and each different width that a ratio gives."""
    assert isinstance(topology, Growable)
    step = spec.reduction * topology.width_unit
    width = topology.width // step
    widths = list(dict.fromkeys(round(width * (1 + ratio)) for ratio in spec.width_ratios))
    return [
        topology.with_size(
            depths=tuple(depth + (place == stage) for place, depth in enumerate(topology.depths)),
            width=wider * step,
        )
        for stage, wider in itertools.product(range(len(topology.depths)), widths)
    ]


def choose_step(trials: list[TrialRecord], directions: dict[str, Any]) -> TrialRecord:
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
    if spec.start == "best":
        return screened(context)[1][0].topology
    stage = context.earlier("screen")
    assert stage is not None  # the spec's own validation demands one
    return str(stage.result["final_choice"]["topology"])


def _table(family: list[dict[str, Any]]) -> str:
    proxies = list(family[0]["scores"])
    lines = [",".join(["step", "topology", "parameters", "macs", "width", "depths", *proxies])]
    for row in family:
        depths = " ".join(str(depth) for depth in row["depths"])
        scores = [f"{row['scores'][name]:.6g}" for name in proxies]
        cells = [row["step"], f'"{row["topology"]}"', row["parameters"], row["macs"], row["width"], depths, *scores]
        lines.append(",".join(str(cell) for cell in cells))
    return "\n".join(lines) + "\n"
