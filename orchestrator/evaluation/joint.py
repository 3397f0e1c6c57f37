"""Judges scores on several tables together: space, target and data set may differ from table to table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.judging import MIN_FOR_INTERVAL, MIN_PAIRS, MIN_POINTS, interval_of
from orchestrator.evaluation.rank_statistics import (
    Pairs,
    Vector,
    Weights,
    kendall_tau,
    like_sized,
    resample_weights,
)
from orchestrator.evaluation.step_down import shown_above_zero
from orchestrator.evaluation.verdict import JointVerdict, TableVerdict

Question = Literal["any size", "like size"]
QUESTIONS: tuple[Question, ...] = ("any size", "like size")
Oriented = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class ScoredTable:
    """Topologies with their accuracies and scores."""

    title: str
    """Name for people, which no other table has, such as `c100_kd_acc of pit-cifar100`."""
    topologies: tuple[str, ...]
    """Distinct topologies as `space:text`. Tables with the same topologies are resampled with the same draws."""
    accuracies: Sequence[float]
    """Accuracy of each topology, in any unit, since only the order matters. One that is not finite is left out."""
    scores: Oriented
    """For each score and seed, one value per topology, oriented so that higher is better; not finite if it failed."""
    sizes: Sequence[float] | None = None
    """Parameters (or operations) of each topology, for the question about pairs of like size."""


def with_unique_titles(tables: Sequence[ScoredTable]) -> list[ScoredTable]:
    """The tables; one with the title of an earlier table gets its number: `acc of pit (2)`."""
    titles = [table.title for table in tables]
    return [
        replace(table, title=f"{table.title} ({place})") if table.title in titles[: place - 1] else table
        for place, table in enumerate(tables, start=1)
    ]


def judge_jointly(
    tables: Sequence[ScoredTable],
    *,
    baselines: Sequence[str] = ("params", "flops", "depth"),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    question: Question = "any size",
) -> list[JointVerdict]:
    """Compare every score with the strongest baseline of each table, and take the mean over the tables.

    The strongest baseline of a table is the one with the highest tau there, so that a score must beat another one on
    each table: a fixed rule such as "count parameters" has differences of 0 or less. This is stricter than what a user
    can do, who does not know which baseline is the strongest on their data.

    Topologies are resampled with replacement, with the same draws for all scores and for all tables with the same
    topologies. Tables are not resampled: the intervals say how the result would vary with other topologies of the same
    spaces, not with other data sets.

    Args:
        tables: At least one.
        baselines: Scores to compare with. A table must have at least one of them.
        resamples: Number of bootstrap resamples.
        confidence: Confidence level of the intervals. The marks have the error level `(1 - confidence) / 2` over all
            scores together.
        seed: Seed of the resampling.
        question: `any size` compares all pairs of topologies, `like size` only those whose sizes differ by at most
            10 %: the choice under a limit of parameters.

    Returns:
        One verdict per score, the highest mean difference first. Scores without any table come last.

    Raises:
        ValueError: There is no table, titles repeat, a table has no baseline or lacks `sizes`, or lengths differ.
    """
    _check(tables, baselines, question)
    judged = [
        _Table(table, weights, baselines, question)
        for table, weights in zip(tables, _shared_draws(tables, resamples, seed), strict=True)
    ]
    names = list(dict.fromkeys(name for table in tables for name in table.scores))
    joint = {name: _joint(name, judged, confidence, question) for name in names}
    marks = _marks({name: found for name, (_, found) in joint.items() if name not in baselines}, confidence)
    verdicts = [verdict.model_copy(update={"is_better": name in marks}) for name, (verdict, _) in joint.items()]
    return sorted(
        verdicts,
        key=lambda row: -np.inf if row.mean_difference.value is None else row.mean_difference.value,
        reverse=True,
    )


class _Table:
    """A table with its resamples."""

    def __init__(self, table: ScoredTable, weights: Weights, baselines: Sequence[str], question: Question) -> None:
        self.title = table.title
        truth = np.asarray(table.accuracies, dtype=float)
        self._known = np.isfinite(truth)
        self._truth, self._weights = truth, weights
        self._pairs = None if question == "any size" else like_sized(np.asarray(table.sizes, dtype=float))
        self._scores = {name: np.asarray(seeds, dtype=float) for name, seeds in table.scores.items()}
        everywhere = {name: self.taus(name, self.finite(name))[0] for name in baselines if name in self._scores}
        self.baseline = max(everywhere, key=lambda name: -np.inf if np.isnan(everywhere[name]) else everywhere[name])

    def has(self, name: str) -> bool:
        """Whether the score can be compared on this table."""
        if name not in self._scores:
            return False
        both = self.finite(name) & self.finite(self.baseline)
        return bool(
            both.sum() >= MIN_POINTS
            and (self._pairs is None or self._pairs[np.ix_(both, both)].sum() >= 2 * MIN_PAIRS)
            and np.isfinite(self.taus(name, both)[0] - self.taus(self.baseline, both)[0])
        )

    def finite(self, name: str) -> NDArray[np.bool_]:
        """Topologies with an accuracy and a score for every seed."""
        found: NDArray[np.bool_] = np.isfinite(self._scores[name]).all(0) & self._known
        return found

    def taus(self, name: str, mask: NDArray[np.bool_]) -> Vector:
        """The mean tau over the seeds in the sample and in each resample, shape (1 + resamples,)."""
        pairs: Pairs | None = None if self._pairs is None else self._pairs[np.ix_(mask, mask)]
        weights, truth = self._weights[:, mask], self._truth[mask]
        rows = self._scores[name][:, mask]
        rows = rows[:1] if (rows == rows[:1]).all() else rows
        found: Vector = np.mean([kendall_tau(weights, row, truth, pairs=pairs) for row in rows], axis=0)
        return found

    def compare(self, name: str) -> tuple[int, Vector, Vector]:
        """Number of topologies, and the replicates of tau and of its difference from the strongest baseline."""
        both = self.finite(name) & self.finite(self.baseline)
        taus = self.taus(name, both)
        return int(both.sum()), taus, taus - self.taus(self.baseline, both)


def _joint(
    name: str, tables: Sequence[_Table], confidence: float, question: Question
) -> tuple[JointVerdict, tuple[Vector, Vector, int] | None]:
    """The verdict without its mark, and the replicates of mean tau and mean difference with the fewest topologies."""
    present = [table for table in tables if table.has(name)]
    compared = [table.compare(name) for table in present]
    rows = []
    for table, (count, replicates, differences) in zip(present, compared, strict=True):
        difference = interval_of(differences, confidence, count)
        rows.append(
            TableVerdict(
                table=table.title,
                num_topologies=count,
                baseline=table.baseline,
                tau=interval_of(replicates, confidence, count),
                difference=difference,
                is_better=difference.low is not None and difference.low > 0,
                is_worse=difference.high is not None and difference.high < 0,
            )
        )
    fewest = min((count for count, _, _ in compared), default=0)
    undefined = np.full(2, np.nan)
    taus = np.mean([taus for _, taus, _ in compared], axis=0) if compared else undefined
    gaps = np.mean([gaps for _, _, gaps in compared], axis=0) if compared else undefined
    verdict = JointVerdict(
        proxy=name,
        question=question,
        tables=tuple(rows),
        num_missing=len(tables) - len(present),
        mean_tau=interval_of(taus, confidence, fewest),
        mean_difference=interval_of(gaps, confidence, fewest),
        worst=min(rows, key=lambda row: row.difference.value or 0.0).table if rows else None,
        is_better=False,
        num_beaten=sum(row.is_better for row in rows),
        num_lost=sum(row.is_worse for row in rows),
    )
    return verdict, (taus, gaps, fewest) if compared else None


def _marks(found: Mapping[str, tuple[Vector, Vector, int] | None], confidence: float) -> set[str]:
    """Scores with mean tau and mean difference above zero, all together at one error level."""
    usable = {name: one for name, one in found.items() if one is not None and one[2] >= MIN_FOR_INTERVAL}
    if not usable:
        return set()
    rows = [row for taus, gaps, _ in usable.values() for row in (taus, gaps)]
    shown = shown_above_zero(np.stack(rows), level=(1 - confidence) / 2).tolist()
    return {name for name, *both in zip(usable, shown[::2], shown[1::2], strict=True) if all(both)}


def _shared_draws(tables: Sequence[ScoredTable], resamples: int, seed: int) -> list[Weights]:
    """Resample weights of every table; tables that share topologies, also through a third one, share their draws."""
    groups: list[tuple[set[str], list[int]]] = []
    for index, table in enumerate(tables):
        joined = (set(table.topologies), [index])
        apart = []
        for names, members in groups:
            if names & joined[0]:
                joined = (joined[0] | names, [*members, *joined[1]])
            else:
                apart.append((names, members))
        groups = [*apart, joined]
    found: dict[int, Weights] = {}
    for names, members in sorted(groups, key=lambda group: min(group[1])):
        places = {name: place for place, name in enumerate(sorted(names))}
        own_seed = int(np.random.SeedSequence([seed, min(members)]).generate_state(1)[0])
        weights = resample_weights(len(places), resamples=resamples, seed=own_seed)
        for index in members:
            found[index] = weights[:, [places[name] for name in tables[index].topologies]]
    return [found[index] for index in range(len(tables))]


def _check(tables: Sequence[ScoredTable], baselines: Sequence[str], question: Question) -> None:
    titles = [table.title for table in tables]
    if not tables:
        raise ValueError("a joint verdict needs at least one table, but got none. Give one.")
    if len(set(titles)) < len(titles):
        raise ValueError(f"tables must have different titles, but got {titles}. Give each target once.")
    for table in tables:
        if not any(name in table.scores for name in baselines):
            raise ValueError(
                f"{table.title} must have the scores of one of the baselines {list(baselines)}, but has "
                f"{list(table.scores)}. Score it with one."
            )
        if question == "like size" and table.sizes is None:
            raise ValueError(f"{table.title} needs `sizes` for pairs of like size, but has none. Add them.")
        lengths = {len(table.accuracies), *(len(row) for seeds in table.scores.values() for row in seeds)}
        if lengths | {len(table.sizes) if table.sizes is not None else len(table.topologies)} != {
            len(table.topologies)
        }:
            raise ValueError(
                f"{table.title} must have one accuracy, size and score for each of its {len(table.topologies)} "
                f"topologies, but got {sorted(lengths)}. Give nan for a missing one."
            )
