"""A complete discovery: measure statistics, split the topologies in halves, search, and judge the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.discovery.block_tables import StatisticsFiles, join_tables, measure_topologies
from orchestrator.discovery.evolution import Discovery, SearchSettings, judge_formulas, search
from orchestrator.discovery.objective import BlockTable, Truth, split_topologies, strongest_tau
from orchestrator.evaluation.ceiling import have_no_verdict, without_marks
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.joint import QUESTIONS, ScoredTable, judge_jointly, with_unique_titles
from orchestrator.evaluation.verdict import Ceiling, Interval, JointVerdict, Verdict
from plugins import registry
from plugins.proxies.formulas import Formula

BASELINES = ("params", "flops", "depth")
RESAMPLES = 1000
CONFIDENCE = 0.95
_MIN_FINITE = 0.5
"""Topologies are excluded if a smaller fraction of their statistics is finite, since no signal passes through them."""


@dataclass(frozen=True, kw_only=True)
class MeasuredPool:
    """The topologies of all truths with their statistics. A topology of several truths occurs once."""

    table: BlockTable
    truths: tuple[Truth, ...]
    sources: tuple[GroundTruth, ...]
    """The truths as they were loaded."""
    topologies: tuple[str, ...]
    """The topologies as `space:text`, in the order of the table."""
    baselines: dict[str, list[float]]
    """By name, the score of each topology; higher is better."""
    left_out: tuple[str, ...]
    """Topologies that are excluded because most of their statistics are not finite."""


@dataclass(frozen=True, kw_only=True)
class TruthVerdicts:
    """The verdicts on the formula and the baselines, for both halves of one truth."""

    title: str
    held_out: tuple[Verdict, ...]
    searched: tuple[Verdict, ...]
    """Verdicts on the half used for the search. Their difference to `held_out` shows the overfitting."""
    ceiling: Ceiling | None
    """The tau that a perfect score could reach on the held-out half; `None` if unknown."""
    has_no_verdict: bool
    """Whether the accuracies of the held-out half differ by no more than chance, so that nothing is shown by them."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of a discovery, for display and saving."""

    name: str
    seed: int
    discovery: Discovery
    verdicts: tuple[TruthVerdicts, ...]
    joint: tuple[JointVerdict, ...]
    """Verdicts over all held-out halves together, for pairs of any size and of like size. Halves without a verdict are
    left out; empty with fewer than two."""

    def about(self) -> list[str]:
        """Comment lines for the file of the saved formula."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        ended = ", interrupted" if self.discovery.interrupted else ""
        lines = [
            f"{self.name}: discovered {now}",
            f"search: seed {self.seed}, {self.discovery.num_formulas} formulas in {self.discovery.iterations} "
            f"iterations{ended}",
        ]
        for truth in self.verdicts:
            held_out, searched = (_verdict_on(self.name, rows) for rows in (truth.held_out, truth.searched))
            ceiling = "" if truth.ceiling is None else f", a perfect score {interval_text(truth.ceiling.tau)}"
            chance = "; these accuracies differ by no more than chance" if truth.has_no_verdict else ""
            minus = ", ".join(f"minus {name} {interval_text(one)}" for name, one in held_out.minus.items())
            lines += [
                f"{truth.title}, {held_out.num_topologies} held out: tau {interval_text(held_out.tau)}, {minus}"
                f"{ceiling}{chance}",
                f"{truth.title}, {searched.num_topologies} used for the search: tau {interval_text(searched.tau)} "
                "(optimistic)",
            ]
        for row in self.joint:
            if row.proxy == self.name:
                lines.append(
                    f"{len(row.tables)} tables held out, {row.question}: minus the strongest baseline "
                    f"{interval_text(row.mean_difference)} in the mean, lowest on {row.worst}, better on "
                    f"{row.num_beaten}, worse on {row.num_lost}"
                )
        return lines

    def as_json(self) -> dict[str, Any]:
        """All results as JSON data."""
        found = self.discovery
        return {
            "name": self.name,
            "formula": str(found.formula),
            "size": found.formula.size,
            "seed": self.seed,
            "objective_searched": found.objective,
            "iterations": found.iterations,
            "num_formulas": found.num_formulas,
            "interrupted": found.interrupted,
            "front": [
                {"size": one.formula.size, "objective_searched": one.objective, "formula": str(one.formula)}
                for one in found.front
            ],
            "truths": [
                {
                    "title": truth.title,
                    "ceiling": None if truth.ceiling is None else truth.ceiling.model_dump(mode="json"),
                    "has_no_verdict": truth.has_no_verdict,
                    "held_out": [_row(row) for row in truth.held_out],
                    "searched": [_row(row) for row in truth.searched],
                }
                for truth in self.verdicts
            ],
            "joint": [row.model_dump(mode="json") for row in self.joint],
        }


def measure_pool(
    truths: Sequence[GroundTruth],
    files: StatisticsFiles,
    *,
    batch_size: int,
    num_networks: int,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> MeasuredPool | None:
    """Measure the statistics of all topologies of the truths, which must have the same images and classes.

    Args:
        truths: At least one truth.
        files: Files of the statistics.
        batch_size: Number of images for each network.
        num_networks: Number of fresh networks per topology.
        on_progress: Called with the number of measured networks of a truth and the number of networks to measure.
        should_stop: Called before each network. If it returns True, measuring stops.

    Returns:
        The topologies with their statistics, or `None` if measuring was stopped.
    """
    measured: dict[tuple[str, int], NDArray[np.float64]] = {}
    for truth in truths:
        found = measure_topologies(
            truth,
            files,
            batch_size=batch_size,
            num_seeds=num_networks,
            on_progress=on_progress,
            should_stop=should_stop,
        )
        if found is None:
            return None
        measured |= found
    bad = {topology for (topology, _), values in measured.items() if np.isfinite(values).mean() < _MIN_FINITE}
    topologies = list(dict.fromkeys(one for truth in truths for one in truth.topologies if one not in bad))
    table = join_tables(measured, topologies, num_seeds=num_networks)
    places = {topology: place for place, topology in enumerate(topologies)}
    costs = [
        registry.load("spaces", one.partition(":")[0]).costs(registry.parse_topology(one), truths[0].task)
        for one in topologies
    ]
    return MeasuredPool(
        table=table,
        topologies=tuple(topologies),
        truths=tuple(_truth(truth, places) for truth in truths),
        sources=tuple(truths),
        baselines={
            "params": [float(cost.parameters) for cost in costs],
            "flops": [float(cost.macs) for cost in costs],
            "depth": table.depths,
        },
        left_out=tuple(sorted(bad)),
    )


def discover(
    pool: MeasuredPool,
    settings: SearchSettings,
    *,
    name: str,
    seed: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, float], None],
) -> Findings | None:
    """Search on one half of every truth, and judge the result on the other half.

    The search maximises the mean and the worst difference of tau from the strongest baseline of each truth.

    Args:
        pool: Topologies with their statistics and accuracies.
        settings: Settings of the search.
        name: Name of the formula in the verdicts.
        seed: Seed of the halves, the search and the resampling.
        should_stop: Called before each iteration. If it returns True, the best formula so far is judged.
        on_progress: Called with the number of finished iterations and the best objective.

    Returns:
        The results, or `None` if no formula could be evaluated.

    Raises:
        ValueError: All accuracies of the half used for the search are equal.
    """
    searched = split_topologies(pool.truths, pool.table.num_topologies, seed=seed)
    place = np.cumsum(searched) - 1
    baselines = [np.asarray(scores) for scores in pool.baselines.values()]
    halves = [truth.within(searched) for truth in pool.truths]
    halves = [replace(half, strongest=strongest_tau(half, baselines)) for half in halves]
    discovery = search(
        pool.table.only(searched),
        [replace(half, places=place[half.places]) for half in halves],
        settings,
        seed=seed,
        should_stop=should_stop,
        on_progress=on_progress,
    )
    if discovery is None:
        return None

    judged = partial(_judge_halves, name, discovery.formula, pool, seed=seed)
    held_out = [truth.within(~searched) for truth in pool.truths]
    verdicts = [judged(*one) for one in zip(held_out, halves, pool.sources, strict=True)]
    counted = [truth for truth, found in zip(held_out, verdicts, strict=True) if not found.has_no_verdict]
    return Findings(
        name=name,
        seed=seed,
        discovery=discovery,
        verdicts=tuple(verdicts),
        joint=tuple(_judge_jointly(name, discovery.formula, pool, counted, seed=seed)),
    )


def _judge_halves(
    name: str, formula: Formula, pool: MeasuredPool, held_out: Truth, searched: Truth, source: GroundTruth, *, seed: int
) -> TruthVerdicts:
    """The verdicts on the formula and the baselines, for both halves of one truth."""

    def judge(half: Truth) -> list[Verdict]:
        return judge_formulas(
            {name: formula}, pool.table, half, pool.baselines, resamples=RESAMPLES, confidence=CONFIDENCE, seed=seed
        )

    found = judge(held_out)
    ceiling = source.only({pool.topologies[place] for place in held_out.places}).ceiling(CONFIDENCE)
    has_no_verdict = have_no_verdict(ceiling, found)
    return TruthVerdicts(
        title=held_out.name,
        held_out=tuple(without_marks(found) if has_no_verdict else found),
        searched=tuple(judge(searched)),
        ceiling=ceiling,
        has_no_verdict=has_no_verdict,
    )


def _judge_jointly(
    name: str, formula: Formula, pool: MeasuredPool, truths: Sequence[Truth], *, seed: int
) -> list[JointVerdict]:
    """The verdicts on the formula and the baselines over all truths together; none with a single truth."""
    if len(truths) < 2:
        return []
    scores = pool.table.scores(formula)
    baselines = {one: np.array([values]) for one, values in pool.baselines.items()}
    tables = with_unique_titles(
        [
            ScoredTable(
                title=truth.name,
                topologies=tuple(pool.topologies[place] for place in truth.places),
                accuracies=truth.accuracy.tolist(),
                scores={one: values[:, truth.places].tolist() for one, values in {name: scores, **baselines}.items()},
                sizes=baselines["params"][0, truth.places].tolist(),
            )
            for truth in truths
        ]
    )
    return [
        row
        for question in QUESTIONS
        for row in judge_jointly(
            tables, baselines=BASELINES, resamples=RESAMPLES, confidence=CONFIDENCE, seed=seed, question=question
        )
    ]


def interval_text(interval: Interval, *, digits: int = 3) -> str:
    """Format a value with its interval: `0.820 [0.76, 0.86]`."""
    if interval.value is None:
        return "undefined"
    bounds = "" if interval.low is None or interval.high is None else f" [{interval.low:.2f}, {interval.high:.2f}]"
    return f"{interval.value:.{digits}f}{bounds}"


def _truth(truth: GroundTruth, places: dict[str, int]) -> Truth:
    kept = [
        (places[topology], accuracy)
        for topology, accuracy in zip(truth.topologies, truth.accuracies, strict=True)
        if topology in places
    ]
    return Truth(
        name=truth.title,
        places=np.array([place for place, _ in kept], dtype=np.intp),
        accuracy=np.array([accuracy for _, accuracy in kept]),
    )


def _verdict_on(name: str, rows: Sequence[Verdict]) -> Verdict:
    return next(row for row in rows if row.proxy == name)


def _row(verdict: Verdict) -> dict[str, Any]:
    return {**verdict.model_dump(mode="json"), "beats": list(verdict.beaten)}
