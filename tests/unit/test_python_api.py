"""Names of `import vitsearch`, the time and modules of the import, and folders that hide one of our packages."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitsearch
from plugins import protocols

ROOT = Path(__file__).resolve().parents[2]
OURS = ("orchestrator", "plugins", "search_spaces", "trainers")

# Finds our packages after everything on sys.path, as an editable install by setuptools does.
EDITABLE = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location

class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in {(*OURS, "vitsearch")}:
            folder = {str(ROOT)!r} + "/" + name
            return spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])

sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Editable)
"""


def python(*arguments: str, cwd: Path, path: Path | None = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with another one on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


# --- names ---


def test_the_public_names_are_sorted_and_are_what_dir_shows() -> None:
    assert sorted(set(vitsearch.__all__)) == vitsearch.__all__
    assert dir(vitsearch) == vitsearch.__all__


@pytest.mark.parametrize("name", vitsearch.__all__)
def test_a_public_name_exists(name: str) -> None:
    assert getattr(vitsearch, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "vitsearch" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen.update({alias.name: node.module for alias in node.names})
    assert sorted({*seen, "__version__"}) == vitsearch.__all__
    assert seen == vitsearch._HOME_OF


def test_every_protocol_and_value_of_plugins_is_public() -> None:
    defined = {
        name
        for name, value in vars(protocols).items()
        if isinstance(value, type) and value.__module__.startswith(f"{protocols.__name__}.")
    }
    assert len(defined) > 30
    assert defined - set(vitsearch.__all__) == set()
    assert vitsearch.PluginCard is protocols.PluginCard


def test_the_version_is_that_of_the_installed_package() -> None:
    assert vitsearch.__version__ == importlib.metadata.version("vitsearch")


def test_a_name_that_does_not_exist_is_an_attribute_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="no attribute 'run_studdy'"):
        vitsearch.run_studdy  # noqa: B018
    done = python("-c", "import vitsearch; vitsearch.run_studdy", cwd=tmp_path)
    assert "Did you mean: 'run_study'?" in done.stderr


# --- what an import costs ---


def test_the_import_loads_no_other_package(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import vitsearch; print(*sorted(set(sys.modules) - before))"
    done = python("-c", code, cwd=tmp_path)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "vitsearch" in loaded, done.stderr
    assert loaded - sys.stdlib_module_names == {"vitsearch"}


@pytest.mark.parametrize("use", ["PluginCard", "load_study('study.yaml')"])
def test_protocols_and_study_files_do_not_need_torch(tmp_path: Path, use: str) -> None:
    (tmp_path / "study.yaml").write_text("study: a\ndata: {source: digits}\nstages: [{stage: screen, num_trials: 2}]\n")
    heavy = "{'torch', 'optuna', 'mlflow', 'ray', 'pandas', 'sqlalchemy'}"
    done = python("-c", f"import sys, vitsearch; vitsearch.{use}; print({heavy} & set(sys.modules))", cwd=tmp_path)
    assert done.stdout.strip() == "set()", done.stderr


# --- folders that hide our packages ---


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("arguments", [("-c", "import vitsearch"), ("-m", "vitsearch", "--version")])
def test_a_package_of_the_caller_that_hides_ours_is_named(
    name: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = python(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        f"ImportError: vitsearch must find its own package {name!r} in {ROOT / name}, but Python finds the folder "
        f"{tmp_path / name} first. Rename that folder, or run Python where it is not on the path (sys.path, "
        "PYTHONPATH)."
    )


def test_a_module_of_the_caller_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "trainers.py").touch()
    done = python("-c", "import vitsearch", cwd=tmp_path)
    assert f"finds the file {tmp_path / 'trainers.py'} first. Rename that file" in done.stderr


def test_a_hiding_module_that_is_already_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "plugins.py").touch()
    done = python("-c", "import plugins, sys; sys.path.pop(0); import vitsearch", cwd=tmp_path)
    assert f"finds the file {tmp_path / 'plugins.py'} first" in done.stderr


def test_a_folder_without_init_hides_a_package_of_an_editable_install_only(tmp_path: Path) -> None:
    (tmp_path / "trainers").mkdir()
    use = "import vitsearch; from vitsearch import DataError"
    assert python("-c", use, cwd=tmp_path).returncode == 0
    done = python("-c", EDITABLE + use, cwd=tmp_path, path=None)
    assert f"Python finds the folder {tmp_path / 'trainers'} first" in done.stderr


@pytest.mark.parametrize("prefix", ["", EDITABLE])
def test_other_folders_of_the_caller_do_not_matter(tmp_path: Path, prefix: str) -> None:
    for name in ("mlflow", "studies", "tests", "benchmarks"):
        (tmp_path / name).mkdir()
    done = python("-c", prefix + "import vitsearch; from vitsearch import DataError", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_source_tree_itself_hides_nothing() -> None:
    assert python("-c", "import vitsearch", cwd=ROOT, path=None).returncode == 0


# --- studies without running them ---


def test_a_study_is_read_from_a_file_or_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path / "home"))
    given = {"study": "a", "data": {"source": "digits"}, "stages": ({"stage": "screen", "num_trials": 2},)}
    file = tmp_path / "study.yaml"
    file.write_text("study: a\ndata: {source: digits}\nstages: [{stage: screen, num_trials: 2}]\n")
    spec = vitsearch.load_study(file)
    assert isinstance(spec, vitsearch.StudySpec)
    assert spec == vitsearch.load_study(str(file)) == vitsearch.load_study(given)
    assert vitsearch.load_study(given, overrides={"seed": 3}).seed == 3
    assert "seed" not in given


def test_a_mistake_in_a_study_is_a_spec_error(tmp_path: Path) -> None:
    given = {"study": "a", "data": {"source": tmp_path / "photos"}, "stages": [{"stage": "screen", "num_trials": 2}]}
    with pytest.raises(vitsearch.SpecError, match=r"the study: data\.source: must be .*photos"):
        vitsearch.load_study(given, home=tmp_path)
    with pytest.raises(vitsearch.SpecError, match=r"nowhere\.yaml: must be a YAML file, but does not exist"):
        vitsearch.load_study(tmp_path / "nowhere.yaml", home=tmp_path)
