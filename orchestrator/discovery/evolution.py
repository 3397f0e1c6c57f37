"""Evolutionary search for formulas (`plugins.proxies.formulas`) that rank topologies like their accuracies.

Source: Wei et al. 2024 (Auto-Prox, algorithm 1), arXiv:2312.09059. Differences: the sign is part of the formula,
crossover is used in addition to mutation, the initial population includes the best single statistics, and a shorter
formula is preferred unless a longer one is better by more than the margin.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.discovery.objective import BlockTable, FormulaObjective, Truth
from orchestrator.evaluation.judging import Direction, judge_proxies
from orchestrator.evaluation.verdict import Verdict
from plugins.proxies.formula_variation import MIN_SIZE, Variation
from plugins.proxies.formulas import MAX_SIZE, Formula

MIN_TOPOLOGIES = 8
"""Minimum number of topologies to search on one half and judge on the other."""
_PROGRESS_EVERY = 250
"""Number of iterations between two progress reports."""


class SearchSettings(BaseModel):
    """Settings of the search for formulas."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    iterations: int = Field(default=20_000, ge=1, description="number of formulas to try")
    population_size: int = Field(default=100, ge=2, description="number of formulas in the population")
    tournament: float = Field(default=0.2, gt=0, le=1, description="fraction of the population in a tournament")
    top: int = Field(default=5, ge=1, description="number of best formulas of a tournament that may be parents")
    crossover: float = Field(default=0.3, ge=0, le=1, description="fraction of children with two parents")
    attempts: int = Field(default=10, ge=1, description="maximum number of children per parent until one is better")
    margin: float = Field(default=0.02, ge=0, description="objective by which a child must be better than its parent")
    max_size: int = Field(default=15, ge=MIN_SIZE, le=MAX_SIZE, description="maximum size of a formula")


class Judged(NamedTuple):
    """A formula with its better sign."""

    objective: float
    """Objective of the formula; -inf if it is undefined."""
    formula: Formula


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """The result of a search."""

    formula: Formula
    """The shortest formula with an objective within the margin of the best."""
    objective: float
    """Objective (`objective.joint_objective`) on the half used for the search. It is optimistic, since the search
    maximised it."""
    front: tuple[Judged, ...]
    """Formulas that are better than every shorter one, shortest first."""
    iterations: int
    num_formulas: int
    """Number of distinct formulas that were evaluated."""
    interrupted: bool


class _Archive:
    """All formulas that were tried."""

    def __init__(self, objective: FormulaObjective) -> None:
        self._objective = objective
        self.tried: dict[Formula, Judged] = {}
        """Results by formula without sign."""
        self._best_by_size: dict[int, Judged] = {}

    @property
    def best(self) -> float:
        """The highest objective so far, -inf at the start."""
        return max((one.objective for one in self._best_by_size.values()), default=-np.inf)

    def judge(self, formula: Formula) -> Judged:
        """Evaluate a formula and choose its better sign."""
        formula = replace(formula, negated=False)
        if formula not in self.tried:
            plain, negated = self._objective(formula)
            judged = (
                Judged(max(plain, negated), replace(formula, negated=negated > plain))
                if np.isfinite(plain)
                else Judged(-np.inf, formula)
            )
            self.tried[formula] = judged
            known = self._best_by_size.get(formula.size)
            if judged.objective > (-np.inf if known is None else known.objective):
                self._best_by_size[formula.size] = judged
        return self.tried[formula]

    def front(self) -> list[Judged]:
        """Formulas that are better than every shorter one, shortest first."""
        kept: list[Judged] = []
        for _, one in sorted(self._best_by_size.items()):
            if not kept or one.objective > kept[-1].objective:
                kept.append(one)
        return kept


