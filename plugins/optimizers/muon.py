"""Muon: orthogonal updates of the blocks' weight matrices, and AdamW for all other parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.block_matrices import MatrixOptimizer
from plugins.optimizers.orthogonal import Quintic, apply_in_turn, matrix_norms
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_POLYNOMIAL = Quintic(3.4445, -4.7750, 2.0315)
"""The Newton-Schulz polynomial, as in `torch.optim.Muon`."""
_SMALLEST_NORM = 1e-7


@dataclass(frozen=True, kw_only=True)
class Muon(MatrixOptimizer):
    """Muon as a plug-in. Matrices of one shape are updated together.

    Muon's updates are scaled to the length of AdamW's, so that the same learning rate and weight decay suit the
    matrices and the other parameters.
    """

    name: ClassVar[str] = "muon"
    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; learning rate matched to AdamW's as in Liu "
            "et al. 2025, arXiv:2502.16982; as `torch.optim.Muon`, with separate queries, keys and values"
        ),
        cost=(
            "two numbers of state per parameter, and 15 small matrix products per matrix and step, in float32 on a CPU "
            "and bfloat16 on a GPU"
        ),
        needs=("a model with transformer blocks",),
    )
    nesterov: bool = True
    """Whether to look ahead along the momentum (Nesterov)."""
    num_iterations: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations that make an update orthogonal."""

    def directions(self, gradients: "list[Tensor]", momenta: "list[Tensor]") -> "Tensor":
        """The momenta, with most singular values between 0.7 and 1.2."""
        import torch

        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, momenta, self.momentum) if self.nesterov else momenta
        stacked = torch.stack(ahead)
        # bfloat16 suffices, but most CPUs compute it more slowly than float32.
        x = stacked.bfloat16() if stacked.is_cuda else stacked
        x = x / matrix_norms(x).clamp_min(_SMALLEST_NORM)
        return apply_in_turn([_POLYNOMIAL] * self.num_iterations, x).to(stacked.dtype)
