"""Formulas for training-free scores, as plain data: expression trees over statistics of a network's blocks.

A formula has three levels. A *statistic* reduces a tensor of a block to a number: `frobenius(minmax(mlp.weight))` is a
reduction of an input after at most one transform, so the number of statistics is finite. Unary and binary operations
then combine these numbers, block by block. Finally, an aggregate combines all blocks into one score::

    mean(frobenius(minmax(attention.weight)) + sqrt(sigmoid(mean(mlp.gradient))))

A higher score is better. A formula starts with a minus sign if lower values are better.

`plugins.proxies.formula_text.parse` parses the text form.

Source: Wei et al. 2024 (Auto-Prox), arXiv:2312.09059, whose score is the example; the types are ours.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

QUANTITIES = ("weight", "gradient", "saliency", "activation", "activation_gradient", "stream")
INPUTS = tuple(f"{part}.{quantity}" for part in ("attention", "mlp") for quantity in QUANTITIES)
"""Tensors of a block; `plugins.proxies.block_statistics` defines them."""
UNARY = ("abs", "log", "sqrt", "square", "sigmoid", "relu", "tanh")
"""Functions of each element of a tensor, or of a number per block. `log` and `sqrt` use the absolute value."""
TRANSFORMS = (*UNARY, "minmax", "standardize", "center")
"""Transforms of a tensor.

`minmax` maps it to [0, 1], `standardize` to mean 0 and standard deviation 1, and `center` each column to mean 0.
"""
ELEMENTWISE = ("mean", "l1", "frobenius", "std")
"""Reductions of all elements: mean, mean absolute value, square root of the sum of squares, standard deviation."""
SPECTRAL = ("nuclear", "spectral", "effective_rank", "entropy")
"""Reductions of the singular values s: their sum; the largest; exp of the entropy of s / sum(s); the entropy of
s^2 / sum(s^2). They allow an input without a transform or with `center`."""
REDUCTIONS = (*ELEMENTWISE, *SPECTRAL)
BINARY = ("+", "-", "*", "/")
AGGREGATES = ("mean", "sum", "logsum")
"""Aggregates over the blocks of a network; `logsum` sums the logarithms of the absolute values."""
MAX_SIZE = 63
"""Maximum number of inputs and operations of a formula."""

_CONSTANT = frozenset({("mean", "standardize"), ("std", "standardize"), ("mean", "center")})
_REDUNDANT = frozenset(
    {("l1", name) for name in ("abs", "sqrt", "square", "sigmoid", "relu", "minmax")}
    | {("mean", "abs"), ("frobenius", "abs")}
)
"""Reductions with transforms that equal another statistic: the l1 of a non-negative tensor is its mean."""


@dataclass(frozen=True)
class Statistic:
    """A number per block: a reduction of a tensor."""

    reduction: str
    input: str
    transform: str | None = None

    @property
    def size(self) -> int:
        """Number of inputs and operations."""
        return 2 if self.transform is None else 3

    def __str__(self) -> str:
        tensor = self.input if self.transform is None else f"{self.transform}({self.input})"
        return f"{self.reduction}({tensor})"


@dataclass(frozen=True)
class Unary:
    """An operation on a number per block."""

    operation: str
    operand: "Node"

    @cached_property
    def size(self) -> int:
        """Number of inputs and operations."""
        return 1 + self.operand.size

    def __str__(self) -> str:
        return f"{self.operation}({self.operand})"


@dataclass(frozen=True)
class Binary:
    """An operation on two numbers per block."""

    operation: str
    left: "Node"
    right: "Node"

    @cached_property
    def size(self) -> int:
        """Number of inputs and operations."""
        return 1 + self.left.size + self.right.size

    def __str__(self) -> str:
        precedence = _precedence(self)
        left = f"({self.left})" if _precedence(self.left) < precedence else f"{self.left}"
        right = f"({self.right})" if _precedence(self.right) <= precedence else f"{self.right}"
        return f"{left} {self.operation} {right}"


Node = Statistic | Unary | Binary


@dataclass(frozen=True)
class Formula:
    """An expression tree with an aggregate over the blocks and a sign."""

    tree: Node
    aggregate: str = "mean"
    negated: bool = False

    @property
    def size(self) -> int:
        """Number of inputs and operations, including the aggregate but not the sign."""
        return 1 + self.tree.size

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The distinct statistics of the formula, from left to right."""
        return tuple(dict.fromkeys(node for node in nodes(self.tree) if isinstance(node, Statistic)))

    def __str__(self) -> str:
        return f"{'-' if self.negated else ''}{self.aggregate}({self.tree})"


def all_statistics() -> tuple[Statistic, ...]:
    """All distinct statistics of the grammar, in a fixed order."""
    return tuple(
        statistic
        for name, transform, reduction in itertools.product(INPUTS, (None, *TRANSFORMS), REDUCTIONS)
        if (reduction, transform) not in _REDUNDANT
        and problem(statistic := Statistic(reduction, name, transform)) is None
    )


def problem(statistic: Statistic) -> str | None:
    """Why the grammar excludes a statistic with known parts, or `None` if it does not."""
    reduction, transform = statistic.reduction, statistic.transform
    if reduction in SPECTRAL and transform not in (None, "center"):
        return f"{reduction} needs an input without a transform or with center, but got {transform}({statistic.input})."
    if (reduction, transform) in _CONSTANT:
        return f"{reduction}({transform}(...)) is the same number for every tensor. Choose another reduction."
    return None


def nodes(tree: Node) -> Iterator[Node]:
    """All nodes of a tree, parents before children, from left to right."""
    yield tree
    if isinstance(tree, Unary):
        yield from nodes(tree.operand)
    elif isinstance(tree, Binary):
        yield from nodes(tree.left)
        yield from nodes(tree.right)


def evaluate(
    formula: Formula, values: Mapping[Statistic, "Vector"], starts: "NDArray[np.intp]", *, counts: "NDArray[np.intp]"
) -> "Vector":
    """Compute the score of every network.

    Args:
        formula: The formula to evaluate.
        values: For each statistic of the formula, its values in the blocks of all networks, one network after the
            other; shape (R,), float64.
        starts: Index of the first block of each network, shape (T,).
        counts: Number of blocks of each network, at least 1, shape (T,).

    Returns:
        Scores, shape (T,). A score is not finite if an operation has no finite result.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        blocks = _evaluate(formula.tree, values)
        if formula.aggregate == "logsum":
            blocks = np.log(np.abs(blocks))
        scores: Vector = np.add.reduceat(blocks, starts)
        if formula.aggregate == "mean":
            scores = scores / counts
        return -scores if formula.negated else scores


def _evaluate(node: Node, values: Mapping[Statistic, "Vector"]) -> "Vector":
    if isinstance(node, Statistic):
        return values[node]
    if isinstance(node, Unary):
        return _unary(node.operation, _evaluate(node.operand, values))
    left, right = _evaluate(node.left, values), _evaluate(node.right, values)
    match node.operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right


def _unary(operation: str, x: "Vector") -> "Vector":
    import numpy as np

    match operation:
        case "abs":
            return np.abs(x)
        case "log":
            return np.log(np.abs(x))
        case "sqrt":
            return np.sqrt(np.abs(x))
        case "square":
            return np.square(x)
        case "sigmoid":
            return (np.tanh(x / 2) + 1) / 2
        case "relu":
            return np.maximum(x, 0)
        case _:
            return np.tanh(x)


def _precedence(node: Node) -> int:
    """Precedence of the operator of a node."""
    if isinstance(node, Binary):
        return 1 if node.operation in "+-" else 2
    return 3
