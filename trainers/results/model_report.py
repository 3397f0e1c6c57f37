"""What a model does on labelled images, as plain data: metrics with intervals, classes, calibration and mistakes."""

from pydantic import BaseModel, ConfigDict, Field

from plugins.metrics.deciding import ACCURACY, DecidingMetric


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Estimate(_Plain):
    """A metric with its 95 % interval over the choice of images."""

    value: float
    low: float | None
    """`None` if there is no interval; `method` gives the reason."""
    high: float | None
    method: str
    """How the interval was computed."""


class ClassFigures(_Plain):
    """Results on one class."""

    name: str
    support: int
    """Number of images of the class."""
    precision: float | None
    """Share of the images predicted as this class that belong to it; `None` if none is."""
    recall: float | None
    """Share of the images of this class that are predicted as it; `None` if there is none."""
    f1: float | None
    """Harmonic mean of both; `None` if the class neither occurs nor is predicted."""


class ReliabilityBin(_Plain):
    """Images whose largest probability lies in (`low`, `high`]."""

    low: float
    high: float
    num_images: int
    confidence: float | None
    """Mean of the largest probability; `None` without images."""
    accuracy: float | None


class Calibration(_Plain):
    """How well the probabilities of predictions agree with how often they are right."""

    temperature: float
    """The logits are divided by it before the softmax."""
    ece: float
    """Expected calibration error of these probabilities, over `bins`."""
    ece_uncalibrated: float
    """The error with temperature 1."""
    bins: tuple[ReliabilityBin, ...]
    """Bins of equal width from 0 to 1."""


class Mistake(_Plain):
    """A wrong prediction."""

    image: int
    """Position in the evaluated part."""
    name: str | None = None
    """File or row of the image, if known."""
    truth: str
    prediction: str
    probability: float
    """Calibrated probability of the prediction."""


class MostFrequentClass(_Plain):
    """The class that most of the evaluated images have, as a baseline: the accuracy of always predicting it."""

    name: str
    accuracy: float


class ModelReport(_Plain):
    """What a model does on labelled images."""

    part: str
    """Which images: `test`, `validation`, `train` or `all`."""
    num_images: int
    classes: tuple[str, ...]
    metrics: dict[str, Estimate]
    """By name, computed from the logits of the model without its temperature."""
    baseline: MostFrequentClass
    metric: DecidingMetric = ACCURACY
    """The metric by which the model was chosen."""
    baselines: dict[str, float] = Field(default_factory=dict)
    """Each metric of a model that gives every class its frequency, and so always answers the most frequent one."""
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class (rows) and predicted class (columns), both in the order of `classes`."""
    calibration: Calibration
    num_mistakes: int
    mistakes: tuple[Mistake, ...]
    """The most confident wrong predictions, at most 24."""
    source: str | None = None
    """Where the images are from; `None` for the test of a champion."""
    notes: tuple[str, ...] = ()
    """What was left out, and what makes the figures less reliable."""

    @property
    def beats_baseline(self) -> bool:
        """Whether the model is better, by the metric that chose it, than always answering the most frequent class."""
        name = self.metric.choice.name
        if name not in self.baselines or name not in self.metrics:
            return self.metrics["accuracy"].value > self.baseline.accuracy
        return self.metric.score(self.metrics[name].value) > self.metric.score(self.baselines[name])


def describe_accuracy(report: ModelReport) -> str:
    """The accuracy with its interval, such as `97.2 % (94.9 to 98.5 %)`."""
    found = report.metrics["accuracy"]
    interval = (
        "" if found.low is None or found.high is None else f" ({100 * found.low:.1f} to {100 * found.high:.1f} %)"
    )
    return f"{100 * found.value:.1f} %{interval}"


def describe_result(report: ModelReport) -> str:
    """The metric that chose the model, with the accuracy: `macro F1 91.2 %, accuracy 97.2 % (94.9 to 98.5 %)`.

    If the metric is the accuracy, it is not named. A model that is no better than always answering the most frequent
    class is named as such.
    """
    name = report.metric.choice.name
    text = describe_accuracy(report)
    if name != "accuracy" and name in report.metrics:
        text = f"{report.metric.words} {report.metric.text(report.metrics[name].value)}, accuracy {text}"
    return text if report.beats_baseline else f"{text}, NOT better than always answering {report.baseline.name!r}"
