"""Searches formulas (`plugins.proxies.formulas`) that rank topologies as their accuracies do, by evolution.

Source: Wei et al. 2024 (Auto-Prox, algorithm 1), arXiv:2312.09059. Ours has the sign as part of the formula, crossover
beside mutation, starts from the best single statistics too, and prefers a shorter formula to one that is better by no
more than the margin.
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
"""Fewer topologies than this are not enough to search on one half and judge on the other."""
_TOLD_EVERY = 250
"""Iterations between two messages of progress."""


class SearchSettings(BaseModel):
    """How formulas are searched."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    iterations: int = Field(default=20_000, ge=1, description="formulas that are tried")
    population_size: int = Field(default=100, ge=2, description="formulas that are kept")
    tournament: float = Field(default=0.2, gt=0, le=1, description="part of the population that a parent is drawn from")
    top: int = Field(default=5, ge=1, description="the parent is one of so many best of the tournament")
    crossover: float = Field(default=0.3, ge=0, le=1, description="how often a child has two parents")
    attempts: int = Field(default=10, ge=1, description="children of a parent that are tried until one is better")
    margin: float = Field(default=0.02, ge=0, description="tau by which a child must be better than its parent")
    max_size: int = Field(default=15, ge=MIN_SIZE, le=MAX_SIZE, description="most inputs and operations of a formula")


class Judged(NamedTuple):
    """A formula with the sign that is better."""

    tau: float
    """Its objective; -inf where it is not defined."""
    formula: Formula


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a search found."""

    formula: Formula
    """The shortest whose objective is at most the margin below the best."""
    objective: float
    """Of the formula, on the half that was searched on: it was chosen to be high there."""
    front: tuple[Judged, ...]
    """Formulas that are better than every shorter one, shortest first."""
    iterations: int
    num_formulas: int
    """Different formulas that were evaluated."""
    interrupted: bool


class _Archive:
    """Everything that was tried."""

    def __init__(self, objective: FormulaObjective) -> None:
        self._objective = objective
        self.tried: dict[Formula, Judged] = {}
        """By the formula without its sign."""
        self._best_by_size: dict[int, Judged] = {}

    @property
    def best(self) -> float:
        """The highest tau, -inf before any."""
        return max((one.tau for one in self._best_by_size.values()), default=-np.inf)

    def judge(self, formula: Formula) -> Judged:
        """The formula with the sign that is better."""
        formula = replace(formula, negated=False)
        if formula not in self.tried:
            tau = self._objective(formula)
            judged = (
                Judged(abs(tau), replace(formula, negated=tau < 0)) if np.isfinite(tau) else Judged(-np.inf, formula)
            )
            self.tried[formula] = judged
            known = self._best_by_size.get(formula.size)
            if judged.tau > (-np.inf if known is None else known.tau):
                self._best_by_size[formula.size] = judged
        return self.tried[formula]

    def front(self) -> list[Judged]:
        """Those that are better than every shorter one, shortest first."""
        kept: list[Judged] = []
        for _, one in sorted(self._best_by_size.items()):
            if not kept or one.tau > kept[-1].tau:
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
    """Evolve formulas whose scores rank the topologies of every truth as its accuracies do.

    The means of single statistics are tried first; the best of them and random formulas are the population. A child
    takes the place of the worst if it is better than its parent by the margin; otherwise the parent has another child,
    up to a number of attempts.

    Args:
        table: Statistics of the topologies to search on.
        truths: Accuracies of topologies of the table, at least one.
        settings: Of the search.
        seed: The same seed, table and truths find the same formula.
        should_stop: Asked before each iteration; the best so far is returned.
        on_progress: Told the iterations done and the best objective, now and then.

    Returns:
        `None` if no formula could be evaluated before it was stopped.
    """
    rng = random.Random(f"formulas {seed}")
    archive = _Archive(FormulaObjective(table, truths))
    statistics = table.useful_statistics()
    variation = Variation(statistics=statistics, max_size=settings.max_size)
    done = 0

    def another() -> bool:
        nonlocal done
        if done >= settings.iterations or (should_stop is not None and should_stop()):
            return False
        done += 1
        if on_progress is not None and (done % _TOLD_EVERY == 0 or done == settings.iterations):
            on_progress(done, archive.best)
        return True

    singles = [archive.judge(Formula(one)) for one in statistics if another()]
    population = heapq.nlargest(settings.population_size // 2, singles, key=lambda one: one.tau)
    population = [one for one in population if one.tau > -np.inf]
    while statistics and len(population) < settings.population_size and another():
        judged = archive.judge(variation.sample(rng))
        if judged.tau > -np.inf and judged not in population:
            population.append(judged)
    goes_on = bool(population)
    while goes_on:
        parent, other = _parents(population, settings, rng)
        for _ in range(settings.attempts):
            goes_on = another()
            if not goes_on:
                break
            mixed = rng.random() < settings.crossover
            child = archive.judge(
                variation.crossover(parent.formula, other.formula, rng)
                if mixed
                else variation.mutate(parent.formula, rng)
            )
            if child.tau >= parent.tau + settings.margin and child not in population:
                population.append(child)
                population.remove(min(population, key=lambda one: one.tau))
                break
    front = archive.front()
    if not front:
        return None
    chosen = next(one for one in front if one.tau >= archive.best - settings.margin)
    return Discovery(
        formula=chosen.formula,
        objective=chosen.tau,
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
    """The verdict on formulas and on the baselines beside them, over the topologies of one truth.

    Args:
        formulas: By name.
        table: The statistics.
        truth: Which topologies, and their accuracies.
        baselines: By name, a score of each topology of the table where more is better.
        resamples: Of the intervals.
        confidence: Of the intervals.
        seed: Of the resampling.
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
    """Two random ones of the best of a tournament, which may be the same."""
    size = max(1, round(settings.tournament * len(population)))
    best = sorted(rng.sample(population, size), key=lambda one: one.tau, reverse=True)[: settings.top]
    return rng.choice(best), rng.choice(best)
