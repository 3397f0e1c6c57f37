"""The interface of early-stopping criteria."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard


class CurvePoint(NamedTuple):
    """One finished epoch, as a stopping criterion sees it."""

    epoch: int
    """Starting at 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    """Fraction between 0 and 1."""
    signals: Mapping[str, float] = {}
    """The measured signals, by name."""
    metrics: Mapping[str, float] = {}
    """Further validation metrics, by their keys, such as `val_macro_f1`; empty in curves of version 0.1.0."""
    score: float | None = None
    """The value of the study's metric, negative if less of it is better; `None` if no metric was chosen."""
    num_epochs: int | None = None
    """Number of epochs for which the training is planned; `None` if unknown."""
    best: float | None = None
    """The best score with which an earlier trial of the study ended; `None` if there is none, or if it is unknown."""
    earlier: tuple[tuple[float, ...], ...] = ()
    """The scores after each epoch of the earlier trials of the study, as far as they were trained. Only for criteria
    that declare `reads_earlier_curves`."""

    @property
    def deciding(self) -> float:
        """The score by which trainings are compared: `score`, or the accuracy if no metric was chosen."""
        return self.val_accuracy if self.score is None else self.score


def planned(
    curve: Sequence[CurvePoint], *, num_epochs: int, best: float | None, earlier: tuple[tuple[float, ...], ...] = ()
) -> list[CurvePoint]:
    """A curve whose points tell for how many epochs the training is planned, and what earlier trials reached."""
    return [point._replace(num_epochs=num_epochs, best=best, earlier=earlier) for point in curve]


class Stopper(Protocol):
    """An early-stopping criterion: a pure function of the curve so far. It may declare `signals` (`NeedsSignals`)."""

    card: ClassVar[PluginCard]

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop training after the last point of `curve`, as text for the user; `None` to continue."""
        ...


@runtime_checkable
class ReadsEarlierCurves(Protocol):
    """An optional part of a criterion, for criteria that compare a training with the curves of earlier trials."""

    reads_earlier_curves: ClassVar[bool]
    """Whether `CurvePoint.earlier` must be filled."""


@runtime_checkable
class WaitsForEpochs(Protocol):
    """An optional part of a criterion that cannot end a training at once, so that users learn if it comes too late."""

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training with these settings."""
        ...


def earliest_stop(stopper: object) -> int:
    """The first epoch after which a criterion can end a training; 1 if it does not tell."""
    return stopper.earliest_stop if isinstance(stopper, WaitsForEpochs) else 1


def reads_earlier_curves(stopper: object) -> bool:
    """Whether a criterion compares a training with the curves of earlier trials. By default it does not."""
    return isinstance(stopper, ReadsEarlierCurves) and stopper.reads_earlier_curves
