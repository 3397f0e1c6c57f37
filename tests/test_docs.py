"""Links, commands, snippets, tables and examples of README, docs/ and studies/ are correct."""

import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import vitsearch
from benchmarks._effects import measured_effects
from orchestrator.cli.main import app
from orchestrator.reports.plugin_facts import EFFECTS
from orchestrator.settings import Settings
from orchestrator.spec.stage_registry import STAGES
from orchestrator.spec.study_file import load_spec
from plugins import registry
from plugins.protocols import CurvePoint
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from tests.docs_reference import block_names, undocumented, with_current_blocks
from trainers.champion import load_model, save_model
from trainers.config import Configuration, DataConfig
from trainers.data.images import load_images
from trainers.export_formats import ExportFormat
from trainers.exporting import export_model
from trainers.models.building import build_model
from trainers.tasks.scoring import make_candidate
from trainers.yaml_source import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
TOPOLOGY = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

OTHER_COMMANDS = frozenset(
    {
        *("alias", "cd", "chmod", "cp", "createdb", "curl", "docker", "echo", "export", "git", "mlflow", "pip", "sudo"),
        ".venv/bin/pytest",
    }
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# A study around a snippet that is only a part of one.
FRAME: dict[str, Any] = {
    "study": "snippet",
    "data": {"source": "digits"},
    "stages": [
        {"stage": "screen", "num_trials": 8},
        {"stage": "train", "num_trials": 8, "epochs": 20, "keep_checkpoints": 20},
    ],
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str, language: str) -> list[str]:
    """Fenced blocks of a text in one language."""
    return [block for found, block in _FENCE.findall(text) if found == language]


def blocks(language: str) -> list[Any]:
    """Fenced blocks of one language in all pages, as parameters of a test."""
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(fences(page.read_text(encoding="utf-8"), language))
    ]


