"""Extrapolates a learning curve with uncertainty: exact Bayesian regression on a family of saturating shapes.

A curve is `y_t = c + a g(t) + noise`, where the shape `g` falls from 1 in the first epoch. Each shape of a fixed set is
a linear regression with a conjugate prior, so that its prediction is a Student's t distribution in closed form. The
predictions are mixed with the shapes' posterior probabilities. There are no random numbers and no trained weights.

Legend: `n` observed epochs, `S` shapes.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NOISE = 0.05
"""Noise that the prior expects, as a fraction of the range of the observed values."""
REACH = 2.0
"""Standard deviation that the prior gives to `c` and `a`, in ranges of the observed values."""
POWERS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""Exponents of pow3."""
STRETCHES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Exponents of Janoschek's curve."""
NUM_SCALES = 12
"""Number of time scales of Janoschek's curve for each exponent, from half an epoch to twice the training."""


class Extrapolation(NamedTuple):
    """The distribution of a later value: a mixture of Student's t distributions."""

    weights: "Floats"
    """(S,), adding up to 1."""
    means: "Floats"
    scales: "Floats"
    freedom: float
    """Degrees of freedom of all of them."""

    def chance_above(self, value: float) -> float:
        """The probability that the value exceeds a given one."""
        from scipy.special import stdtr

        return float(self.weights @ stdtr(self.freedom, (self.means - value) / self.scales))

    def quantile(self, probability: float) -> float:
        """The value that is not exceeded with a probability in (0, 1)."""
        from scipy.optimize import brentq

        width = 100 * float(self.scales.max())
        low, high = float(self.means.min()) - width, float(self.means.max()) + width
        return float(brentq(lambda value: 1 - self.chance_above(value) - probability, low, high))


@lru_cache(maxsize=64)
def shapes_of(num_epochs: int) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """The shapes in epochs 1 to `num_epochs`, (S, num_epochs), each 1 in the first, and their prior weights (S,).

    - pow3: `t^-p`
    - ilog2: `1 / log2(t + 1)`
    - Janoschek: `exp(-(t^d - 1) / s^d)`

    The three families have equal weights, and so have the shapes of a family.

    Source: Domhan et al. 2015 (pow3, ilog2, Janoschek among others); these three, as the prior of Adriaensen et al.
    2023, LC-PFN, arXiv:2310.20447.
    """
    import numpy as np

    epochs = np.arange(1, num_epochs + 1, dtype=float)
    powers = [epochs**-power for power in POWERS]
    times = np.geomspace(0.5, 2 * max(num_epochs, 2), NUM_SCALES)
    stretched = [np.exp(-(epochs**d - 1) / s**d) for d in STRETCHES for s in times]
    families = (powers, [1 / np.log2(epochs + 1)], stretched)
    weights = [np.full(len(family), 1 / (len(families) * len(family))) for family in families]
    found = np.array([shape for family in families for shape in family]), np.concatenate(weights)
    for array in found:
        array.setflags(write=False)  # all callers share them
    return found


def extrapolate(values: Sequence[float], *, num_epochs: int) -> Extrapolation:
    """The distribution of the value after the last epoch, noise included.

    Args:
        values: Finite values after epochs 1 to n, with n from 2 to `num_epochs`.
        num_epochs: Number of the last epoch.

    The prior: values are measured from their mean, in units of their range; `c` and `a` are normal with variance
    `(REACH / NOISE)^2 noise^2`, and `noise^2` is inverse-gamma with shape 1 and scale `NOISE^2`.
    """
    import numpy as np

    observed = np.asarray(values, dtype=float)
    count, centre = len(observed), float(observed.mean())
    # Equal values have no range; a thousandth of their size is less than any difference that matters.
    unit = max(float(np.ptp(observed)), 1e-3 * float(np.abs(observed).max()), 1e-9)
    shapes, prior = shapes_of(num_epochs)
    known = (observed - centre) / unit
    design = np.stack([np.ones_like(shapes[:, :count]), shapes[:, :count]], axis=2)  # (S, n, 2)
    precision = np.eye(2) * (NOISE / REACH) ** 2 + np.swapaxes(design, 1, 2) @ design
    moments = np.swapaxes(design, 1, 2) @ known
    coefficients = np.linalg.solve(precision, moments[..., None])[..., 0]
    freedom = 2.0 + count
    spread = NOISE**2 + 0.5 * np.maximum(known @ known - (moments * coefficients).sum(1), 0)
    evidence = -0.5 * np.linalg.slogdet(precision)[1] - 0.5 * freedom * np.log(spread)  # up to a constant
    last = np.stack([np.ones(len(shapes)), shapes[:, -1]], axis=1)
    leverage = (last * np.linalg.solve(precision, last[..., None])[..., 0]).sum(1)
    weights = prior * np.exp(evidence - evidence.max())
    return Extrapolation(
        weights=weights / weights.sum(),
        means=centre + unit * (last * coefficients).sum(1),
        scales=unit * np.sqrt(spread / (0.5 * freedom) * (1 + leverage)),
        freedom=freedom,
    )
