"""No augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class NoAugmentation:
    """Neither changes nor mixes images."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="nothing")

    def augment(
        self,
        images: "Tensor",
        *,
        strength: float,  # noqa: ARG002 - the protocol's signature
        seed: int,  # noqa: ARG002
    ) -> "Tensor":
        """Return the batch itself."""
        return images

    def augment_together(
        self,
        batches: "Sequence[Tensor]",
        *,
        strength: float,  # noqa: ARG002 - the protocol's signature
        seeds: Sequence[int],  # noqa: ARG002
    ) -> "Sequence[Tensor]":
        """Return the batches themselves."""
        return batches

    def mix(
        self,
        images: "Tensor",
        targets: "Tensor",
        *,
        generator: "Generator",  # noqa: ARG002 - the protocol's signature
    ) -> "tuple[Tensor, Tensor]":
        """Return the batch and its targets themselves."""
        return images, targets
