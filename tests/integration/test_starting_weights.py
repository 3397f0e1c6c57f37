"""Studies and trainings that start from the weights of an existing model."""

import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_configuration
from orchestrator.study.access import UnknownStudyError, delete_study, find_champion, find_study
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import CommandLine, Rows, read_rows, run_here
from trainers.config import Configuration
from trainers.weights.errors import WeightsError

SAME = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,8"
SMALLER = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
LARGER = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,16"
OTHER_SPACE = "autoformer:2,2|16,8"
DATA = "data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}"

FIRST = f"""\
study: first
{DATA}
stages:
  - {{stage: train, topologies: ["{SAME}"], num_trials: 1, epochs: 2, recipe: {{batch_size: 16}}}}
  - stage: promote
"""
SECOND = f"""\
study: second
{DATA}
engine: optuna
resources: {{trials_per_pack: 2}}
stages:
  - stage: train
    topologies: ["{SAME}", "{SMALLER}", "{LARGER}"]
    weights: first@champion
    num_trials: 4
    epochs: 2
    sampler: random
    recipe: {{batch_size: 16, learning_rate: {{low: 1e-4, high: 1e-3, log: true}}}}
  - stage: averaging
    num_trials: 2
    methods: [last, {{name: lawa, window: 2}}]
  - stage: promote
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished study."""
    home = tmp_path_factory.mktemp("first")
    run_here(write(home, FIRST), home / "home")
    return home / "home"


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, list[str]]:
    """A home in which a second study started from the first, its rows, and what it said."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(first, folder / "home")
    progress = RecordingProgress()
    run_here(write(folder, SECOND), folder / "home", progress=progress)
    return folder / "home", read_rows(folder / "home", "second"), [told.value for told in progress.of("note")]


def test_trials_start_from_the_weights_as_far_as_they_fit(second: tuple[Path, Rows, list[str]]) -> None:
    _, rows, notes = second
    found = rows.stages["train"].result["weights"]
    assert found["source"] == "first@champion"
    assert found["topologies"][SAME] == "starts from all weights as they are"
    assert "selected from larger ones" in found["topologies"][SMALLER]
    assert found["topologies"][LARGER].startswith("starts from random weights, because no layer of it")
    said = [note for note in notes if "weights first@champion" in note]
    assert len(said) == 3
    assert f"weights first@champion: {SAME} starts from all weights as they are" in said


def test_a_model_that_continues_is_ahead_from_the_first_epoch(
    first: Path, second: tuple[Path, Rows, list[str]]
) -> None:
    before = read_rows(first, "first").curves["train"][0]
    after = second[1].curves["train"][0]
    assert after[0].train_loss < before[0].train_loss


def test_a_killed_study_resumes_the_same_though_its_source_was_deleted(
    first: Path, second: tuple[Path, Rows, list[str]], tmp_path: Path
) -> None:
    home, stop = tmp_path / "home", Switch()
    shutil.copytree(first, home)

    def react(told: Told) -> None:
        stop.on = stop.on or told.what == "epoch"

    file = write(tmp_path, SECOND)
    assert run_here(file, home, progress=RecordingProgress(react), control=stop).state == "interrupted"
    settings = load_settings(home=home, tracking=False)
    delete_study(find_study("first", settings), settings)
    progress = RecordingProgress()
    assert run_here(file, home, progress=progress).state == "complete"
    whole, resumed = (rows.curves["train"] for rows in (second[1], read_rows(home, "second")))
    for one, other in zip(whole, resumed, strict=True):
        assert [report.val_loss for report in other] == pytest.approx([report.val_loss for report in one], rel=1e-4)


@pytest.mark.slow
def test_workers_of_ray_start_from_the_same_weights(
    first: Path, second: tuple[Path, Rows, list[str]], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
    shutil.copytree(first, tmp_path / "home")
    on_ray = SECOND.replace("engine: optuna\nresources: {trials_per_pack: 2}", "engine: ray")
    run_here(write(tmp_path, on_ray), tmp_path / "home")
    found, expected = (rows.curves["train"][:3] for rows in (read_rows(tmp_path / "home", "second"), second[1]))
    for one, other in zip(found, expected, strict=True):
        assert [report.val_loss for report in one] == pytest.approx([report.val_loss for report in other], rel=1e-4)


def test_the_champions_configuration_names_its_weights_and_trains_again(
    second: tuple[Path, Rows, list[str]], tmp_path: Path, command_line: CommandLine
) -> None:
    home, _, _ = second
    printed = command_line("best", "second", home=home)
    file = tmp_path / "best.yaml"
    file.write_text(printed.out)
    weights = Configuration.model_validate(yaml.safe_load(printed.out)).weights
    assert weights is not None
    assert weights.source == "first@champion"
    again = command_line("train", file, "--out", tmp_path / "again", home=home)
    assert again.status == 0, again.err
    assert "weights first@champion: starts from" in again.err
    card = yaml.safe_load((tmp_path / "again" / "model.yaml").read_text())
    assert card["configuration"]["weights"] == {"source": "first@champion", "sha256": weights.sha256, "file": None}
    champion = find_champion("second", load_settings(home=home))
    ours = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert ours == (Path(champion["folder"]) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("nobody@champion", "there is no study 'nobody'"),
        ("second@champion", "must be those of another study"),
        ("gone.safetensors", "must be a readable file or a model folder"),
    ],
)
def test_weights_that_cannot_be_used_are_reported_before_anything_is_written(
    first: Path, tmp_path: Path, weights: str, problem: str
) -> None:
    file = write(tmp_path, SECOND.replace("first@champion", weights))
    with pytest.raises((WeightsError, UnknownStudyError), match=problem):
        run_here(file, first)
    with pytest.raises(UnknownStudyError):
        find_study("second", load_settings(home=first))


def test_a_study_whose_topologies_all_belong_to_another_space_fails(first: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(first, home)
    text = SECOND.replace(f'"{SAME}", "{SMALLER}", "{LARGER}"', f'"{OTHER_SPACE}"')
    study = run_here(write(tmp_path, text), home)
    assert study.state == "failed"
    assert "must fit at least one topology of stage 'train', but fit none" in str(study.reason)


def test_paths_of_weights_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    content = {"data": {"source": "digits"}, "topology": SAME, "recipe": {}, "epochs": 1, "seed": 0, "weights": "model"}
    file.write_text(yaml.safe_dump(content))
    assert load_configuration(file).weights is not None
    found = load_configuration(file).weights
    assert found is not None
    assert found.source == str(tmp_path / "model")
    named = load_configuration(file, overrides={"weights": "photos@champion"}).weights
    assert named is not None
    assert named.source == "photos@champion"


def test_the_other_command_is_named_for_a_file_of_the_other_kind(tmp_path: Path, command_line: CommandLine) -> None:
    study, best = write(tmp_path, FIRST), tmp_path / "best.yaml"
    content = {"data": {"source": "digits"}, "topology": SAME, "recipe": {}, "epochs": 1, "seed": 0}
    best.write_text(yaml.safe_dump(content))
    wrong = command_line("run", best)
    assert wrong.status == 2
    assert f"Train it with: vitsearch train {best}" in wrong.err
    wrong = command_line("train", study)
    assert wrong.status == 2
    assert f"Run it with: vitsearch run {study}" in wrong.err
