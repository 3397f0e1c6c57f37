"""Formulas that are saved as text files and loaded by name, like any other proxy.

A file `NAME.txt` holds a formula on one line. Empty lines and comments, which start with `#`, are ignored.
"""

from collections.abc import Sequence
from dataclasses import field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.expression import Expression
from plugins.proxies.formula_text import FormulaError, parse
from plugins.proxies.formulas import Formula
from plugins.registry import FORMULA_NAME, FORMULA_SUFFIX, SavedFormula, available, clear_caches, provider
from plugins.regular_files import read_regular_file

_MAX_BYTES = 64 * 1024
_FITTED_TO = "# fitted to: "
"""Start of the comment with the digests of the accuracies on which a formula was searched."""


class SavedFormulaError(ImportError):
    """A saved formula cannot be loaded; the message names the file."""


def load_formula(path: Path) -> type[Expression]:
    """Load a formula from a file as a proxy class: `Expression` with a fixed formula.

    Raises:
        SavedFormulaError: The file cannot be read, does not have exactly one line that is not a comment, or this line
            is not a formula.
    """
    formula, fitted_to = _read(path)
    return _expression_class(path, str(formula), fitted_to)


def saving_problem(folder: Path, name: str) -> str | None:
    """Why a formula cannot be saved under this name, or `None` if it can."""
    if not FORMULA_NAME.fullmatch(name):
        return (
            "a name must start with a-z or 0-9 and continue with a-z 0-9 . _ - (at most 63 characters in total), but "
            f"got {name!r}. Choose another name."
        )
    installed = available("proxies").get(name)
    if installed is not None and not isinstance(installed, SavedFormula):
        package = provider("proxies", name)
        return f"a formula needs a unique name, but {name!r} is a proxy of {package}. Choose another name."
    path = folder / f"{name}{FORMULA_SUFFIX}"
    if path.exists():
        return f"saved formulas are never overwritten, but {path} exists. Choose another name or remove the file."
    return None


def save_formula(folder: Path, name: str, formula: Formula, *, comments: str, fitted_to: Sequence[str] = ()) -> Path:
    """Write a formula to a new file in a folder, with comments and the digests of the accuracies that it was fitted to.

    Raises:
        ValueError: The formula cannot be saved under this name.
    """
    problem = saving_problem(folder, name)
    if problem is not None:
        raise ValueError(problem)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{FORMULA_SUFFIX}"
    seen = [f"{_FITTED_TO}{' '.join(fitted_to)}"] if fitted_to else []
    about = "\n".join([*(f"# {line}".rstrip() for line in comments.splitlines()), *seen])
    with path.open("x", encoding="utf-8") as file:
        file.write(f"{about}\n{formula}\n")
    clear_caches()
    return path


def _read(path: Path) -> tuple[Formula, tuple[str, ...]]:
    """The formula, and the digests of the accuracies that it was fitted to."""
    try:
        lines = read_regular_file(path, max_bytes=_MAX_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SavedFormulaError(f"{path} must be a text file with a formula, but it cannot be read ({error})") from None
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and line.lstrip()[0] != "#"]
    if len(found) != 1:
        raise SavedFormulaError(f"{path} must have one line with a formula, apart from comments, but has {len(found)}")
    ((number, line),) = found
    digests = [digest for one in lines if one.startswith(_FITTED_TO) for digest in one[len(_FITTED_TO) :].split()]
    try:
        return parse(line), tuple(digests)
    except FormulaError as error:
        raise SavedFormulaError(f"{path}, line {number}, {error}") from None


@cache
def _expression_class(path: Path, formula: str, fitted_to: tuple[str, ...]) -> type[Expression]:
    card = PluginCard(source=f"the formula in {path}", cost=Expression.card.cost, needs=Expression.card.needs)
    fields: list[tuple[str, Any, Any]] = [
        ("card", ClassVar[PluginCard], card),
        ("formula", Literal[formula], field(default=formula)),
    ]
    made = make_dataclass(
        "SavedExpression",
        fields,
        bases=(Expression,),
        namespace={"__doc__": formula, "fitted_to": fitted_to},
        frozen=True,
        kw_only=True,
    )
    made.__module__ = __name__
    return made
