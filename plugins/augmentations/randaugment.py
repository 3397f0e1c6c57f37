"""Mirroring, and two random operations of RandAugment for each batch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from plugins.augmentations.layers import apply_layers
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_OPERATIONS, MAGNITUDE = 2, 9
"""The `n` and `m` of RandAugment."""
_NEUTRAL = {"posterize": 8.0, "solarize": 1.0, "color": 1.0, "contrast": 1.0, "brightness": 1.0, "sharpness": 1.0}
"""Value at which an operation has no effect, for operations where it is not 0."""
_LIMITS = {"solarize": (0.0, 1.0), "solarize_add": (-0.5, 0.5), "posterize": (0.0, 8.0)}
"""Range of values that kornia accepts, for operations where it is not `[0, inf)`."""
_WITHOUT_STRENGTH = ("auto_contrast", "equalize", "invert")


def scale_operation(name: str, low: float, high: float, strength: float) -> tuple[str, float, float]:
    """Scale an operation of kornia's policy: its distance from the value without effect is multiplied by `strength`.

    RandAugment's `m` cannot do this: in kornia's policy, a smaller `m` makes images darker and greyer.

    Args:
        name: Name of the operation.
        low: Start of its range.
        high: End of its range.
        strength: Factor of the distance.
    """
    if name in _WITHOUT_STRENGTH:
        return name, low, high
    if low == -high:  # the sign is drawn at random
        return name, low * strength, high * strength
    share = MAGNITUDE / 30
    value = high - (high - low) * share if name == "posterize" else low + (high - low) * share
    neutral = _NEUTRAL.get(name, 0.0)
    least, largest = _LIMITS.get(name, (0.0, float("inf")))
    value = min(max(neutral + (value - neutral) * strength, least), largest)
    return name, value, value


@lru_cache(maxsize=32)
def _layers(size: int, strength: float) -> "nn.Sequential":  # noqa: ARG001 - the same layers for all sizes
    import kornia.augmentation as kornia
    from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
    from torch import nn

    flip = kornia.RandomHorizontalFlip(p=0.5)
    if strength == 0:
        return nn.Sequential(flip)
    policy: list[Any] | None = None
    if strength != 1:
        policy = [[scale_operation(name, low, high, strength)] for ((name, low, high),) in default_policy]
    return nn.Sequential(flip, kornia.auto.RandAugment(n=NUM_OPERATIONS, m=MAGNITUDE, policy=policy))


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Mirrors half of the images and applies two random operations.

    The strength scales the effect of each operation, within the range that the operation supports. Inverting,
    equalising, automatic contrast and the threshold of `solarize_add` have no strength. At 0, images are only mirrored.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Cubuk et al. 2020, arXiv:1909.13719, n = 2, m = 9; kornia's RandAugment, which draws the two operations "
            "once per batch"
        ),
        cost="two operations on each image; the batches of packed trainings are augmented one after another",
    )

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """Return an augmented copy of a batch. A grey batch is converted to colour and back."""
        if images.shape[1] == 1:  # kornia's colour operations need three channels
            coloured = images.expand(-1, 3, -1, -1)
            return apply_layers(_layers, coloured, strength=strength, seed=seed).mean(1, keepdim=True)
        return apply_layers(_layers, images, strength=strength, seed=seed)
