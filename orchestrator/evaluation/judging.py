"""Judges training-free scores: how well each ranks topologies, with intervals and compared with baselines."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.rank_statistics import (
    TOP_FRACTION,
    Vector,
    Weights,
    kendall_tau,
    like_sized,
    partial_tau,
    regret,
    resample_weights,
    spearman_rho,
    top_recall,
)
from orchestrator.evaluation.step_down import shown_above_zero
from orchestrator.evaluation.verdict import UNDEFINED, Interval, SameSize, Verdict

MIN_POINTS = 4
"""Minimum number of topologies for meaningful statistics."""

MIN_FOR_INTERVAL = 8
"""With fewer topologies, resampling gives intervals that are too narrow, and even of zero width; so none is given."""

MIN_PAIRS = 10
"""Minimum number of pairs of like size for a tau over them."""

SIZES = ("params", "flops")
"""Baselines that measure the size of a topology."""

_MARK_RESAMPLES = 20_000
"""Resamples that decide about marks; more would need much memory and change nothing."""

CONTROL = "params"
"""The score that partial tau holds fixed."""

Direction = Literal["maximize", "minimize"]
Mask = NDArray[np.bool_]


def judge_proxies(
    scores: Mapping[str, Sequence[Sequence[float]]],
    accuracy: Sequence[float],
    *,
    directions: Mapping[str, Direction],
    baselines: Sequence[str],
    resamples: int,
    confidence: float,
    seed: int,
) -> list[Verdict]:
    """Judge every proxy on the same topologies. Proxies are sorted by tau, best first, undefined last.

    Topologies are resampled with replacement, identically for every proxy, so that differences are paired. A topology
    is excluded from the statistics of a proxy if the score of any seed is not finite. A difference uses the topologies
    that both proxies scored.

    Whether taus and differences are shown to be above zero is decided for all proxies together
    (`step_down.shown_above_zero`), with the error level of one end of the intervals, `(1 - confidence) / 2`: with a
    single comparison, a mark is what the interval shows.

    Args:
        scores: For each proxy and seed, one score per topology. A failed score is not finite.
        accuracy: Accuracy of each topology, in any unit. Topologies with a non-finite accuracy are excluded.
        directions: The better direction of each proxy. A minimised score is negated before ranking.
        baselines: Proxies to compare the others with; keys of `scores`.
        resamples: Number of bootstrap resamples.
        confidence: Confidence level of the intervals, such as 0.95.
        seed: Seed of the resampling.

    Raises:
        ValueError: A baseline or a direction is missing, or a seed does not have one score per topology.

    Source: Kendall 1945 (tau-b); Efron 1979 (bootstrap, percentile interval); Romano & Wolf 2005 (marks).
    """
    truth = np.asarray(accuracy, dtype=float)
    if missing := [name for name in baselines if name not in scores]:
        raise ValueError(f"every baseline must have scores, but {missing} have none. Choose from {list(scores)}.")
    if missing := [name for name in scores if name not in directions]:
        raise ValueError(f"every proxy must have a direction, but {missing} have none. Add them to `directions`.")
    known = np.isfinite(truth)
    comparison = _Comparison(
        scored={name: _scored(name, seeds, known, directions[name]) for name, seeds in scores.items()},
        truth=truth[known],
        num_unknown=int((~known).sum()),
        weights=resample_weights(int(known.sum()), resamples=resamples, seed=seed),
        confidence=confidence,
        baselines=tuple(baselines),
    )
    verdicts = comparison.with_marks([comparison.verdict(name) for name in scores])
    return sorted(verdicts, key=lambda row: -math.inf if row.tau.value is None else row.tau.value, reverse=True)


def interval_of(replicates: Vector, confidence: float, num_points: int) -> Interval:
    """The first value with the percentile interval of the others.

    There is no interval with fewer than `MIN_FOR_INTERVAL` points, or if most of the other values are undefined.

    Args:
        replicates: The statistic of the sample and of its resamples, shape (1 + resamples,).
        confidence: Confidence level of the interval.
        num_points: Number of points that were resampled.
    """
    value, resampled = float(replicates[0]), replicates[1:]
    if math.isnan(value):
        return UNDEFINED
    usable = resampled[~np.isnan(resampled)]
    if num_points < MIN_FOR_INTERVAL or len(usable) < 20 or 2 * len(usable) < len(resampled):
        return Interval(value=value, low=None, high=None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(usable, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))


# --- verdicts on single proxies ---


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The scores of a proxy for the topologies with an accuracy, oriented so that higher is better."""

    seeds: NDArray[np.float64]
    """Shape (S, n); a single row if all seeds agree."""
    finite: Mask
    """Mask of the topologies with a finite score for every seed, shape (n,)."""
    num_seeds: int
    num_dropped_seeds: int
    """Number of seeds that scored fewer than `MIN_POINTS` topologies, while others scored enough."""


