"""MaskMix: random patches of each image are replaced with those of another image of the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.augmentations.mixup import draw_partners, draw_share
from plugins.protocols import Mixture, PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


def draw_masks(num_masks: int, size: int, patch: int, share: float, generator: "Generator") -> "Tensor":
    """Draw which pixels are kept: bool masks (num_masks, size, size) of square patches, on the CPU.

    Args:
        num_masks: Number of masks.
        size: Height and width of the image.
        patch: Height and width of a patch in pixels; those at the lower and right edges may be cut off.
        share: Fraction of the patches that are kept, rounded to whole patches.
        generator: Generator on the CPU.
    """
    import torch

    count = -(-size // patch)
    kept = torch.zeros(num_masks, count * count, dtype=torch.bool)
    for mask in kept:
        order = torch.randperm(count * count, generator=generator)
        mask[order[: round(share * count * count)]] = True
    whole = kept.view(num_masks, count, count).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return whole[:, :size, :size]


def progressive_shares(mixture: Mixture, attention: "Tensor", logits: "Tensor") -> "Tensor":
    """Share of each image itself in its target, shape (B,): `c * by_attention + (1 - c) * by_area`.

    `c` is the cosine of the angle between the predicted probabilities and the target by the area. It is low as long as
    the model knows little, so that its attention to the kept part of the image does not count yet.

    Args:
        mixture: What the images are made of.
        attention: Share of each part of the image in the attention, shape (B, rows, columns).
        logits: Logits of the mixed images, shape (B, classes).

    Source: Zhao et al. 2023, arXiv:2304.12043, section 3.3 and the authors' code.
    """
    import torch
    from torch.nn import functional as F

    areas = mixture.areas
    attention = attention.to(areas.dtype)
    _, rows, columns = attention.shape
    kept = F.adaptive_avg_pool2d(mixture.kept.to(areas.dtype)[:, None], (rows, columns)).squeeze(1)
    by_attention = (kept * attention).sum((1, 2)) / attention.sum((1, 2))
    factor = torch.cosine_similarity(mixture.targets(areas), logits.softmax(1).to(areas.dtype), dim=1)
    return factor * by_attention + (1 - factor) * areas


@dataclass(frozen=True, kw_only=True)
class MaskMix:
    """Replaces random patches, by default the same ones in all images of a batch, and mixes the targets."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhao et al. 2023, MixPro, arXiv:2304.12043, whose patches are a quarter of the image. One share and "
        "one permutation per batch, as in the authors' code, which draws a mask for each image (`masks: "
        "image`) and rounds the number of kept patches up. Labels `attention` are their progressive attention "
        "labels; their released settings use the area. They read the class token of a plain transformer; "
        "here, it is what the classifier reads: the class token (pit) or the mean of the tokens (autoformer, "
        "as-vit). The labels have no gradient, and label smoothing comes after them",
        cost="one copy of each image; with labels by attention, queries, keys and weights of the last block once more",
    )
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Both parameters of the Beta distribution of the kept fraction of the image; 1 is the uniform distribution."""
    patches: Annotated[int, Field(ge=2)] = 4
    """Patches along each side of the image."""
    masks: Literal["batch", "image"] = "batch"
    """Draw the patches once for the whole `batch`, or for each `image`."""
    labels: Literal["area", "attention"] = "area"
    """Mixes the targets by the `area` of the patches, or moves from there to the `attention` that they get as the
    predictions approach the mixed targets. Topologies must not merge tokens then, and need more than one token in the
    last block: as-vit has one for every 32 pixels of an image's side, squared."""

    @property
    def reads_attention(self) -> bool:
        """Whether the labels follow the attention of the model."""
        return self.labels == "attention"

    def mix_two(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Mixture]":
        """Replace random patches with those of a partner."""
        import torch

        size = images.shape[-1]
        share = draw_share(self.alpha, generator)
        num_masks = len(images) if self.masks == "image" else 1
        kept = draw_masks(num_masks, size, max(1, -(-size // self.patches)), share, generator).to(images.device)
        partners = draw_partners(images, generator)
        mixed = torch.where(kept[:, None], images, images[partners])
        return mixed, Mixture(targets, targets[partners], kept.expand(len(images), -1, -1))

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "Generator") -> "tuple[Tensor, Tensor]":
        """Replace random patches with those of a partner, and mix the targets by the areas."""
        mixed, mixture = self.mix_two(images, targets, generator=generator)
        return mixed, mixture.targets(mixture.areas)

    def shares(self, mixture: Mixture, attention: "Tensor", logits: "Tensor") -> "Tensor":
        """See `progressive_shares`."""
        return progressive_shares(mixture, attention, logits)
