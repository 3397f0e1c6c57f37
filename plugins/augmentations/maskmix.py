"""MaskMix: random patches of each image are replaced with those of another image of the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.augmentations.mixup import draw_partners, draw_share
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


def draw_mask(size: int, patch: int, share: float, generator: "Generator") -> "Tensor":
    """Draw which pixels are kept: a bool mask (size, size) of square patches, on the CPU.

    Args:
        size: Height and width of the image.
        patch: Height and width of a patch in pixels; those at the lower and right edges may be cut off.
        share: Fraction of the patches that are kept, rounded to whole patches.
        generator: Generator on the CPU.
    """
    import torch

    count = -(-size // patch)
    order = torch.randperm(count * count, generator=generator)
    kept = torch.zeros(count * count, dtype=torch.bool)
    kept[order[: round(share * count * count)]] = True
    whole = kept.view(count, count).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    return whole[:size, :size]


@dataclass(frozen=True, kw_only=True)
class MaskMix:
    """Replaces the same random patches in all images of a batch, and mixes the targets by the area."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhao et al. 2023, MixPro, arXiv:2304.12043, whose patches are a quarter of the image. Targets are "
        "mixed by the area, as in the authors' released settings; their progressive mixture with the attention of the "
        "last block is left out, because only some of our models have a class token whose attention it reads. One mask "
        "and one permutation per batch",
        cost="one copy of each image",
    )
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Both parameters of the Beta distribution of the kept fraction of the image; 1 is the uniform distribution."""
    patches: Annotated[int, Field(ge=2)] = 4
    """Patches along each side of the image."""

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """Replace random patches with those of a partner, and mix the targets by the areas."""
        import torch

        size = images.shape[-1]
        share = draw_share(self.alpha, generator)
        mask = draw_mask(size, max(1, -(-size // self.patches)), share, generator)
        partners = draw_partners(images, generator)
        kept = float(mask.double().mean())
        mixed = torch.where(mask.to(images.device), images, images[partners])
        return mixed, kept * targets + (1 - kept) * targets[partners]
