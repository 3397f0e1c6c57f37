"""CutMix: a rectangle of each image is replaced with the same rectangle of another image of the batch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.augmentations.mixup import draw_partners, draw_share
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


def draw_box(height: int, width: int, share: float, generator: "Generator") -> tuple[slice, slice]:
    """Rows and columns of a random box with the aspect ratio of the image and up to `1 - share` of its area.

    Its centre is uniformly distributed. The part of the box outside the image is cut off.
    """
    import torch

    parts = []
    for length in (height, width):
        size = int(length * math.sqrt(1 - share))
        centre = int(torch.randint(length, (), generator=generator))
        parts.append(slice(max(centre - size // 2, 0), min(centre + size // 2, length)))
    return parts[0], parts[1]


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Pastes a box at the same position into all images of a batch, and mixes the targets by the area of the box."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Yun et al. 2019, arXiv:1905.04899; one box and one permutation per batch, as in the authors' code",
        cost="one copy of each image",
    )
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Both parameters of the Beta distribution of the kept fraction of the image; 1 is the uniform distribution."""

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """Paste a box of a partner into each image, and mix the targets by the areas."""
        height, width = images.shape[-2:]
        rows, columns = draw_box(height, width, draw_share(self.alpha, generator), generator)
        partners = draw_partners(images, generator)
        mixed = images.clone()
        mixed[..., rows, columns] = images[..., rows, columns][partners]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, kept * targets + (1 - kept) * targets[partners]
