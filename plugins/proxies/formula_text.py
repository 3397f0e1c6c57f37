"""Parses the text form of `plugins.proxies.formulas`. Errors name the column, the expected token and the token found.

    formula = ["-"] aggregate "(" sum ")"
    sum     = product {("+" | "-") product}
    product = atom {("*" | "/") atom}
    atom    = input | operation "(" sum ")" | "(" sum ")"

Some operations have the same name for tensors and for numbers per block. The type of the operand decides.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from plugins.proxies.formulas import (
    AGGREGATES,
    INPUTS,
    MAX_SIZE,
    REDUCTIONS,
    TRANSFORMS,
    UNARY,
    Binary,
    Formula,
    Node,
    Statistic,
    Unary,
    problem,
)

_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z_0-9.]*|[-+*/()])")


class FormulaError(ValueError):
    """A text is not a valid formula.

    Attributes:
        column: Column of the error, starting at 1.
    """

    def __init__(self, message: str, *, column: int) -> None:
        self.column = column
        super().__init__(f"at column {column}: {message}")


def parse(text: str) -> Formula:
    """Parse a formula; the inverse of `str(formula)`.

    Raises:
        FormulaError: The text does not follow the grammar. The message names the column, the expected token and the
            token found.
    """
    return _Parser(text).formula()


@dataclass(frozen=True)
class _Tensor:
    """An input, possibly transformed."""

    input: str
    transform: str | None = None

    def __str__(self) -> str:
        return self.input if self.transform is None else f"{self.transform}({self.input})"


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Names, operators and brackets, each with its column."""
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            message = f"a formula consists of names, + - * / and brackets, but got {text[column - 1]!r}."
            raise FormulaError(message, column=column)
        yield match[1], match.start(1) + 1
        at = match.end()


class _Parser:
    """A recursive-descent parser with one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._end = len(text.rstrip()) + 1
        self._tokens = list(_tokens(text))
        self._next = 0
        self._open = 0

    def formula(self) -> Formula:
        negated = self._take("-")
        size = sum(part not in "()" for part, _ in self._tokens[self._next :])
        if size > MAX_SIZE:
            self._fail(f"a formula may have at most {MAX_SIZE} inputs and operations, but this one has {size}.", 1)
        aggregate, column = self._peek()
        if aggregate not in AGGREGATES:
            must = f"a formula must start with one of {', '.join(AGGREGATES)}, such as mean(l1(mlp.gradient))"
            self._fail(f"{must}, but got {aggregate or 'the end'!r}.", column)
        self._next += 1
        self._expect("(", f"after {aggregate}")
        start = self._peek()[1]
        tree = self._block_number(self._sum(), f"the aggregate {aggregate}", start)
        self._expect(")", f"to close {aggregate}")
        found, column = self._peek()
        if found:
            self._fail(f"nothing may follow the aggregate, but got {found!r}.", column)
        return Formula(tree, aggregate, negated)

    def _sum(self) -> Node | _Tensor:
        return self._chain("+-")

    def _chain(self, operators: str) -> Node | _Tensor:
        below = self._atom if operators == "*/" else lambda: self._chain("*/")
        start = self._peek()[1]
        left = below()
        while self._peek()[0] and self._peek()[0] in operators:
            operator = self._tokens[self._next][0]
            self._next += 1
            first = self._block_number(left, f"{operator!r}", start)
            after = self._peek()[1]
            left = Binary(operator, first, self._block_number(below(), f"{operator!r}", after))
        return left

    def _atom(self) -> Node | _Tensor:
        token, column = self._peek()
        if self._take("("):
            inner = self._nested()
            self._expect(")", "to close a bracket")
            return inner
        if token in INPUTS:
            self._next += 1
            return _Tensor(token)
        if token not in TRANSFORMS and token not in REDUCTIONS:
            self._unknown(token, column)
        self._next += 1
        self._expect("(", f"after {token}")
        start = self._peek()[1]
        inner = self._nested()
        self._expect(")", f"to close {token}")
        return self._applied(token, inner, column, start)

    def _nested(self) -> Node | _Tensor:
        self._open += 1
        if self._open > MAX_SIZE:
            self._fail(f"at most {MAX_SIZE} brackets may be open at once.", self._peek()[1])
        inner = self._sum()
        self._open -= 1
        return inner

    def _applied(self, name: str, inner: Node | _Tensor, column: int, start: int) -> Node | _Tensor:
        """Apply an operation to its operand. The type of the operand decides between operations of the same name."""
        if isinstance(inner, _Tensor):
            if name in REDUCTIONS:
                statistic = Statistic(name, inner.input, inner.transform)
                why = problem(statistic)
                if why is not None:
                    self._fail(why, column)
                return statistic
            if inner.transform is not None:
                message = f"a tensor allows one transform at most, but got {name}({inner}). Reduce it after the first"
                self._fail(f"{message}, such as mean({inner}).", column)
            return _Tensor(inner.input, name)
        if name not in UNARY:
            message = f"{name} needs a tensor, such as {name}(mlp.weight), but {str(inner)!r} is a number per block."
            self._fail(message, start)
        return Unary(name, inner)

    def _block_number(self, found: Node | _Tensor, user: str, column: int) -> Node:
        if isinstance(found, _Tensor):
            message = f"{user} needs a number per block, but {str(found)!r} is a tensor. Reduce it, for example by"
            self._fail(f"{message} l1({found}).", column)
        return found

    def _unknown(self, token: str, column: int) -> NoReturn:
        if not token or not token[0].isalpha():
            self._fail(f"expected an input or an operation, but got {token or 'the end'!r}.", column)
        if "." in token:
            kind, names = "an input", INPUTS
        else:
            kind, names = "an operation", tuple(dict.fromkeys((*TRANSFORMS, *REDUCTIONS)))
        nearest = get_close_matches(token, names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        if token in AGGREGATES:
            hint = " It is an aggregate, which is only allowed at the start."
        self._fail(f"{kind} must be one of {', '.join(names)}, but got {token!r}.{hint}", column)

    def _peek(self) -> tuple[str, int]:
        """The next token and its column; empty at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else ("", self._end)

    def _take(self, token: str) -> bool:
        taken = self._peek()[0] == token
        self._next += taken
        return taken

    def _expect(self, token: str, where: str) -> None:
        found, column = self._peek()
        if not self._take(token):
            self._fail(f"expected {token!r} {where}, but got {found or 'the end'!r}.", column)

    def _fail(self, message: str, column: int) -> NoReturn:
        raise FormulaError(message, column=column)
