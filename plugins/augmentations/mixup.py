"""Mixup: each image is blended with another image of the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


def draw_share(alpha: float, generator: "Generator") -> float:
    """Draw a number between 0 and 1 from Beta(alpha, alpha)."""
    import numpy as np
    import torch

    # torch can draw from a Beta distribution with its global generator only.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def draw_partners(images: "Tensor", generator: "Generator") -> "Tensor":
    """Draw a partner for each image (B, C, S, S) of a batch: a permutation (B,) on the device of the images."""
    import torch

    return torch.randperm(len(images), generator=generator).to(images.device)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Blends images and their targets with the same weight, drawn once per batch."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhang et al. 2018, arXiv:1710.09412; one weight and one permutation per batch, as in the authors' code",
        cost="one copy of each image",
    )
    alpha: Annotated[float, Field(gt=0)] = 0.2
    """Both parameters of the Beta distribution of the weight; 1 is the uniform distribution, lower values mix less."""

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """`share * x + (1 - share) * x[partners]`, for images and targets."""
        share = draw_share(self.alpha, generator)
        partners = draw_partners(images, generator)
        return share * images + (1 - share) * images[partners], share * targets + (1 - share) * targets[partners]
