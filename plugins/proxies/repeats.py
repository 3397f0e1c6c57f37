"""What repeated scores share: seeds for the repeats, and their mean and spread."""

import math
import random
import statistics
from collections.abc import Sequence

from plugins.protocols import ProxyScore


def repeat_seeds(seed: int, repeats: int) -> tuple[int, ...]:
    """One seed per repeat, unrelated to each other and the same for the same `seed`; more repeats only add to them."""
    rng = random.Random(seed)
    return tuple(rng.getrandbits(62) for _ in range(repeats))


def summarize(values: Sequence[float]) -> ProxyScore:
    """Mean and standard deviation (ddof 1) over the repeats; the mean is nan if any of them is not finite."""
    if not all(math.isfinite(value) for value in values):
        return ProxyScore(math.nan)
    return ProxyScore(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
