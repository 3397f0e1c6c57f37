"""Scores the topologies of ground truths, one trial per topology and seed; stored scores are reused."""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.engines.interfaces import Search, Suggestion
from orchestrator.engines.seeds import seed_for
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.repeated_truths import accuracies_digest
from orchestrator.spec.proxy_choices import (
    fitted_to,
    is_random,
    is_training_proxy,
    orient,
    parts_of,
    pool_scores,
    scored_choices,
)
from orchestrator.stages.context import StageContext
from orchestrator.stages.searching import run_search
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Point
from search_spaces.recipes import PluginChoice
from trainers.config import ScoreTask

Seeds = list[list[float]]
"""For each seed, one score per topology; nan if there is no score."""


@dataclass(frozen=True, kw_only=True)
class ScoredTruth:
    """A ground truth with the scores of its topologies."""

    truth: GroundTruth
    choices: tuple[PluginChoice, ...]
    """The proxies that were scored for each topology."""
    scores: Mapping[str, Seeds]
    """Scores by proxy; an exact proxy has one seed."""
    reasons: Mapping[str, Mapping[str, int]]
    """Reasons for missing scores by proxy, each with its count."""
    wall_time_s: Mapping[str, float]
    """Mean seconds per topology and seed, by proxy; a pass that several proxies share counts for the first of them."""
    training_macs: Mapping[str, float]
    """For each proxy that trains for a few steps, the mean multiply-accumulates per topology and seed."""

    @property
    def num_seeds(self) -> int:
        return max(len(seeds) for seeds in self.scores.values())

    def of_seed(self, index: int) -> dict[str, list[float]]:
        """Every proxy's scores with one seed; those of an exact proxy are the same for all seeds."""
        return {name: seeds[min(index, len(seeds) - 1)] for name, seeds in self.scores.items()}

    def oriented(self, index: int) -> dict[str, list[float]]:
        """Like `of_seed`, with signs changed if necessary so that higher is better."""
        return {name: orient(name, scores) for name, scores in self.of_seed(index).items()}

    def training_free(self, index: int) -> dict[str, list[float]]:
        """Like `oriented`, without the proxies that train for a few steps or were fitted to these accuracies."""
        left_out = {name for name in self.scores if is_training_proxy(name) or self.has_seen(name)}
        return {name: scores for name, scores in self.oriented(index).items() if name not in left_out}

    def has_seen(self, name: str) -> bool:
        """Whether a proxy was fitted to these accuracies, so that it cannot be judged by them."""
        return accuracies_digest(self.truth.by_topology) in fitted_to(name)

    def macs_of(self, name: str) -> float | None:
        """Mean multiply-accumulates of training per topology and seed; `None` for a training-free score.

        A pool proxy has those of its parts. A proxy that trains, but failed on every topology, has 0.
        """
        trained = [part for part in (name, *parts_of(name)) if is_training_proxy(part)]
        return sum(self.training_macs[part] for part in trained) if trained else None

    def of_pool(self, choice: PluginChoice) -> Seeds:
        """A pool proxy's values over all topologies, for each seed."""
        return [pool_scores(choice, self.of_seed(index)) for index in range(self.num_seeds)]


