"""Makes the report on a model from its logits on labelled images."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from plugins.metrics.deciding import ACCURACY, DecidingMetric
from trainers.results.calibration import calibrate
from trainers.results.intervals import Measure, estimate
from trainers.results.model_report import ClassFigures, Mistake, ModelReport, MostFrequentClass
from trainers.training.baseline import blind_logits
from trainers.training.evaluation import class_probabilities

MAX_MISTAKES = 24


def report_on(
    logits: Tensor,
    labels: Tensor,
    *,
    part: str,
    class_names: Sequence[str],
    measures: Mapping[str, Measure],
    temperature: float,
    metric: DecidingMetric = ACCURACY,
    names_of: Callable[[Sequence[int]], Sequence[str]] | None = None,
) -> ModelReport:
    """The report on a model.

    Args:
        logits: Logits (N, C), N at least 1.
        labels: Labels (N,).
        part: Which images they are, such as `test`.
        class_names: Names of the C classes.
        measures: The metrics by name; `accuracy` must be one of them.
        temperature: The model's temperature.
        metric: The metric by which the model was chosen.
        names_of: Gives file or row of the images at some positions, if they are known.
    """
    logits, labels = logits.cpu(), labels.cpu()
    confusion = count_confusion(logits.argmax(1), labels, num_classes=len(class_names))
    frequencies = confusion.sum(1)
    most = int(frequencies.argmax())
    blind = blind_logits(frequencies, num_images=len(labels))
    return ModelReport(
        part=part,
        num_images=len(labels),
        classes=tuple(class_names),
        metrics={name: estimate(name, measure, logits, labels) for name, measure in measures.items()},
        baseline=MostFrequentClass(name=class_names[most], accuracy=int(frequencies[most]) / len(labels)),
        metric=metric,
        baselines={name: measure(blind, labels) for name, measure in measures.items()},
        per_class=_per_class(confusion, class_names),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration=calibrate(logits, labels, temperature=temperature),
        num_mistakes=len(labels) - int(confusion.trace()),
        mistakes=_mistakes(logits, labels, class_names, temperature, names_of),
    )


def count_confusion(predictions: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Number of images (C, C) by true class (rows) and predicted class (columns)."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def _per_class(confusion: Tensor, class_names: Sequence[str]) -> tuple[ClassFigures, ...]:
    hits, supports, predicted = confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    return tuple(
        ClassFigures(
            name=name,
            support=support,
            precision=hit / answers if answers else None,
            recall=hit / support if support else None,
            f1=2 * hit / (support + answers) if support + answers else None,
        )
        for name, hit, support, answers in zip(class_names, hits, supports, predicted, strict=True)
    )


def _mistakes(
    logits: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    temperature: float,
    names_of: Callable[[Sequence[int]], Sequence[str]] | None,
) -> tuple[Mistake, ...]:
    """The wrong predictions with the highest probabilities, highest first; of equal ones, the first image's first."""
    probabilities = class_probabilities(logits.double(), temperature)
    predictions = logits.argmax(1)
    confidence = probabilities.gather(1, predictions[:, None])[:, 0]
    wrong = torch.nonzero(predictions != labels)[:, 0]
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MAX_MISTAKES].tolist()
    names = [None] * len(order) if names_of is None else names_of(order)
    return tuple(
        Mistake(
            image=index,
            name=name,
            truth=class_names[int(labels[index])],
            prediction=class_names[int(predictions[index])],
            probability=float(confidence[index]),
        )
        for index, name in zip(order, names, strict=True)
    )
