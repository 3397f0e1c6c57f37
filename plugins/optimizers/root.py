"""ROOT: Muon with outliers cut off, and with orthogonal updates whose accuracy does not depend on a matrix's shape."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.adamw import start_adamw, update_adamw
from plugins.optimizers.muon import Matrix, block_matrices, check_has_blocks, other_segments
from plugins.optimizers.orthogonal import orthogonalize
from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

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
class Root:
    """ROOT as a plug-in.

    As with Muon, AdamW updates all parameters that are not matrices of attention and MLP, and the updates of matrices
    are scaled to the length of AdamW's.
    """

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
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the sum of the matrices' gradients."""
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Quantile of the magnitudes in a matrix at which they are cut off; 1 cuts off none."""
    num_iterations: Annotated[int, Field(ge=1, le=20)] = 6
    """Iterations that make an update orthogonal; 5 suffice for matrices of up to 64 rows or columns."""
    split_qkv: bool = True
    """Whether the weights of queries, keys and values, stored as one matrix, are updated as three matrices."""
    learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the matrices, as a factor of the recipe's learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay rate of the running mean of squared gradients."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:
        """The initial state: zeros.

        For the matrices, `exp_avg` holds the momentum and `exp_avg_sq` stays 0.

        Raises:
            ValueError: The model has no blocks.
        """
        check_has_blocks(layout, optimizer="root")
        return start_adamw(values)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step of ROOT on the matrices and one of AdamW on all other parameters, in place."""
        import torch

        rate = settings.learning_rate * self.learning_rate_factor
        for matrices in by_shape(block_matrices(layout, split_qkv=self.split_qkv)):
            momenta = [matrix.view(state["exp_avg"]) for matrix in matrices]
            torch._foreach_mul_(momenta, self.momentum)
            torch._foreach_add_(momenta, [matrix.view(gradient) for matrix in matrices])
            robust = without_outliers(torch.stack(momenta), quantile=self.quantile)
            updates = orthogonalize(robust, num_iterations=self.num_iterations)
            own = [matrix.view(values) for matrix in matrices]
            torch._foreach_mul_(own, 1 - rate * settings.weight_decay)
            # Orthogonal matrices scaled like this have the root mean square of an AdamW step.
            scale = 0.2 * max(matrices[0].rows, matrices[0].columns) ** 0.5
            torch._foreach_add_(own, list(updates.unbind()), alpha=-rate * scale)
        update_adamw(
            layout,
            other_segments(layout),
            values,
            gradient,
            state,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
        )


def by_shape(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Matrices grouped by their shape, in order of appearance."""
    groups: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.rows, matrix.columns), []).append(matrix)
    return list(groups.values())
