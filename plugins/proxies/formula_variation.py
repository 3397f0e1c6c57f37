"""Random formulas and variations of formulas for an evolutionary search, within the grammar and a size limit."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from plugins.proxies.formulas import (
    AGGREGATES,
    BINARY,
    INPUTS,
    REDUCTIONS,
    TRANSFORMS,
    UNARY,
    Binary,
    Formula,
    Node,
    Statistic,
    Unary,
    nodes,
)

MIN_SIZE = 4
"""Size that suffices for a formula with any statistic: an aggregate, a reduction, a transform and an input."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Draws and varies formulas of at most `max_size` inputs and operations."""

    statistics: Sequence[Statistic]
    """Statistics that formulas may contain, at least one."""
    max_size: int
    """At least `MIN_SIZE`."""

    @cached_property
    def _allowed(self) -> frozenset[Statistic]:
        return frozenset(self.statistics)

    def sample(self, rng: random.Random) -> Formula:
        """Draw a random formula."""
        size = rng.randint(MIN_SIZE, self.max_size)
        return Formula(self._tree(rng, size - 1), rng.choice(AGGREGATES))

    def mutate(self, formula: Formula, rng: random.Random) -> Formula:
        """Change a formula in one place.

        The change replaces a part, a subtree or the aggregate, or adds or removes an operation.
        """
        while True:
            kind = rng.choice((self._change, self._change, self._regrow, self._insert, self._remove, self._aggregate))
            varied = kind(formula, rng)
            if varied != formula and varied.size <= self.max_size:
                return varied

    def crossover(self, first: Formula, second: Formula, rng: random.Random) -> Formula:
        """Replace a random subtree of the first formula with one of the second."""
        at = rng.choice(list(nodes(first.tree)))
        room = self.max_size - first.size + at.size
        fitting = [node for node in nodes(second.tree) if node.size <= room]
        return self._put(first, at, rng.choice(fitting)) if fitting else first

    def _tree(self, rng: random.Random, size: int) -> Node:
        """Draw a tree with at most `size` inputs and operations; `size` is at least 3."""
        operations = ["statistic", "unary"] if size > 3 else ["statistic"]
        if size >= 7:
            operations += ["binary", "binary"]
        match rng.choice(operations):
            case "statistic":
                return rng.choice(self.statistics)
            case "unary":
                return Unary(rng.choice(UNARY), self._tree(rng, size - 1))
            case _:
                left = rng.randint(3, size - 4)
                return Binary(rng.choice(BINARY), self._tree(rng, left), self._tree(rng, size - 1 - left))

    def _change(self, formula: Formula, rng: random.Random) -> Formula:
        """Replace an operation, input, transform or reduction."""
        at = rng.choice(list(nodes(formula.tree)))
        if isinstance(at, Unary):
            return self._put(formula, at, replace(at, operation=rng.choice(UNARY)))
        if isinstance(at, Binary):
            return self._put(formula, at, replace(at, operation=rng.choice(BINARY)))
        changed = rng.choice(
            (
                replace(at, input=rng.choice(INPUTS)),
                replace(at, transform=rng.choice((None, *TRANSFORMS))),
                replace(at, reduction=rng.choice(REDUCTIONS)),
            )
        )
        return self._put(formula, at, changed) if changed in self._allowed else formula

    def _regrow(self, formula: Formula, rng: random.Random) -> Formula:
        """Replace a subtree with a random one."""
        at = rng.choice(list(nodes(formula.tree)))
        room = self.max_size - formula.size + at.size
        return self._put(formula, at, self._tree(rng, rng.randint(3, room))) if room >= 3 else formula

    def _insert(self, formula: Formula, rng: random.Random) -> Formula:
        """Insert an operation above a node."""
        at = rng.choice(list(nodes(formula.tree)))
        if rng.random() < 0.5:
            return self._put(formula, at, Unary(rng.choice(UNARY), at))
        pair = [at, rng.choice(self.statistics)]
        rng.shuffle(pair)
        return self._put(formula, at, Binary(rng.choice(BINARY), pair[0], pair[1]))

    def _remove(self, formula: Formula, rng: random.Random) -> Formula:
        """Replace an operation with one of its operands."""
        inner = [node for node in nodes(formula.tree) if not isinstance(node, Statistic)]
        if not inner:
            return formula
        at = rng.choice(inner)
        return self._put(formula, at, at.operand if isinstance(at, Unary) else rng.choice((at.left, at.right)))

    def _aggregate(self, formula: Formula, rng: random.Random) -> Formula:
        return replace(formula, aggregate=rng.choice(AGGREGATES))

    def _put(self, formula: Formula, at: Node, new: Node) -> Formula:
        return replace(formula, tree=_replaced(formula.tree, at, new))


def _replaced(tree: Node, at: Node, new: Node) -> Node:
    """Replace the node `at`, found by identity, with `new`. If the node occurs twice, the first one is replaced."""
    if tree is at:
        return new
    if isinstance(tree, Unary):
        operand = _replaced(tree.operand, at, new)
        return tree if operand is tree.operand else Unary(tree.operation, operand)
    if isinstance(tree, Binary):
        left = _replaced(tree.left, at, new)
        right = _replaced(tree.right, at, new) if left is tree.left else tree.right
        return tree if left is tree.left and right is tree.right else Binary(tree.operation, left, right)
    return tree
