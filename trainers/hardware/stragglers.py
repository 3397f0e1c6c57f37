"""Finds attempts that train much more slowly than others of their kind, from images per second. Plain arithmetic."""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence

DEVIATIONS = 5.0
LEAST_OTHERS = 3
LEAST_S = 30.0
"""Seconds of training below which a speed means nothing."""
_LEAST_DEVIATION = 0.05
"""Smallest median absolute deviation, as a fraction of the median: equal speeds do not make 1 % a difference."""

_MOST_KNOWN = 200
"""Number of newest attempts of a kind that are compared, so that the time does not grow with the study."""


def is_straggler(speed: float, others: Sequence[float]) -> bool:
    """Whether a speed is far below those of other attempts of the same kind.

    It is, if there are at least `LEAST_OTHERS` others, and it is more than `DEVIATIONS` median absolute deviations
    below their median. The deviation counts as at least 5 % of the median, so a straggler is at least 25 % slower.

    Args:
        speed: Images per second of the attempt.
        others: Those of the other attempts.
    """
    if len(others) < LEAST_OTHERS:
        return False
    median = statistics.median(others)
    deviation = statistics.median(abs(one - median) for one in others)
    return median - speed > DEVIATIONS * max(deviation, _LEAST_DEVIATION * median)


class SpeedTable:
    """Speeds of the newest attempts, by kind. Attempts of a kind do the same work on the same type of device."""

    def __init__(self) -> None:
        self._speeds: defaultdict[Hashable, dict[Hashable, float]] = defaultdict(dict)

    def note(self, kind: Hashable, attempt: Hashable, images_per_s: float, *, wall_time_s: float) -> str | None:
        """Note the speed of an attempt, instead of an earlier one. One of less than `LEAST_S` is ignored.

        Returns:
            A description if it is a straggler, such as `it trained 120 images/s, ...`; otherwise `None`.
        """
        if wall_time_s < LEAST_S:
            return None
        known = self._speeds[kind]
        known.pop(attempt, None)
        known[attempt] = images_per_s
        if len(known) > _MOST_KNOWN:
            del known[next(iter(known))]
        others = [speed for other, speed in known.items() if other != attempt]
        if not is_straggler(images_per_s, others):
            return None
        usual = statistics.median(others)
        return f"it trained {images_per_s:.0f} images/s, and {len(others)} like it {usual:.0f} (median)"
