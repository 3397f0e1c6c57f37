"""Translations by up to an eighth of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from plugins.augmentations.layers import MAX_SHIFT, apply_layers, apply_layers_together
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor, nn


@lru_cache(maxsize=32)
def _layers(size: int, strength: float) -> "nn.Sequential":  # noqa: ARG001 - the same layers for all sizes
    import kornia.augmentation as kornia
    from torch import nn

    if strength == 0:
        return nn.Sequential()
    shift = (MAX_SHIFT * strength, MAX_SHIFT * strength)
    return nn.Sequential(kornia.RandomAffine(degrees=0.0, translate=shift, p=1.0))


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Random translations.

    Strength scales how far; at 0 images stay as they are. What is shifted in from outside is black.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; kornia's RandomAffine",
        cost="one resampling of each image",
    )

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """A changed copy of a batch."""
        return apply_layers(_layers, images, strength=strength, seed=seed)

    def augment_together(
        self, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
    ) -> "Sequence[Tensor]":
        """What `augment` makes of each batch, up to rounding."""
        return apply_layers_together(_layers, batches, strength=strength, seeds=seeds)