def anchors(text: str) -> set[str]:
    """Valid anchors of a page, without `#`."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", _FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def test_the_readme_tells_the_size_of_the_quickstart() -> None:
    stages = {stage.stage: stage for stage in load_spec(ROOT / "studies" / "quickstart.yaml").stages}
    screen, train = stages["screen"], stages["train"]
    size = f"scores {screen.num_trials} topologies, trains {train.num_trials} models"  # type: ignore[union-attr]
    assert size in read("README.md")


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    assert [
        page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name}" not in read("README.md")
    ] == []


def test_pictures_are_small_and_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 200_000
        assert f"images/{picture.name})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_made_from_code_is_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wanted = with_current_blocks(text)
    if os.environ.get("WRITE_DOCS"):
        page.write_text(wanted, encoding="utf-8")
        return
    assert wanted == text, "regenerate the docs with: WRITE_DOCS=1 pytest tests/test_docs.py"


def test_cards_tell_what_was_measured() -> None:
    text = json.dumps(measured_effects(), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("WRITE_DOCS"):
        EFFECTS.write_text(text, encoding="utf-8")
        return
    assert EFFECTS.read_text(encoding="utf-8") == text, "regenerate it with: WRITE_DOCS=1 pytest tests/test_docs.py"


def test_every_stage_and_every_kind_of_plugin_has_its_place_in_the_docs() -> None:
    assert set(STAGES) <= set(block_names(read("docs/study-file.md")))
    kinds = {name.removeprefix("plugins:") for name in block_names(read("docs/plugin-reference.md"))}
    assert kinds == set(registry.KINDS) - {"models"}


def test_every_field_and_setting_says_what_it_means() -> None:
    assert list(undocumented()) == []


@pytest.mark.parametrize("snippet", blocks("yaml"))
def test_a_yaml_snippet_is_a_valid_study_or_part_of_one(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "snippet.yaml"
    file.write_text(snippet, encoding="utf-8")
    given = read_yaml(file).data
    if "stages" not in given:
        file.write_text(json.dumps(in_frame(given)), encoding="utf-8")
    load_spec(file, overrides={"data.source": "digits"})


def in_frame(given: dict[str, Any]) -> dict[str, Any]:
    """A complete study with the given `data`, `recipe`, `criteria` or `methods`."""
    screen, train = FRAME["stages"]
    study = {**FRAME, "stages": [screen, {**train, "recipe": given.pop("recipe", {})}]}
    for key, stage in (("criteria", "stopping"), ("methods", "averaging")):
        if key in given:
            study["stages"].append({"stage": stage, "num_trials": 4, key: given.pop(key)})
    return {**study, **given}


@pytest.mark.parametrize("block", blocks("console"))
def test_a_command_line_is_one_that_exists(block: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for line in block.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets
        elif words[:1] in (["vitsearch"], ["as_service"]):  # docs/deploy.md defines the second
            arguments = words[2 : words.index(">") if ">" in words else None]
            COMMANDS[words[1]].make_context(words[1], arguments)  # raises for invalid arguments
        elif words[:1] == ["ray"]:
            pytest.importorskip("ray", reason="Ray is not installed, whose command the page names")
            from ray.scripts.scripts import cli

            cli.commands[words[1]].make_context(words[1], words[2:])
        elif words:
            assert words[0] in OTHER_COMMANDS, line


def test_the_readme_lists_all_commands_and_the_pages_no_others() -> None:
    listed = set(re.findall(r"^\| `vitsearch ([a-z]+)", read("README.md"), re.MULTILINE))
    assert listed == set(COMMANDS)
    for page in PAGES:
        named = set(re.findall(r"`vitsearch ([a-z]+)", page.read_text(encoding="utf-8")))
        assert named <= set(COMMANDS), page.name


def test_variables_of_the_environment_that_the_pages_name_exist() -> None:
    known = {f"VITSEARCH_{name.upper()}" for name in Settings.model_fields}
    for page in PAGES:
        assert set(re.findall(r"VITSEARCH_[A-Z_]+", page.read_text(encoding="utf-8"))) <= known, page.name


@pytest.fixture
def example_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package of the README into a temporary folder."""
    (project,) = fences(read("README.md"), "toml")
    (code,) = fences(read("README.md"), "python")
    facts = tomllib.loads(project)["project"]
    module = code.splitlines()[0].removeprefix("# ")
    (tmp_path / module).write_text(code, encoding="utf-8")
    info = tmp_path / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n", encoding="utf-8"
    )
    lines = []
    for group, points in facts["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry.clear_caches()
    yield
    sys.modules.pop(module.removesuffix(".py"), None)
    registry.clear_caches()


@pytest.mark.usefixtures("example_package")
def test_the_example_proxy_of_the_readme_is_found_and_scores(tmp_path: Path) -> None:
    assert registry.provider("proxies", "my-synflow") == "my-scores 0.1"
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    task = ImageTask(image_size=32, in_channels=3, num_classes=10)
    scores = []
    for topology in (TOPOLOGY, TOPOLOGY.replace("|32,8", "|32,16")):
        candidate = make_candidate(parse_topology(topology), images, task, seed=1)
        score = registry.create("proxies", "my-synflow").score(candidate)
        assert score == registry.create("proxies", "my-synflow").score(candidate)
        scores.append(score.value)
    assert scores[0] < scores[1] < float("inf")
    screen = {**FRAME["stages"][0], "proxies": ["length-distortion", "my-synflow", "params"]}
    (tmp_path / "study.yaml").write_text(json.dumps({**FRAME, "stages": [screen]}), encoding="utf-8")
    (stage,) = load_spec(tmp_path / "study.yaml").stages
    assert stage.ranking == ("length-distortion", "my-synflow")  # type: ignore[union-attr]


def test_the_example_criterion_of_the_docs_stops_at_its_threshold() -> None:
    (code,) = fences(read("docs/plugins.md"), "python")
    found: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/plugins.md", "exec"), found)
    criterion = found["Threshold"](accuracy=0.8)
    assert criterion.reason_to_stop([]) is None
    assert criterion.reason_to_stop([CurvePoint(1, 1.0, 1.0, 0.79)]) is None
    assert "0.8" in criterion.reason_to_stop([CurvePoint(1, 1.0, 1.0, 0.79), CurvePoint(2, 0.9, 0.9, 0.81)])


def test_the_example_of_the_docs_predicts_with_a_saved_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_untrained(tmp_path / "champion", "digits")
    Image.new("RGB", (40, 30)).save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    code, *_ = fences(read("docs/own-images.md"), "python")
    exec(compile(code, "docs/own-images.md", "exec"), {"__name__": "example"})
    path, label, probability = capsys.readouterr().out.split()
    assert (path, label in "0123456789", 0 < float(probability) < 1) == ("new.jpg", True, True)


def test_the_example_of_an_exported_model_gives_what_predict_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, which the page names")
    save_untrained(tmp_path / "photos", "noise")
    predictor = load_model(tmp_path / "photos", device=torch.device("cpu"))
    export_model(predictor, tmp_path / "photos.onnx", ExportFormat.onnx)
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    code = fences(read("docs/own-images.md"), "python")[-1]
    exec(compile(code, "docs/own-images.md", "exec"), {"__name__": "example"})
    label, probability = capsys.readouterr().out.split()
    (expected,) = predictor.predict("new.jpg")
    assert (label, float(probability)) == (expected.label, pytest.approx(expected.probability, abs=1e-4))


def save_untrained(folder: Path, source: str) -> None:
    """Save a model with its initial weights."""
    config = DataConfig(source=source, max_images=100)
    data = load_images(config)
    configuration = Configuration(data=config, topology=TOPOLOGY, recipe=Recipe(), epochs=1, seed=0)
    weights = build_model(TOPOLOGY, data.task, seed=0, device=torch.device("cpu")).state_dict()
    save_model(folder, weights, configuration=configuration, data=data, metrics={})


def test_the_page_on_python_names_all_that_is_public() -> None:
    names = re.findall(r"`(\w+)`", read("docs/python.md").partition("## All names")[2])
    assert sorted(names) == vitsearch.__all__


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_an_example_study_is_valid_and_says_what_it_costs_and_gives(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    head = dict(re.findall(r"^# (\w+):\s+(\S.*)$", text.partition("\nstudy:")[0], re.MULTILINE))
    assert f"vitsearch run studies/{file.name}" in head["Command"]
    assert "core" in head["Hardware"]
    for measured in ("Time", "Result"):
        assert re.search(r"\d", head[measured]), f"{measured} of {file.name} must be a measurement"
    load_spec(file, overrides={"data.source": "digits"})
