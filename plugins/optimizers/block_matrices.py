"""What Muon and ROOT share: own steps for the weight matrices of blocks, and AdamW for all other parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from plugins.optimizers.adamw import start_adamw, update_adamw
from plugins.protocols import OptimizerState, ParameterLayout, Segment
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor

_FUSED = ".attn.qkv.weight"
_MATRICES = (_FUSED, ".attn.proj.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")
"""Suffixes of the names of a block's weight matrices (`plugins.protocols.TransformerBlock`)."""


class Matrix(NamedTuple):
    """A weight matrix in a flat row."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        """Index after its last number."""
        return self.start + self.rows * self.columns

    def view(self, values: "Tensor") -> "Tensor":
        """The matrix as a view (rows, columns) into values (P,)."""
        return values[self.start : self.stop].view(self.rows, self.columns)


def by_shape(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Matrices grouped by their shape, in order of appearance."""
    groups: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.rows, matrix.columns), []).append(matrix)
    return list(groups.values())


def is_block_matrix(name: str, num_dimensions: int) -> bool:
    """Whether a parameter is a weight matrix of a block."""
    return num_dimensions == 2 and f".{name}".endswith(_MATRICES)


@lru_cache(maxsize=64)
def block_matrices(layout: ParameterLayout, *, split_qkv: bool) -> tuple[Matrix, ...]:
    """The weight matrices of the blocks.

    Args:
        layout: Layout of the row.
        split_qkv: Whether to split the fused weight of queries, keys and values into three matrices. A weight is not
            split if its number of rows is not a multiple of 3.
    """
    matrices: list[Matrix] = []
    for name, shape, start in zip(layout.names, layout.shapes, layout.starts, strict=True):
        if not is_block_matrix(name, len(shape)):
            continue
        rows, columns = shape
        parts = 3 if split_qkv and f".{name}".endswith(_FUSED) and rows % 3 == 0 else 1
        size = rows // parts * columns
        matrices += [Matrix(start + part * size, rows // parts, columns) for part in range(parts)]
    return tuple(matrices)


@lru_cache(maxsize=64)
def other_segments(layout: ParameterLayout) -> tuple[Segment, ...]:
    """The segments of a row that hold all other parameters, as few as possible."""
    segments: list[Segment] = []
    last = -2
    for index, (name, shape, start) in enumerate(zip(layout.names, layout.shapes, layout.starts, strict=True)):
        if is_block_matrix(name, len(shape)):
            continue
        decays = index < layout.num_decayed
        stop = start + shape.numel()
        if index == last + 1 and segments[-1].decays == decays:
            segments[-1] = segments[-1]._replace(stop=stop)
        else:
            segments.append(Segment(start, stop, decays))
        last = index
    return tuple(segments)


@dataclass(frozen=True, kw_only=True)
class MatrixOptimizer(ABC):
    """Updates the matrices of attention and MLP in its own way.

    AdamW updates the embedding, norms, biases, convolutions, layers between stages and the head.
    """

    name: ClassVar[str]
    """Name of the plug-in, for messages."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the momentum of the matrices' gradients."""
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
        if not block_matrices(layout, split_qkv=False):
            raise ValueError(
                f"optimizer {self.name}: the model must have blocks with the linear layers attn.qkv, attn.proj, "
                f"mlp.fc1 and mlp.fc2, but its parameters are {', '.join(layout.names[:4])}, ... Choose the optimizer "
                "adamw."
            )
        return start_adamw(values)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step on the matrices and one of AdamW on all other parameters, in place."""
        import torch

        learning_rate = settings.learning_rate * self.learning_rate_factor
        for group in by_shape(block_matrices(layout, split_qkv=self.split_qkv)):
            own, gradients, momenta = (
                [matrix.view(row) for matrix in group] for row in (values, gradient, state["exp_avg"])
            )
            steps = self.directions(gradients, momenta)
            # Orthogonal matrices scaled like this have the root mean square of an AdamW step.
            length = 0.2 * max(group[0].rows, group[0].columns) ** 0.5
            torch._foreach_mul_(own, 1 - learning_rate * settings.weight_decay)
            torch._foreach_add_(own, list(steps.unbind()), alpha=-learning_rate * length)
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

    @abstractmethod
    def directions(self, gradients: "list[Tensor]", momenta: "list[Tensor]") -> "Tensor":
        """Orthogonal matrices (K, rows, columns), against which the weights are moved.

        Args:
            gradients: K gradients of one shape (rows, columns).
            momenta: Their momenta, 0 at the start; updated in place.
        """
