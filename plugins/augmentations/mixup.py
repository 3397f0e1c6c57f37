"""Mixup: each image is blended with another one of its batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


def draw_share(alpha: float, generator: "Generator") -> float:
    """A number from Beta(alpha, alpha), between 0 and 1."""
    import numpy as np
    import torch

    # torch draws from Beta with its global generator only.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def draw_partners(images: "Tensor", generator: "Generator") -> "Tensor":
    """For each image (B, C, S, S) another image of the batch, as a permutation (B,) on the images' device."""
    import torch

    return torch.randperm(len(images), generator=generator).to(images.device)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Blends images and their targets by the same share, drawn once per batch."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhang et al. 2018, arXiv:1710.09412; one share and one permutation per batch, as in its code",
        cost="one copy of each image",
    )
    alpha: Annotated[float, Field(gt=0)] = 0.2
    """Both parameters of the Beta distribution of the share; 1 draws it evenly, smaller ones mix less."""

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """`share * x + (1 - share) * x[partners]`, for images and targets."""
        share = draw_share(self.alpha, generator)
        partners = draw_partners(images, generator)
        return share * images + (1 - share) * images[partners], share * targets + (1 - share) * targets[partners]
