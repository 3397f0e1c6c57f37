"""There are no import cycles between modules or between folders, including imports inside functions."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "plugins", "search_spaces", "trainers", "vitsearch")

Graph = Mapping[str, frozenset[str]]


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all imports, including those inside functions and TYPE_CHECKING blocks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(root: Path) -> Graph:
    """The modules that each module of our packages imports."""
    paths = {name_of(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}

    def module_of(name: str) -> str | None:
        """The module with a dotted name, or the module that defines it."""
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return name or None

    graph = {}
    for module, path in paths.items():
        found = {module_of(name) for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
        graph[module] = frozenset(name for name in found if name is not None and name != module)
    return graph


def folder_graph(modules: Graph, depth: int) -> Graph:
    """The folders that each folder imports; a folder is a module name cut to `depth` parts."""

    def folder_of(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    graph: dict[str, set[str]] = {}
    for module, targets in modules.items():
        folder = folder_of(module)
        graph.setdefault(folder, set()).update({folder_of(target) for target in targets} - {folder})
    return {folder: frozenset(targets) for folder, targets in graph.items()}


def cycles(graph: Graph) -> list[list[str]]:
    """The sets of nodes that reach each other (strongly connected components of two nodes or more)."""
    reached = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(graph[node])
        reached[start] = seen
    components = {
        frozenset({node, *(other for other in seen if node in reached[other])})
        for node, seen in reached.items()
        if node in seen
    }
    return sorted(sorted(component) for component in components)


@pytest.fixture(scope="module")
def modules() -> Graph:
    return import_graph(ROOT)


def test_no_modules_import_each_other_in_a_cycle(modules: Graph) -> None:
    assert cycles(modules) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_folders_import_each_other_in_a_cycle(modules: Graph, depth: int) -> None:
    assert cycles(folder_graph(modules, depth)) == []


def test_imports_in_functions_and_for_type_checkers_count(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    for name, text in {
        "one": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trainers.two import Two\n",
        "two": "def late():\n    from trainers import three\n",
        "three": "import trainers.one\n",
        "four": "import trainers.one\nimport json\n",
    }.items():
        (tmp_path / "trainers" / f"{name}.py").write_text(text, encoding="utf-8")
    graph = import_graph(tmp_path)
    assert graph["trainers.four"] == {"trainers.one"}
    assert cycles(graph) == [["trainers.one", "trainers.three", "trainers.two"]]
    assert cycles(folder_graph(graph, 1)) == []
