"""Small rotations, translations and changes of scale, without mirroring; suitable for digits."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from plugins.augmentations.layers import MAX_SHIFT, LayeredAugmentation
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import nn


@lru_cache(maxsize=32)
def _layers(size: int, strength: float) -> "nn.Sequential":  # noqa: ARG001 - the layers are the same for all sizes
    import kornia.augmentation as kornia
    from torch import nn

    if strength == 0:
        return nn.Sequential()
    shift = (MAX_SHIFT * strength, MAX_SHIFT * strength)
    scale = (1 - 0.1 * strength, 1 + 0.1 * strength)
    return nn.Sequential(kornia.RandomAffine(degrees=12.0 * strength, translate=shift, scale=scale, p=1.0))


@dataclass(frozen=True, kw_only=True)
class Affine(LayeredAugmentation):
    """Random affine maps: rotations by up to 12 degrees, shifts by an eighth of the image, scaling by 10 %.

    The strength scales all three; at 0, images do not change. Pixels from outside the image are black.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; kornia's RandomAffine",
        cost="one resampling of each image",
    )
    layers = staticmethod(_layers)