def search(
    table: BlockTable,
    truths: Sequence[Truth],
    settings: SearchSettings,
    *,
    seed: int,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Discovery | None:
    """Evolve formulas whose scores rank the topologies of every truth like its accuracies.

    First, the means of single statistics are tried. The best of these and random formulas form the population. A child
    replaces the worst formula if it is better than its parent by the margin. Otherwise, the parent has another child,
    up to a number of attempts. Better means a higher mean and worst difference of tau from the strongest baseline of
    each truth (`FormulaObjective`); with a single truth, a higher tau.

    Args:
        table: Statistics of the topologies to search on.
        truths: At least one truth about topologies of the table.
        settings: Settings of the search.
        seed: Seed of the search. The same seed, table and truths give the same formula.
        should_stop: Called before each iteration. If it returns True, the search ends with the best formula so far.
        on_progress: Called from time to time with the number of finished iterations and the best objective.

    Returns:
        The result, or `None` if no formula was evaluated before the search was stopped.
    """
    rng = random.Random(f"formulas {seed}")
    archive = _Archive(FormulaObjective(table, truths))
    statistics = table.useful_statistics()
    variation = Variation(statistics=statistics, max_size=settings.max_size)
    done = 0

    def start_iteration() -> bool:
        nonlocal done
        if done >= settings.iterations or (should_stop is not None and should_stop()):
            return False
        done += 1
        if on_progress is not None and (done % _PROGRESS_EVERY == 0 or done == settings.iterations):
            on_progress(done, archive.best)
        return True

    singles = [archive.judge(Formula(one)) for one in statistics if start_iteration()]
    population = heapq.nlargest(settings.population_size // 2, singles, key=lambda one: one.objective)
    population = [one for one in population if one.objective > -np.inf]
    while statistics and len(population) < settings.population_size and start_iteration():
        judged = archive.judge(variation.sample(rng))
        if judged.objective > -np.inf and judged not in population:
            population.append(judged)
    running = bool(population)
    while running:
        parent, other = _parents(population, settings, rng)
        for _ in range(settings.attempts):
            running = start_iteration()
            if not running:
                break
            mixed = rng.random() < settings.crossover
            child = archive.judge(
                variation.crossover(parent.formula, other.formula, rng)
                if mixed
                else variation.mutate(parent.formula, rng)
            )
            if child.objective >= parent.objective + settings.margin and child not in population:
                population.append(child)
                population.remove(min(population, key=lambda one: one.objective))
                break
    front = archive.front()
    if not front:
        return None
    chosen = next(one for one in front if one.objective >= archive.best - settings.margin)
    return Discovery(
        formula=chosen.formula,
        objective=chosen.objective,
        front=tuple(front),
        iterations=done,
        num_formulas=len(archive.tried),
        interrupted=done < settings.iterations,
    )


def judge_formulas(
    formulas: Mapping[str, Formula],
    table: BlockTable,
    truth: Truth,
    baselines: Mapping[str, Sequence[float]],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[Verdict]:
    """Judge formulas and baselines on the topologies of one truth.

    Args:
        formulas: Formulas by name.
        table: The statistics.
        truth: The topologies and their accuracies.
        baselines: By name, the score of each topology of the table; higher is better.
        resamples: Number of bootstrap resamples.
        confidence: Confidence level of the intervals.
        seed: Seed of the resampling.
    """
    scores = {name: [[values[place] for place in truth.places]] for name, values in baselines.items()}
    for name, formula in formulas.items():
        scores[name] = table.scores(formula)[:, truth.places].tolist()
    directions: dict[str, Direction] = dict.fromkeys(scores, "maximize")
    return judge_proxies(
        scores,
        truth.accuracy.tolist(),
        directions=directions,
        baselines=tuple(baselines),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )


def _parents(population: Sequence[Judged], settings: SearchSettings, rng: random.Random) -> tuple[Judged, Judged]:
    """Draw two of the best formulas of a tournament, possibly the same one twice."""
    size = max(1, round(settings.tournament * len(population)))
    best = sorted(rng.sample(population, size), key=lambda one: one.objective, reverse=True)[: settings.top]
    return rng.choice(best), rng.choice(best)
