"""The interfaces of augmentations and of the mixing of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Augmentation(Protocol):
    """Random changes to each image of a batch. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """Return an augmented copy of a batch, or the batch itself if nothing changes.

        The same seed gives the same result. Torch's global generators are restored.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            strength: Factor of the ranges; 1 is the plug-in's default. At 0, images are at most mirrored.
            seed: Seed of the random numbers.
        """
        ...


@runtime_checkable
class JointAugmentation(Protocol):
    """An optional part of an augmentation: several batches augmented together, with few operations."""

    def augment_together(
        self, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
    ) -> "Sequence[Tensor]":
        """The result of `augment` for each batch with its seed, up to rounding."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """Mixes the images of a batch and their targets. The kind of such a plug-in is `augmentations`, too."""

    card: ClassVar[PluginCard]

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "torch.Generator") -> "tuple[Tensor, Tensor]":
        """Return mixed images and targets.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            targets: Shape (B, classes); each row sums to 1.
            generator: Generator of all random numbers, on the CPU.
        """
        ...
