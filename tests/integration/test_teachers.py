"""Studies and trainings that learn from a trained model."""

import shutil
from pathlib import Path

import pytest
import yaml

from orchestrator.settings import load_settings
from orchestrator.spec.study_file import SpecError, load_configuration, load_spec
from orchestrator.stages.teaching import StageTeacher
from orchestrator.study.access import UnknownStudyError, delete_study, find_champion, find_study
from orchestrator.study.reusing import with_teacher
from tests.fakes import RecordingProgress
from tests.tiny import CommandLine, Rows, read_rows, run_here
from trainers.config import Configuration
from trainers.weights.errors import WeightsError

LARGE = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,8"
SMALL = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
DATA = "data: {source: digits, image_size: 32, max_images: 80, max_test_images: 40}"

STUDY = f"""\
study: taught
{DATA}
engine: optuna
pool: inline
stages:
  - {{stage: train, name: large, topologies: ["{LARGE}"], num_trials: 2, epochs: 1, sampler: random,
     recipe: {{batch_size: 16, learning_rate: {{low: 1e-3, high: 4e-3}}}}}}
  - stage: train
    name: small
    topologies: ["{SMALL}"]
    teacher: large@best
    num_trials: 3
    epochs: 2
    sampler: random
    recipe:
      batch_size: 16
      loss: [soft-distillation, cross-entropy, {{name: hard-distillation, weight: {{low: 0.3, high: 0.9}}}}]
  - stage: promote
"""
NEXT = f"""\
study: next
{DATA}
engine: optuna
pool: inline
stages:
  - stage: train
    topologies: ["{SMALL}"]
    teacher: taught@champion
    num_trials: 1
    epochs: 1
    recipe: {{batch_size: 16, loss: teacher-labels, augmentation: shift}}
  - stage: promote
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, list[str]]:
    """A home with a study whose second stage learned from the first, its rows, and what it said."""
    folder, progress = tmp_path_factory.mktemp("taught"), RecordingProgress()
    assert run_here(write(folder, STUDY), folder / "home", progress=progress).state == "complete"
    return folder / "home", read_rows(folder / "home", "taught"), [told.value for told in progress.of("note")]


def test_trials_learn_from_the_best_trial_of_an_earlier_stage(taught: tuple[Path, Rows, list[str]]) -> None:
    _, rows, notes = taught
    best = rows.stages["large"].result["best"]["trial"]
    teacher = StageTeacher.model_validate(rows.stages["small"].result["teacher"])
    assert teacher.source == f"taught/large@trial-{best}"
    assert teacher.topology == LARGE
    assert f"teacher {teacher.source}: {LARGE}" in notes
    losses = {trial.point["recipe.loss"] for trial in rows.trials["small"]}
    assert "soft-distillation" in losses
    macs = {trial.point["recipe.loss"]: trial.metrics["training_macs"] for trial in rows.trials["small"]}
    assert all(macs[loss] > macs["cross-entropy"] for loss in losses - {"cross-entropy"} if "cross-entropy" in losses)


def test_the_champion_of_another_study_teaches(taught: tuple[Path, Rows, list[str]], tmp_path: Path) -> None:
    shutil.copytree(taught[0], tmp_path / "home")
    assert run_here(write(tmp_path, NEXT), tmp_path / "home").state == "complete"
    rows, settings = read_rows(tmp_path / "home", "next"), load_settings(home=tmp_path / "home", tracking=False)
    teacher = rows.stages["train"].result["teacher"]
    assert teacher["source"] == "taught@champion"
    card = yaml.safe_load((Path(find_champion("taught", settings)["folder"]) / "model.yaml").read_text())
    assert teacher["sha256"] == card["weights_sha256"]
    assert card["configuration"]["teacher"]["file"] is None


def test_the_configuration_of_a_pupil_trains_again(
    taught: tuple[Path, Rows, list[str]], tmp_path: Path, command_line: CommandLine
) -> None:
    home = taught[0]
    printed = command_line("best", "taught", home=home)
    configuration = Configuration.model_validate(yaml.safe_load(printed.out))
    assert configuration.teacher is not None
    file = tmp_path / "best.yaml"
    file.write_text(printed.out, encoding="utf-8")
    again = command_line("train", file, "--out", tmp_path / "again", home=home)
    assert again.status == 0, again.err
    champion = find_champion("taught", load_settings(home=home))
    ours = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert ours == (Path(champion["folder"]) / "model.safetensors").read_bytes()

    settings, folder = load_settings(home=home), tmp_path / "checkpoints"
    moved = configuration.teacher.model_copy(update={"file": None})
    found = with_teacher(configuration.model_copy(update={"teacher": moved}), folder, settings).teacher
    assert found is not None
    assert found.file == folder / f"initial-{moved.sha256[:16]}.safetensors"
    other = moved.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(WeightsError, match="must be a trial that taught in its study"):
        with_teacher(configuration.model_copy(update={"teacher": other}), folder, settings)


def test_a_teacher_whose_study_is_gone_is_named(taught: tuple[Path, Rows, list[str]], tmp_path: Path) -> None:
    shutil.copytree(taught[0], tmp_path / "home")
    settings = load_settings(home=tmp_path / "home", tracking=False)
    file = tmp_path / "one.yaml"
    file.write_text(
        f"{DATA}\ntopology: {SMALL}\nepochs: 1\nseed: 0\nteacher: taught@champion\n"
        "recipe: {loss: soft-distillation}\n",
        encoding="utf-8",
    )
    configuration = with_teacher(load_configuration(file), tmp_path / "checkpoints", settings)
    assert configuration.teacher is not None
    assert configuration.teacher.file is not None
    delete_study(find_study("taught", settings), settings)
    assert with_teacher(configuration, tmp_path / "checkpoints", settings) is configuration  # it has a copy
    with pytest.raises(UnknownStudyError):
        with_teacher(load_configuration(file), tmp_path / "checkpoints", settings)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "teacher: large@best",
            "teacher: big@best",
            "teacher: must be one of the train stages before this one (large)",
        ),
        (
            "teacher: large@best",
            "teacher: other/large@best",
            "teacher: must be a trial of an earlier stage of this study",
        ),
        (
            "    teacher: large@best\n",
            "",
            "recipe.loss: the loss `soft-distillation` needs a trained model to learn from",
        ),
        (
            "loss: [soft-distillation, cross-entropy, {name: hard-distillation, weight: {low: 0.3, high: 0.9}}]",
            "loss: focal",
            "teacher: must be read by a loss of the recipe, but none does. Add one of them to recipe.loss (",
        ),
        (
            "loss: [soft-distillation, cross-entropy, {name: hard-distillation, weight: {low: 0.3, high: 0.9}}]",
            "loss: [soft-distillation, early-learning]\n      mixing: [none, mixup]",
            "recipe.mixing: must be none with the loss `early-learning`, which keeps a state of each image, but is mix",
        ),
        (
            "loss: [soft-distillation, cross-entropy, {name: hard-distillation, weight: {low: 0.3, high: 0.9}}]",
            "loss: [soft-distillation, {name: guidance, guide: 'as-vit:1'}]",
            "recipe.loss: the guide of `guidance` must be a topology, but",
        ),
    ],
)
def test_a_teacher_or_loss_that_cannot_work_is_refused_at_its_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in STUDY
    with pytest.raises(SpecError) as error:
        load_spec(write(tmp_path, STUDY.replace(old, new)))
    assert message in str(error.value)
