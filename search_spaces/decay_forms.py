"""Forms in which a learning rate, or the weight of updates in an average, falls from 1 to 0."""

import math
from typing import Literal

DecayForm = Literal["linear", "cosine", "1-sqrt"]


def decayed(form: DecayForm, progress: float) -> float:
    """The factor at `progress` in [0, 1] of a decay: 1 at the start, 0 at the end.

    Source: Hägele et al. 2024, arXiv:2405.18392, for `1-sqrt`.
    """
    if form == "linear":
        return 1 - progress
    if form == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - math.sqrt(progress)
