"""Ranks screened topologies by the sum of their ranks under several proxies."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from orchestrator.spec.proxy_choices import is_pool_proxy, parts_of, pool_scores
from orchestrator.store.records import TrialRecord
from search_spaces.recipes import PluginChoice


class Ranked(NamedTuple):
    """A screened topology with its rank sum."""

    topology: str
    rank_sum: int
    """Sum of the topology's dense ranks over the proxies; the best rank is 0, lower is better."""
    trial: TrialRecord


def rank_topologies(
    trials: Sequence[TrialRecord], directions: Mapping[str, Literal["maximize", "minimize"]]
) -> list[Ranked]:
    """Screened topologies, best first; ties keep the order of the trials.

    Source: the rank sum of As-ViT's auto-scaling (Chen et al. 2022, arXiv:2202.11921), generalised to any proxies.
    """
    sums = rank_sums([trial.metrics for trial in trials], directions)
    ranked = [Ranked(trial.details["topology"], total, trial) for trial, total in zip(trials, sums, strict=True)]
    return sorted(ranked, key=lambda row: (row.rank_sum, row.trial.number))


def add_pool_scores(trials: Sequence[TrialRecord], proxies: Sequence[PluginChoice]) -> list[TrialRecord]:
    """Add the values of the pool proxies, computed over all trials, to the metrics of the trials."""
    added: list[dict[str, float]] = [{} for _ in trials]
    for choice in proxies:
        if is_pool_proxy(choice.name):
            scores = {part: [trial.metrics[part] for trial in trials] for part in parts_of(choice.name)}
            for metrics, value in zip(added, pool_scores(choice, scores), strict=True):
                metrics[choice.name] = value
    return [
        trial.model_copy(update={"metrics": trial.metrics | metrics})
        for trial, metrics in zip(trials, added, strict=True)
    ]


def rank_sums(
    scores: Sequence[Mapping[str, float]], directions: Mapping[str, Literal["maximize", "minimize"]]
) -> list[int]:
    """Sum of each row's dense ranks over the proxies; rows with equal scores share a rank."""
    totals = [0] * len(scores)
    for proxy, direction in directions.items():
        values = sorted({row[proxy] for row in scores}, reverse=direction == "maximize")
        rank = {value: place for place, value in enumerate(values)}
        for index, row in enumerate(scores):
            totals[index] += rank[row[proxy]]
    return totals


def choose_candidates(ranked: Sequence[str], *, best: int, spread: int) -> list[str]:
    """The first `best` topologies, and `spread` more, spaced evenly over the rest of the ranking including its end."""
    chosen = list(ranked[:best])
    rest = ranked[best:]
    count = min(spread, len(rest))
    for place in range(count):
        chosen.append(rest[round((place + 1) * len(rest) / count) - 1])
    return chosen