def _scored(name: str, seeds: Sequence[Sequence[float]], known: Mask, direction: Direction) -> _Scored:
    if wrong := [len(row) for row in seeds if len(row) != len(known)]:
        raise ValueError(
            f"{name} must have one score per topology, {len(known)}, for every seed, but got {wrong[0]}. Score all "
            "topologies."
        )
    table = np.array([list(row) for row in seeds], dtype=float).reshape(len(seeds), len(known))[:, known]
    table = table if direction == "maximize" else -table
    worked = np.isfinite(table).sum(1) >= MIN_POINTS
    rows = table[worked] if worked.any() else table
    finite = np.isfinite(rows).all(0) if len(rows) else np.zeros(table.shape[1], dtype=bool)
    exact = bool((rows[:, finite] == rows[:1, finite]).all())
    return _Scored(
        seeds=rows[:1] if exact else rows,
        finite=finite,
        num_seeds=len(rows),
        num_dropped_seeds=len(table) - len(rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """All proxies on the same resamples."""

    scored: Mapping[str, _Scored]
    truth: Vector
    num_unknown: int
    """Number of topologies without an accuracy, which are excluded."""
    weights: Weights
    """Shape (1 + resamples, n); the first row is the sample itself."""
    confidence: float
    baselines: tuple[str, ...]
    kept: dict[str, dict[bytes, NDArray[np.float64]]] = field(default_factory=dict)
    """Cached taus by proxy and topologies. Only those of baselines are kept after the verdict."""
    compared: dict[tuple[str, str | None], Vector] = field(default_factory=dict)
    """Replicates of every tau, and of every difference to a baseline, for the marks."""

    def verdict(self, name: str) -> Verdict:
        mine = self.scored[name]
        count, notes = int(mine.finite.sum()), _notes(mine, self.truth, self.num_unknown)
        controlled = name != CONTROL and CONTROL in self.scored
        facts = {"proxy": name, "num_topologies": count, "num_seeds": mine.num_seeds}
        others = [baseline for baseline in self.baselines if baseline != name]
        if count < MIN_POINTS:
            return Verdict(
                **facts,
                **dict.fromkeys(("tau", "spearman", "top_recall", "regret"), UNDEFINED),
                partial_tau=UNDEFINED if controlled else None,
                minus=dict.fromkeys(others, UNDEFINED),
                seed_spread=None,
                note="; ".join(notes),
            )
        weights, truth, rows = self.weights[:, mine.finite], self.truth[mine.finite], mine.seeds[:, mine.finite]
        taus = self._taus(name, mine.finite)
        once, tau = taus[:, 0], self._interval(taus, count)
        self._keep(name, None, taus.mean(0), count)
        partial = self._partial(name) if controlled else None
        if partial is not None and partial.value is None and tau.value is not None:
            notes.append(f"no tau given {CONTROL}: {self._partial_tau_problem(name)}")
        if (abs(once) > _PERFECT).all():
            notes.append("a perfect ranking: resampling cannot show its uncertainty")
            tau = Interval(value=tau.value, low=None, high=None)
        verdict = Verdict(
            **facts,
            tau=tau,
            spearman=self._interval([spearman_rho(weights, row, truth) for row in rows], count),
            top_recall=self._interval([top_recall(weights, row, truth) for row in rows], count),
            regret=self._interval([regret(weights, row, truth) for row in rows], count),
            partial_tau=partial,
            minus={baseline: self._difference(name, baseline) for baseline in others},
            same_size={size: self._same_size(name, size) for size in SIZES if size in self.scored},
            seed_spread=float(once.std(ddof=1)) if len(once) > 1 and np.isfinite(once).all() else None,
            note="; ".join(notes) or None,
        )
        if name not in (*self.baselines, CONTROL):
            self.kept.pop(name)
        return verdict

    def with_marks(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Add what is shown to be above zero, over all scores and baselines together."""
        if not self.compared:
            return list(verdicts)
        keys = list(self.compared)
        shown = shown_above_zero(np.stack([self.compared[key] for key in keys]), level=(1 - self.confidence) / 2)
        marks = {key for key, mark in zip(keys, shown.tolist(), strict=True) if mark}
        names = [name for name, baseline in keys if baseline is None]
        negated = np.stack([-self.compared[name, None] for name in names])
        shown = shown_above_zero(negated, level=(1 - self.confidence) / 2)
        below = {name for name, mark in zip(names, shown.tolist(), strict=True) if mark}
        return [self._with_mark(row, marks).model_copy(update={"below_zero": row.proxy in below}) for row in verdicts]

    def _with_mark(self, row: Verdict, marks: Collection[tuple[str, str | None]]) -> Verdict:
        above = (row.proxy, None) in marks
        better = [name for name, gap in row.minus.items() if (gap.low or 0) > 0]
        note = row.note
        if better and not above:
            caveat = f"its tau may be 0 or less: the baselines that it seems to beat ({', '.join(better)}) rank worse"
            note = "; ".join(filter(None, (note, caveat)))
        beaten = tuple(name for name in row.minus if above and (row.proxy, name) in marks)
        return row.model_copy(update={"above_zero": above, "beaten": beaten, "note": note})

    def _keep(self, name: str, baseline: str | None, replicates: Vector, num_points: int) -> None:
        """Keep the replicates of a tau, or of a difference to a baseline, for the marks."""
        if num_points >= MIN_FOR_INTERVAL:
            self.compared[(name, baseline)] = replicates[: 1 + _MARK_RESAMPLES].copy()

    def _interval(self, replicates: Sequence[Vector] | NDArray[np.float64], num_points: int) -> Interval:
        """Interval of the mean over the seeds, from shape (S, 1 + resamples)."""
        return interval_of(np.mean(replicates, axis=0), self.confidence, num_points)

    def _same_size(self, name: str, size: str) -> SameSize:
        """Tau over the pairs of topologies with about the same parameters or operations."""
        both = self._both(name, size)
        pairs = like_sized(np.abs(self.scored[size].seeds[0, both]))
        count = int(pairs.sum()) // 2
        if both.sum() < MIN_POINTS or count < MIN_PAIRS:
            return SameSize(tau=UNDEFINED, num_pairs=count)
        weights, truth = self.weights[:, both], self.truth[both]
        rows = self.scored[name].seeds[:, both]
        taus = [kendall_tau(weights, row, truth, pairs=pairs) for row in rows]
        return SameSize(tau=self._interval(taus, int(both.sum())), num_pairs=count)

    def _taus(self, name: str, mask: Mask) -> NDArray[np.float64]:
        """Taus for each seed and resample on the topologies of a mask, shape (S, 1 + resamples)."""
        kept, key = self.kept.setdefault(name, {}), mask.tobytes()
        if key not in kept:
            weights, truth = self.weights[:, mask], self.truth[mask]
            kept[key] = np.stack([kendall_tau(weights, row, truth) for row in self.scored[name].seeds[:, mask]])
        return kept[key]

    def _both(self, name: str, other: str) -> Mask:
        return self.scored[name].finite & self.scored[other].finite

    def _difference(self, name: str, baseline: str) -> Interval:
        both = self._both(name, baseline)
        if both.sum() < MIN_POINTS:
            return UNDEFINED
        gap = self._taus(name, both).mean(0) - self._taus(baseline, both).mean(0)
        self._keep(name, baseline, gap, int(both.sum()))
        return interval_of(gap, self.confidence, int(both.sum()))

    def _partial(self, name: str) -> Interval:
        """Partial tau given the scores of the control's first seed."""
        both = self._both(name, CONTROL)
        if both.sum() < MIN_POINTS:
            return UNDEFINED
        weights, control = self.weights[:, both], self.scored[CONTROL].seeds[0, both]
        rows = zip(self._taus(name, both), self.scored[name].seeds[:, both], strict=True)
        truth_and_control = self._taus(CONTROL, both)[0]
        return self._interval(
            [partial_tau(taus, kendall_tau(weights, row, control), truth_and_control) for taus, row in rows],
            int(both.sum()),
        )

    def _partial_tau_problem(self, name: str) -> str:
        both = self._both(name, CONTROL)
        if both.sum() < MIN_POINTS:
            return f"only {int(both.sum())} topologies have both scores"
        if _constant(self.scored[CONTROL].seeds[0, both]):
            return f"{CONTROL} is the same for every topology"
        if abs(self._taus(CONTROL, both)[0, 0]) > _PERFECT:
            return f"{CONTROL} alone ranks exactly like the accuracy"
        return f"it ranks exactly like {CONTROL}"


_PERFECT = 1 - 1e-9


def _constant(values: Vector) -> bool:
    return len(np.unique(values)) == 1


def _notes(scored: _Scored, known_truth: Vector, num_unknown: int) -> list[str]:
    """Notes on the numbers of a proxy, most important first."""
    truth, rows = known_truth[scored.finite], scored.seeds[:, scored.finite]
    count, failed = len(truth), len(known_truth) - len(truth)
    notes = []
    if count < MIN_POINTS:
        notes.append(f"needs at least {MIN_POINTS} scored topologies, but there are {count}")
    elif _constant(truth):
        notes.append("every topology reached the same accuracy")
    elif any(_constant(row) for row in rows):
        notes.append("the score is the same for every topology" + (" with some seed" if len(rows) > 1 else ""))
    for number, what in ((failed, "finite score"), (num_unknown, "accuracy")):
        if number:
            verb = "topology has no {} and is" if number == 1 else "topologies have no {} and are"
            notes.append(f"{number} {verb.format(what)} excluded")
    if scored.num_dropped_seeds:
        notes.append(f"{scored.num_dropped_seeds} of its seeds scored too few topologies to count")
    if MIN_POINTS <= count < 1 / TOP_FRACTION:
        notes.append(f"the top decile of {count} topologies is a single topology")
    if MIN_POINTS <= count < MIN_FOR_INTERVAL:
        notes.append(f"no intervals and no marks: they need at least {MIN_FOR_INTERVAL} topologies")
    return notes
