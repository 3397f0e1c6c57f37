"""Deep supervision: classifiers of inner features, whose losses are added in training only."""

import torch
from torch import Tensor, nn

from trainers.models.blocks import layer_norm
from trainers.models.stacking import Linear

AUXILIARY = "auxiliary"
"""Name of the heads in a model."""


class AuxiliaryHead(nn.Module):
    """A norm and a linear classifier of pooled features, (B, D) to (B, classes)."""

    def __init__(self, width: int, num_classes: int, *, normalization: bool, eps: float) -> None:
        super().__init__()
        self.norm = layer_norm(width, normalization=normalization, eps=eps)
        self.classify = Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.norm(features))
        return logits


class AuxiliaryHeads(nn.ModuleList):
    """The classifiers of one model, one for each width, in the order of the blocks that they follow.

    Source: Lee et al. 2015, Deeply-Supervised Nets, arXiv:1409.5185; weight of the losses as in Szegedy et al. 2015,
    arXiv:1409.4842.
    """

    def __init__(
        self, widths: tuple[int, ...], num_classes: int, *, normalization: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__(AuxiliaryHead(width, num_classes, normalization=normalization, eps=eps) for width in widths)


def auxiliary_heads(model: nn.Module) -> AuxiliaryHeads | None:
    """The auxiliary heads of a model, its module `auxiliary`; `None` if it has none."""
    heads = getattr(model, AUXILIARY, None)
    return heads if isinstance(heads, AuxiliaryHeads) else None


def with_auxiliary(logits: Tensor, heads: AuxiliaryHeads, features: list[Tensor]) -> Tensor:
    """Logits of the model and of its auxiliary heads, (B, 1 + heads, classes).

    Args:
        logits: The model's own, shape (B, classes).
        heads: The heads.
        features: The features (B, D) of each head.
    """
    others = [head(inner) for head, inner in zip(heads, features, strict=True)]
    return torch.stack([logits, *(other.to(logits.dtype) for other in others)], 1)
