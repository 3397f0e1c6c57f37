"""Muon: orthogonal updates of the blocks' weight matrices, and AdamW for all other parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.block_matrices import Matrix, MatrixOptimizer
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial, as in `torch.optim.Muon`."""


@dataclass(frozen=True, kw_only=True)
class Muon(MatrixOptimizer):
    """Muon as a plug-in; `torch.optim` does the arithmetic.

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
            "two numbers of state per parameter, and 15 small matrix products per matrix and step in bfloat16, which "
            "is slow on a CPU"
        ),
        needs=("a model with transformer blocks",),
    )
    nesterov: bool = True
    """Whether to look ahead along the momentum (Nesterov)."""
    num_iterations: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations that make an update orthogonal."""

    def update_matrices(
        self,
        matrices: Sequence[Matrix],
        values: "Tensor",
        gradient: "Tensor",
        momenta: "Tensor",
        *,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        """Take one step of Muon."""
        from torch.optim._muon import muon

        muon(
            [matrix.view(values) for matrix in matrices],
            [matrix.view(gradient) for matrix in matrices],
            [matrix.view(momenta) for matrix in matrices],
            lr=learning_rate,
            weight_decay=weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients=_COEFFICIENTS,
            ns_steps=self.num_iterations,
            eps=1e-7,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
