"""Rules about the folders of the project, the contents of the wheel, and imports."""

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from plugins import registry

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "plugins", "search_spaces", "trainers", "vitsearch")
PAGE_FOLDERS = ("orchestrator/api/static", "orchestrator/api/templates")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY_POINTS = {
    group.removeprefix("vitsearch."): points
    for group, points in PROJECT["project"]["entry-points"].items()
    if group.startswith("vitsearch.")
}

# Alembic requires `upgrade` and `downgrade` in each migration. The other names must be made unique.
SHARED_NAMES = frozenset(
    {
        "Linear",
        "downgrade",
        "evaluate",
        "fail",
        "layer_norm",
        "main",
        "upgrade",
    }
)

# Functions of the public API whose names others have: those of the functions that they call, and `tables.load`.
PUBLIC = frozenset({"load", "load_model", "run_study"})

# A subprocess imports everything that a bare GPU machine needs, while the other packages are blocked.
BARE_MACHINE = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"optuna", "ray", "mlflow", "sqlalchemy", "alembic", "fastapi"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
for root in ("search_spaces", "trainers", "plugins"):
    package = importlib.import_module(root)
    for found in pkgutil.walk_packages(package.__path__, f"{root}."):
        if not found.name.startswith("plugins.samplers"):
            importlib.import_module(found.name)
from plugins import registry
for kind in registry.KINDS:
    if kind != "samplers":
        for name in registry.available(kind):
            registry.load(kind, name)
print(sum(name.partition(".")[0] in ("search_spaces", "trainers", "plugins") for name in sys.modules))
"""

FIRST_IMPORTS = """
import sys
import search_spaces.as_vit, search_spaces.recipes, search_spaces.costs
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "optuna", "mlflow"}))
"""


def modules_of(root: Path) -> set[str]:
    """Paths in the wheel of all Python files of our packages."""
    return {path.relative_to(root).as_posix() for package in PACKAGES for path in (root / package).rglob("*.py")}


def test_the_mlflow_folder_holds_no_python_and_mlflow_is_the_installed_package() -> None:
    assert list((ROOT / "mlflow").rglob("*.py")) == []
    done = subprocess.run(
        [sys.executable, "-c", "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"],
        cwd=ROOT,  # here, Python would find our folder as a namespace package if MLflow were not installed
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).name == "__init__.py"
    assert ROOT / "mlflow" not in Path(done.stdout.strip()).parents


def test_the_list_of_packages_is_the_tree() -> None:
    tree = {Path(module).parent.as_posix().replace("/", ".") for module in modules_of(ROOT)}
    assert sorted(tree) == PROJECT["tool"]["setuptools"]["packages"]
    missing = [folder for folder in tree if not (ROOT / folder.replace(".", "/") / "__init__.py").exists()]
    assert missing == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the parts of the tree that it needs and some that it must leave out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "tests", "mlflow"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("vitsearch-*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        points = content.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    metadata = {name for name in names if ".dist-info/" in name}
    assert {name for name in names - metadata if name.endswith(".py")} == modules_of(ROOT)
    assert "orchestrator/store/migrations/versions/0001_initial.py" in names
    others = {name for name in names - metadata if not name.endswith(".py")}
    pages = {path.relative_to(ROOT).as_posix() for part in PAGE_FOLDERS for path in (ROOT / part).iterdir()}
    data = {"orchestrator/reports/measured_effects.json"}
    assert others == {f"{package}/py.typed" for package in PACKAGES} | pages | data
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert {name.partition("/")[0] for name in names - metadata} == set(PACKAGES)
    assert "vitsearch = vitsearch.__main__:main" in points
    assert "length-distortion = plugins.proxies.length_distortion:LengthDistortion" in points


@pytest.fixture
def empty_environment(wheel: Path, tmp_path: Path) -> Path:
    """Python of a new environment with the wheel in it, and the packages that it needs, but not this tree."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    places = sysconfig.get_paths("venv", vars={"base": str(folder), "platbase": str(folder)})
    with zipfile.ZipFile(wheel) as content:
        content.extractall(places["purelib"])
    # A folder named in a .pth file is on the path, but its own .pth files, one of which finds this tree, are not read.
    needed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (Path(places["purelib"]) / "needed.pth").write_text("\n".join(needed), encoding="utf-8")
    return Path(places["scripts"]) / "python"


@pytest.mark.slow
def test_the_page_on_python_works_with_the_wheel_in_an_empty_environment(
    empty_environment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (study,) = (block for language, block in blocks if language == "yaml")
    (folder / "first.yaml").write_text(study, encoding="utf-8")
    Image.new("L", (30, 40), 200).save(folder / "new.png")
    examples = [block for language, block in blocks if language == "python"]
    where = "import orchestrator, vitsearch; print(orchestrator.__file__, vitsearch.__file__)"
    (folder / "page.py").write_text("\n\n".join([*examples, where]), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(empty_environment), "page.py"],
        cwd=folder,
        env=environment | {"VITSEARCH_HOME": str(tmp_path / "home"), "VITSEARCH_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(examples) > 5
    assert all(tmp_path / "environment" in Path(file).parents for file in done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ENTRY_POINTS for name in ENTRY_POINTS[kind]])
def test_a_declared_plugin_is_installed_and_loads(kind: str, name: str) -> None:
    assert kind in registry.KINDS
    assert registry.available(kind)[name].value == ENTRY_POINTS[kind][name]
    plugin = registry.load(kind, name)
    module, _, attribute = ENTRY_POINTS[kind][name].partition(":")
    assert plugin is getattr(importlib.import_module(module), attribute)
    assert plugin.__doc__


def test_every_plugin_class_in_the_tree_is_declared() -> None:
    declared = {target for points in ENTRY_POINTS.values() for target in points.values()}
    found = set()
    for path in (path for kind in registry.KINDS for path in (ROOT / "plugins" / kind).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == "card"
                for line in node.body
            ):
                found.add(f"plugins.{path.parent.name}.{path.stem}:{node.name}")
    assert len(found) > 10
    assert found - declared == set()


def test_a_public_class_or_function_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for module in sorted(modules_of(ROOT)):
        for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    for name in PUBLIC:
        places[name] = [module for module in places[name] if not module.startswith("vitsearch/")]
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES}
    assert twice == {}, "rename all but one, so that a name means one thing"
    assert {name for name in SHARED_NAMES if len(places.get(name, [])) < 2} == set(), "remove these from SHARED_NAMES"


def test_every_make_target_is_phony_or_a_file() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    assert targets == phony
    assert {"install", "quickstart", "test", "check", "bench", "ui", "clean"} <= targets


def test_the_numeric_packages_run_without_optuna_ray_mlflow_and_sqlalchemy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE_MACHINE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_search_spaces_are_plain_data(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORTS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_console_script_is_the_main_function() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="vitsearch")
    assert script.load() is importlib.import_module("vitsearch.__main__").main
