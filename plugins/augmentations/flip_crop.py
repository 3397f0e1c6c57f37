"""Mirroring, and translations by up to an eighth of the image."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from plugins.augmentations.layers import MAX_SHIFT, LayeredAugmentation
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import nn


@lru_cache(maxsize=32)
def _layers(size: int, strength: float) -> "nn.Sequential":
    import kornia.augmentation as kornia
    from torch import nn

    flip = kornia.RandomHorizontalFlip(p=0.5)
    padding = round(max(1.0, MAX_SHIFT * size) * strength)
    return nn.Sequential(flip, kornia.RandomCrop((size, size), padding=padding)) if padding else nn.Sequential(flip)


@dataclass(frozen=True, kw_only=True)
class FlipCrop(LayeredAugmentation):
    """Mirrors half of the images, then pads all images and crops them at random to their original size.

    The strength scales the padding; at 0, images are only mirrored. The padding is black.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="He et al. 2016, arXiv:1512.03385, section 4.2, with padding proportional to the image size",
        cost="one copy of each image",
    )
    layers = staticmethod(_layers)