def score_truths(
    context: StageContext,
    truths: Sequence[GroundTruth],
    choices: Sequence[PluginChoice],
    *,
    base_seed: int,
    num_seeds: int,
    batch_size: int,
) -> list[ScoredTruth]:
    """Score every topology of the truths with every proxy; a pool proxy is replaced by its parts.

    There is one trial per topology and seed. Truths with the same networks and images share trials.

    Args:
        context: The context of the stage.
        truths: The ground truths, at least one.
        choices: The proxies.
        base_seed: The first seed. Further seeds are derived from it; exact proxies are scored with the first seed only.
        num_seeds: Number of seeds.
        batch_size: Number of images per proxy.

    Raises:
        StageInterruptedError: A stop was requested, or the deadline passed before any trial had a result.
        StageFailedError: No topology could be scored with any proxy.
    """
    scored = context.as_begun(scored_choices(choices))
    random = tuple(choice for choice in scored if is_random(choice.name))
    seeds = range(num_seeds if random else 1)
    scenes = [_scene(truths, index) for index in range(len(truths))]
    points: dict[_Key, Point] = {
        _Key(scene, topology, index): {"truth": scene, "topology": topology, "seed": index}
        for index in seeds
        for scene, truth in zip(scenes, truths, strict=True)
        for topology in truth.topologies
    }

    def make_task(trial: TrialRecord) -> ScoreTask:
        key = _key(trial.point)
        truth = truths[key.scene]
        return ScoreTask(
            data=truth.data,
            topology=key.topology,
            proxies=scored if key.seed == 0 else random,
            batch_size=batch_size,
            seed=base_seed if key.seed == 0 else seed_for(base_seed, key.seed),
            num_classes=truth.task.num_classes,
            need_all=False,
            verify=key.seed == 0 and key.topology == truth.topologies[0],
        )

    begun = {_key(trial.point) for trial in context.store.trials(context.stage.id)}
    missing = [point for key, point in points.items() if key not in begun]
    search = Search(
        num_trials=len(begun) + len(missing), objectives=(), suggester=_OneByOne(missing), make_task=make_task
    )
    run_search(context, search)
    trials = {_key(trial.point): trial for trial in context.store.trials(context.stage.id)}
    return [
        _collect(truth, [[trials.get(_Key(scene, one, index)) for one in truth.topologies] for index in seeds], scored)
        for truth, scene in zip(truths, scenes, strict=True)
    ]


class _Key(NamedTuple):
    """Identifies the scores of a trial."""

    scene: int
    """Index of the first truth with the same networks and images."""
    topology: str
    seed: int
    """Index of the seed, starting at 0."""


class _OneByOne:
    """Suggests the given points in order and ignores results."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = deque(points)

    @property
    def shortage(self) -> str | None:
        """`None`, because every point is suggested."""
        return None

    def ask(self, number: int) -> Suggestion | None:  # noqa: ARG002 - the points are in the order of trial numbers
        return Suggestion(self._points.popleft(), {}) if self._points else None

    def expect(self, trial: TrialRecord) -> None: ...

    def tell(self, trial: TrialRecord) -> None: ...


def _scene(truths: Sequence[GroundTruth], index: int) -> int:
    """Index of the first truth with the same networks and images as the truth at `index`."""
    mine = truths[index]
    return next(at for at, truth in enumerate(truths) if (truth.data, truth.task) == (mine.data, mine.task))


def _key(point: Point) -> _Key:
    return _Key(int(str(point["truth"])), str(point["topology"]), int(str(point["seed"])))


def _collect(
    truth: GroundTruth, trials: Sequence[Sequence[TrialRecord | None]], choices: tuple[PluginChoice, ...]
) -> ScoredTruth:
    """Collect the scores of trials, which are given by seed and topology."""
    scores: dict[str, Seeds] = {}
    reasons: dict[str, Counter[str]] = {}
    wall_time_s: dict[str, float] = {}
    training_macs: dict[str, float] = {}
    for name in (choice.name for choice in choices):
        rows = trials if is_random(name) else trials[:1]
        scores[name] = [[_value(trial, name) for trial in row] for row in rows]
        found = [trial for row in rows for trial in row if trial is not None]
        reasons[name] = Counter(_reason(trial, name) for trial in found if name not in trial.metrics)
        seconds = [trial.details["seconds"][name] for trial in found if name in trial.details.get("seconds", {})]
        wall_time_s[name] = sum(seconds) / len(seconds) if seconds else 0.0
        if is_training_proxy(name):
            key = f"{name}.training_macs"
            macs = [trial.metrics[key] for trial in found if key in trial.metrics]
            training_macs[name] = sum(macs) / len(macs) if macs else 0.0
    return ScoredTruth(
        truth=truth,
        choices=choices,
        scores=scores,
        reasons=reasons,
        wall_time_s=wall_time_s,
        training_macs=training_macs,
    )


def _value(trial: TrialRecord | None, name: str) -> float:
    return math.nan if trial is None else trial.metrics.get(name, math.nan)


def _reason(trial: TrialRecord, name: str) -> str:
    failure = trial.details.get("failures", {}).get(name)
    return str(failure["reason"] if failure else trial.reason or trial.state)
