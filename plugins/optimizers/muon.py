"""Muon: orthogonal updates of the blocks' weight matrices, and AdamW for all other parameters."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from plugins.optimizers.adamw import start_adamw, update_adamw
from plugins.protocols import OptimizerState, ParameterLayout, PluginCard, Segment
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor

_FUSED = ".attn.qkv.weight"
_MATRICES = (_FUSED, ".attn.proj.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")
"""Suffixes of the names of a block's weight matrices (`plugins.protocols.TransformerBlock`)."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial, as in `torch.optim.Muon`."""


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


def check_has_blocks(layout: ParameterLayout, *, optimizer: str) -> None:
    """Raise ValueError if a model has no weight matrices of blocks."""
    if not block_matrices(layout, split_qkv=False):
        raise ValueError(
            f"optimizer {optimizer}: the model must have blocks with the linear layers attn.qkv, attn.proj, mlp.fc1 "
            f"and mlp.fc2, but its parameters are {', '.join(layout.names[:4])}, ... Choose the optimizer adamw."
        )


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
class Muon:
    """Muon as a plug-in; `torch.optim` does the arithmetic.

    Muon updates the matrices of attention and MLP. AdamW updates the embedding, norms, biases, convolutions, layers
    between stages and the head. Muon's updates are scaled to the length of AdamW's, so that the same learning rate and
    weight decay suit both.
    """

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
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the running mean of the matrices' gradients."""
    nesterov: bool = True
    """Whether to look ahead along the momentum (Nesterov)."""
    num_iterations: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations that make an update orthogonal."""
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
        check_has_blocks(layout, optimizer="muon")
        return start_adamw(values)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step of Muon on the matrices and one of AdamW on all other parameters, in place."""
        from torch.optim._muon import muon

        matrices = block_matrices(layout, split_qkv=self.split_qkv)
        muon(
            [matrix.view(values) for matrix in matrices],
            [matrix.view(gradient) for matrix in matrices],
            [matrix.view(state["exp_avg"]) for matrix in matrices],
            lr=settings.learning_rate * self.learning_rate_factor,
            weight_decay=settings.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients=_COEFFICIENTS,
            ns_steps=self.num_iterations,
            eps=1e-7,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
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
