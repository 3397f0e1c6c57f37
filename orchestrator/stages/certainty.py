"""How likely the best trial of a train stage is really the best, given how few validation images judged it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.engines.seeds import seed_for
from orchestrator.stages.context import StageContext
from orchestrator.stages.kind import StageResult
from orchestrator.stages.retention import kept_checkpoints
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import DecidingMetric
from trainers.config import Configuration

_MAX_TRIALS, _MAX_IMAGES, _NUM_RESAMPLES = 20, 2000, 300
_CLEARLY_WORSE = 6.0
"""Trials that lie this many standard errors of one accuracy behind the best are not compared image by image."""
ConfigurationOf = Callable[[TrialRecord], Configuration]


class RankingCertainty(StageResult):
    """How certain it is which trial is the best."""

    trial: int
    """The trial with the best validation figure."""
    probability: float
    """That it would also be the best on all images like these. Other seeds could still change the order."""
    num_trials: int
    """Trials with a result."""
    num_images: int
    """Validation images that judged them."""
    method: Literal["paired", "counts"]
    """`paired`: the trials were compared image by image; `counts`: as if each had been judged by its own images, which
    understates the certainty."""
    reason: str | None = None
    """Why they were not compared image by image."""


def describe_certainty(certainty: RankingCertainty) -> str:
    """The certainty as a sentence."""
    how = "compared image by image" if certainty.method == "paired" else "from their accuracies alone"
    return (
        f"trial {certainty.trial} is really the best of the {certainty.num_trials} trials with a probability of "
        f"{100 * certainty.probability:.0f} % ({certainty.num_images} validation images, {how})"
    )


def rank_certainty(
    context: StageContext, ordered: Sequence[TrialRecord], configuration_of: ConfigurationOf, *, ranked_by: str
) -> RankingCertainty | None:
    """How certain the ranking of trials is.

    Must be called before checkpoints are deleted.

    Args:
        context: The context of the train stage.
        ordered: Its trials with a result, best first.
        configuration_of: The configuration of a trial.
        ranked_by: The figure by which they are ordered.

    Returns:
        `None` if there is one trial only, or if the metric is not the accuracy and no checkpoint can be read.
    """
    from orchestrator.evaluation.ranking_certainty import covariance_of_counts, probability_of_being_best
    from trainers.data.images import load_images
    from trainers.training.checkpoints import CheckpointError

    if len(ordered) < 2:
        return None
    metric, num_images = context.metric, len(load_images(context.spec.data).validation)
    near = _near(ordered, num_images)
    scores = np.array([metric.score(trial.metrics[ranked_by]) for trial in near])
    method: Literal["paired", "counts"] = "paired"
    reason, covariance = None, None
    try:
        covariance = _paired_covariance(context, near, configuration_of, ranked_by)
    except CheckpointError as error:
        reason = str(error)
    except _OtherWeightsError as error:
        reason = str(error)
    if covariance is None:
        if metric.choice.name != "accuracy":
            return None
        method, near = "counts", list(ordered)
        scores = np.array([trial.metrics[ranked_by] for trial in near])
        covariance = covariance_of_counts(scores, num_images)
    probability = probability_of_being_best(scores, covariance, seed=seed_for(context.seed, "certainty"))
    return RankingCertainty(
        trial=ordered[0].number,
        probability=round(probability, 3),
        num_trials=len(ordered),
        num_images=num_images,
        method=method,
        reason=reason,
    )


class _OtherWeightsError(ValueError):
    """A checkpoint does not have the figure by which its trial was ranked."""


def _near(ordered: Sequence[TrialRecord], num_images: int) -> list[TrialRecord]:
    """The trials that could be the best; the others would only take time."""
    best = ordered[0].metrics["val_accuracy"]
    error = max(best * (1 - best), 1 / num_images) ** 0.5 / num_images**0.5
    near = [trial for trial in ordered if best - trial.metrics["val_accuracy"] <= _CLEARLY_WORSE * error]
    return near[:_MAX_TRIALS]


def _paired_covariance(
    context: StageContext, trials: Sequence[TrialRecord], configuration_of: ConfigurationOf, ranked_by: str
) -> NDArray[np.float64]:
    """Covariance of the errors of the trials' figures, from their predictions for the same images.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        _OtherWeightsError: The weights of a trial are not those that it was ranked by.
    """
    from orchestrator.evaluation.ranking_certainty import covariance_of_hits, smallest_error
    from trainers.data.images import load_images
    from trainers.hardware.devices import computing_in, pick_device
    from trainers.tasks.comparing import evenly_spaced, validation_logits

    data, metric = load_images(context.spec.data), context.metric
    indices = evenly_spaced(len(data.validation), _MAX_IMAGES)
    labels = data.validation.labels[indices]
    models = [(configuration_of(trial), _checkpoint(context, trial, ranked_by)) for trial in trials]
    with computing_in(context.spec.resources.precision):
        logits = validation_logits(models, data, indices, pick_device())
    measure = metric.create().measure
    if len(indices) == len(data.validation):
        for trial, one in zip(trials, logits, strict=True):
            _check(trial, measure(one, labels), trial.metrics[ranked_by], len(labels), metric)
    share = len(indices) / len(data.validation)
    if metric.choice.name == "accuracy":
        hits = np.stack([(one.argmax(1) == labels).numpy() for one in logits], axis=1)
        return covariance_of_hits(hits) * share
    generator = np.random.default_rng(seed_for(context.seed, "resamples"))
    rows = generator.integers(0, len(labels), (_NUM_RESAMPLES, len(labels)))
    values = np.array([[metric.score(measure(one[row], labels[row])) for one in logits] for row in rows])
    found = np.atleast_2d(np.cov(values.T)) * share
    return found + smallest_error(len(trials), len(labels)) if metric.is_fraction else found


def _checkpoint(context: StageContext, trial: TrialRecord, ranked_by: str) -> Path:
    """The checkpoint with the figure by which a trial was ranked."""
    from trainers.training.best_epoch import best_checkpoint

    folders = [record.path for record in kept_checkpoints(context.store, trial)]
    if not folders:
        raise _OtherWeightsError(f"trial {trial.number} has no checkpoint")
    return best_checkpoint(folders, context.metric) if ranked_by.endswith("_best") else folders[-1]


def _check(trial: TrialRecord, found: float, recorded: float, num_images: int, metric: DecidingMetric) -> None:
    """Another device may decide another way about an image or two."""
    tolerance = 2.5 / num_images if metric.is_fraction else 0.01 * abs(recorded)
    if not abs(found - recorded) <= tolerance:
        raise _OtherWeightsError(
            f"the checkpoint of trial {trial.number} has {metric.words} {metric.text(found)} instead of "
            f"{metric.text(recorded)}"
        )
