"""A complete discovery: measure statistics, split the topologies in halves, search, and judge the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.discovery.block_tables import StatisticsFiles, join_tables, measure_topologies
from orchestrator.discovery.evolution import Discovery, SearchSettings, judge_formulas, search
from orchestrator.discovery.objective import BlockTable, Truth, split_topologies
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.verdict import Interval, Verdict
from plugins import registry

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


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The results of a discovery, for display and saving."""

    name: str
    seed: int
    discovery: Discovery
    verdicts: tuple[TruthVerdicts, ...]

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
            minus = ", ".join(f"minus {name} {interval_text(one)}" for name, one in held_out.minus.items())
            lines += [
                f"{truth.title}, {held_out.num_topologies} held out: tau {interval_text(held_out.tau)}, {minus}",
                f"{truth.title}, {searched.num_topologies} used for the search: tau {interval_text(searched.tau)} "
                "(optimistic)",
            ]
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
                {"size": one.formula.size, "objective_searched": one.tau, "formula": str(one.formula)}
                for one in found.front
            ],
            "truths": [
                {
                    "title": truth.title,
                    "held_out": [_row(row) for row in truth.held_out],
                    "searched": [_row(row) for row in truth.searched],
                }
                for truth in self.verdicts
            ],
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
        truths=tuple(_truth(truth, places) for truth in truths),
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
    halves = [truth.within(searched) for truth in pool.truths]
    discovery = search(
        pool.table.only(searched),
        [Truth(name=half.name, places=place[half.places], accuracy=half.accuracy) for half in halves],
        settings,
        seed=seed,
        should_stop=should_stop,
        on_progress=on_progress,
    )
    if discovery is None:
        return None

    def verdicts(truth: Truth) -> tuple[Verdict, ...]:
        return tuple(
            judge_formulas(
                {name: discovery.formula},
                pool.table,
                truth,
                pool.baselines,
                resamples=RESAMPLES,
                confidence=CONFIDENCE,
                seed=seed,
            )
        )

    return Findings(
        name=name,
        seed=seed,
        discovery=discovery,
        verdicts=tuple(
            TruthVerdicts(title=truth.name, held_out=verdicts(truth.within(~searched)), searched=verdicts(half))
            for truth, half in zip(pool.truths, halves, strict=True)
        ),
    )


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
