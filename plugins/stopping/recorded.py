"""Reads the recorded values of a signal from a curve, for criteria that need them."""

from collections.abc import Sequence

from plugins.protocols import CLASS_SIGNALS, CurvePoint, Signal, class_values

FIRST_EPOCHS = 2
"""Number of initial epochs in which a signal may be missing, since some signals compare consecutive epochs."""


def recorded(curve: Sequence[CurvePoint], signal: Signal, *, criterion: str) -> list[tuple[int, float]]:
    """Epochs and values of a signal. Epochs in which it was undefined are left out.

    Args:
        curve: The curve, oldest epoch first.
        signal: A signal with one number.
        criterion: Name of the criterion, for the message.

    Raises:
        ValueError: The signal was not measured.
    """
    assert signal not in CLASS_SIGNALS
    found = [(point.epoch, point.signals[signal.value]) for point in curve if signal.value in point.signals]
    _check(curve, signal, is_found=bool(found), criterion=criterion)
    return found


def recorded_by_class(curve: Sequence[CurvePoint], signal: Signal, *, criterion: str) -> dict[int, list[float]]:
    """Values of a signal with one number per class, by class. Classes without a value in every epoch are left out.

    Raises:
        ValueError: The signal was not measured.
    """
    assert signal in CLASS_SIGNALS
    of_epochs = [class_values(point.signals, signal) for point in curve]
    _check(curve, signal, is_found=any(of_epochs), criterion=criterion)
    classes = sorted(of_epochs[0]) if of_epochs else []
    return {
        number: [values[number] for values in of_epochs]
        for number in classes
        if all(number in values for values in of_epochs)
    }


def _check(curve: Sequence[CurvePoint], signal: Signal, *, is_found: bool, criterion: str) -> None:
    if is_found or len(curve) <= FIRST_EPOCHS:
        return
    last = curve[-1]
    names = dict.fromkeys(name.partition(".")[0] for name in last.signals)
    raise ValueError(
        f"stopping {criterion}: the curve must contain the signal {signal.value}, but epoch {last.epoch} contains "
        f"{', '.join(names) or 'no signals'}. Signals cannot be added to a recorded curve: name this one in `signals` "
        "of the train stage, or keep the criterion in the study, and train again."
    )
