"""The interfaces of augmentations and of the mixing of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

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


class Mixture(NamedTuple):
    """What the images of a batch are made of, if each pixel comes from one of two images."""

    own: "Tensor"
    """Targets of the images themselves, shape (B, classes)."""
    partner: "Tensor"
    """Targets of the images whose pixels replace some, shape (B, classes)."""
    kept: "Tensor"
    """Which pixels are those of the image itself, bool, shape (B, S, S)."""

    def targets(self, shares: "Tensor") -> "Tensor":
        """Targets (B, classes) in which an image itself counts with its share, shape (B,)."""
        weights = shares[:, None].to(self.own.dtype)
        return weights * self.own + (1 - weights) * self.partner

    @property
    def areas(self) -> "Tensor":
        """The kept part of each image, shape (B,), in the dtype of the targets."""
        return self.kept.to(self.own.dtype).mean((1, 2))


@runtime_checkable
class AttentionMixing(Protocol):
    """An optional part of a mixing: the targets follow what the model attends to in the mixed images.

    Training then reads the attention of the model (`AttendsToImage`) in the forward pass of the step.
    """

    @property
    def reads_attention(self) -> bool:
        """Whether the targets do so. It may depend on the settings; otherwise `mix` is called."""
        ...

    def mix_two(self, images: "Tensor", targets: "Tensor", *, generator: "torch.Generator") -> "tuple[Tensor, Mixture]":
        """The mixed images of `mix`, and what they are made of."""
        ...

    def shares(self, mixture: Mixture, attention: "Tensor", logits: "Tensor") -> "Tensor":
        """The share of each image itself in its target, shape (B,).

        Args:
            mixture: What the images are made of.
            attention: Share of each part of the image in the attention, shape (B, rows, columns); sums to 1.
            logits: The model's logits of the mixed images, shape (B, classes), without gradient.
        """
        ...
