"""ROOT: Muon with outliers cut off, and with orthogonal updates whose accuracy does not depend on a matrix's shape."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.block_matrices import MatrixOptimizer
from plugins.optimizers.orthogonal import orthogonalize
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


def without_outliers(matrices: "Tensor", *, quantile: float) -> "Tensor":
    """Each matrix less its outliers, the part above a threshold: `sign(m) min(|m|, threshold)`.

    Args:
        matrices: Shape (K, rows, columns).
        quantile: The threshold is this quantile of the magnitudes in each matrix, rounded up to one of them; 1 leaves
            the matrices unchanged.
    """
    magnitudes = matrices.abs().flatten(1)
    count = magnitudes.shape[1]
    rank = min(max(round(quantile * count), 1), count)
    if rank == count:
        return matrices
    thresholds = magnitudes.kthvalue(rank, dim=1).values[:, None, None]
    return matrices.clamp(-thresholds, thresholds)


@dataclass(frozen=True, kw_only=True)
class Root(MatrixOptimizer):
    """ROOT as a plug-in. As with Muon, the updates of matrices are scaled to the length of AdamW's."""

    name: ClassVar[str] = "root"
    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "He et al. 2025, arXiv:2511.20626: quintic iterations with coefficients for each matrix shape, and a soft "
            "threshold that removes outliers of the momentum. The authors' coefficients and threshold are not public. "
            "Ours: the best polynomials (Amsel et al. 2025, arXiv:2505.16932) from the smallest typical singular value "
            "of a random matrix of the shape upward, and a quantile of each matrix. Scale of the updates as in Liu et "
            "al. 2025, arXiv:2502.16982"
        ),
        cost=(
            "two numbers of state per parameter, and per matrix and step a sort and 3 matrix products for each "
            "iteration, in float32"
        ),
        needs=("a model with transformer blocks",),
    )
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Quantile of the magnitudes in a matrix at which they are cut off; 1 cuts off none."""
    num_iterations: Annotated[int, Field(ge=1, le=20)] = 6
    """Iterations that make an update orthogonal; 5 suffice for matrices of up to 64 rows or columns."""

    def directions(self, gradients: "list[Tensor]", momenta: "list[Tensor]") -> "Tensor":
        """The orthogonal factors of momenta without outliers."""
        import torch

        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_add_(momenta, gradients)
        robust = without_outliers(torch.stack(momenta), quantile=self.quantile)
        return orthogonalize(robust, num_iterations=self.num_iterations)
