"""Digests the source code behind a result, so that the result is recomputed if and only if that code changes.

Imports are followed in the syntax trees; nothing is imported or executed.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path

OWN_PACKAGES = frozenset({"plugins", "search_spaces", "trainers"})
"""Packages whose source always counts, in addition to the packages of the roots."""
_WITH_STATEMENTS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of statements that contain other statements."""


def code_digest(roots: Iterable[str], *, packages: Iterable[str] = (), distributions: Iterable[str] = ()) -> str:
    """SHA-256, in hex, of the source of some modules and of all first-party modules that they import.

    First-party are `OWN_PACKAGES`, `packages` and the top-level packages of the roots. Imports inside functions count;
    imports for type checkers (`if TYPE_CHECKING:`) do not.

    Args:
        roots: Full module names.
        packages: Further top-level packages whose source counts if it is imported.
        distributions: Installed distributions whose version counts, such as torch.

    Raises:
        ModuleNotFoundError: A root cannot be found.
    """
    waiting = sorted(set(roots))
    first_party = OWN_PACKAGES | set(packages) | {name.partition(".")[0] for name in waiting}
    for name in waiting:
        if _find(name) is None:
            raise ModuleNotFoundError(
                f"module {name!r} must be installed, but it cannot be found. Install it.", name=name
            )
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] not in first_party:
            continue
        seen.add(name)
        waiting += _imports(name)
    lines = [f"{name} {digest}" for name in sorted(seen) if (digest := _source_digest(name))]
    lines += [f"{name}=={_version(name)}" for name in sorted(distributions)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@cache
def top_level_packages(distribution: Distribution) -> frozenset[str]:
    """Top-level packages and modules that a distribution declares."""
    listed = (distribution.read_text("top_level.txt") or "").split()
    modules = (file for file in distribution.files or () if file.suffix == ".py")
    return frozenset({*listed, *(file.parts[0].removesuffix(".py") for file in modules)})


@cache
def _find(name: str) -> ModuleSpec | None:
    """Find a module without importing its parents."""
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # `__main__` and the like have no spec
        return None
    outer = _find(parent)
    if outer is None or outer.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(outer.submodule_search_locations))


@cache
def _source(name: str) -> bytes | None:
    """Content of a module's file; `None` if it has none (a namespace package, a built-in module)."""
    spec = _find(name)
    if spec is None or not spec.origin or not spec.has_location:
        return None
    return Path(spec.origin).read_bytes()


@cache
def _source_digest(name: str) -> str | None:
    source = _source(name)
    return None if source is None else hashlib.sha256(source).hexdigest()


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Modules that a module imports, and the packages around it, whose `__init__` runs first."""
    spec, source = _find(name), _source(name)
    parent = name.rpartition(".")[0]
    found = [parent] if parent else []
    if spec is None or source is None or not str(spec.origin).endswith(".py"):
        return tuple(found)
    package = name if spec.submodule_search_locations is not None else parent
    for node in _import_statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
            continue
        module = _absolute(node, package)
        found.append(module)
        # `from package import name` imports a module if there is one of that name.
        found += [inner for alias in node.names if _find(inner := f"{module}.{alias.name}") is not None]
    return tuple(found)


def _import_statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
        else:  # expressions, which are most nodes, contain no imports
            waiting += (inner for name in _WITH_STATEMENTS for inner in getattr(node, name, ()))


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
