"""Guidance: the activations of each block are drawn towards those of an untrained network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-12


def linear_cka(one: "Tensor", other: "Tensor") -> "Tensor":
    """Centred kernel alignment of two activations of the same images, a scalar in [0, 1]; 0 if one is constant.

    Args:
        one: Shape (B, D).
        other: Shape (B, D'), where the width may differ.

    Source: Kornblith et al. 2019, arXiv:1905.00414, Eq. 3 with linear kernels.
    """
    kernels = []
    for activations in (one, other):
        centred = activations - activations.mean(0)
        kernels.append(centred @ centred.T)
    scale = (kernels[0].norm() * kernels[1].norm()).clamp(min=_SMALLEST)
    alignment: Tensor = (kernels[0] * kernels[1]).sum() / scale
    return alignment


def matched_layers(num_layers: int, guides: "Sequence[Tensor]") -> "list[Tensor]":
    """A layer of the guide for each of `num_layers` layers, evenly spread over the guide's depth."""
    return [
        guides[min(((2 * place + 1) * len(guides)) // (2 * num_layers), len(guides) - 1)] for place in range(num_layers)
    ]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Cross-entropy plus `weight * sum over the blocks of (1 - CKA(block, guide's block))`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Subramaniam et al. 2024, arXiv:2410.20035. Here activations are averaged over the tokens of each "
        "image, and blocks are matched by relative depth",
        cost="one forward pass of the guide per image visited, and two B x B products per block",
        needs=("a model with blocks",),
    )
    independent_of_length: ClassVar[bool] = True
    packs: ClassVar[bool] = False
    """It reads the activations of the model, which stacked models do not give away."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the alignment."""
    guide: str | None = None
    """Topology of the untrained network, `space:text`; null for that of the model."""
    guide_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the guide's weights."""

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The layers of both networks."""
        return frozenset({LossInput.LAYERS})

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,); the alignment is that of the batch, and the same for each of its images."""
        from torch.nn import functional as F

        losses = F.cross_entropy(logits, targets, reduction="none")
        guides = matched_layers(len(context.layers), context.guide_layers)
        for own, guide in zip(context.layers, guides, strict=True):
            losses = losses + self.weight * (1 - linear_cka(own.to(logits.dtype), guide.to(logits.dtype)))
        return losses
