"""How certain the ranking of a train stage is, as `run` and `status` tell it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.evaluation.ranking_certainty import covariance_of_hits, probability_of_being_best
from orchestrator.spec.study_file import load_spec
from orchestrator.stages.certainty import RankingCertainty
from tests.fakes import RecordingProgress, Told
from tests.tiny import CommandLine, Rows, read_rows, run_here
from tests.unit.training import CPU
from trainers.config import Configuration
from trainers.data.images import load_images
from trainers.tasks.comparing import evenly_spaced, validation_logits

TOPOLOGY = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
STUDY: dict[str, Any] = {
    "study": "certain",
    "data": {"source": "digits", "max_images": 160, "max_test_images": 60},
    "stages": [
        {
            "stage": "train",
            "topologies": [TOPOLOGY],
            "num_trials": 4,
            "epochs": 4,
            "keep_checkpoints": 1,
            "recipe": {"batch_size": 32, "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
        }
    ],
}


def write(folder: Path, **fields: Any) -> Path:
    file = folder / "certain.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **fields}))
    return file


def certainty_of(rows: Rows) -> RankingCertainty:
    return RankingCertainty.model_validate(rows.stages["train"].result["certainty"])


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished study."""
    folder = tmp_path_factory.mktemp("certain")
    progress = RecordingProgress()
    assert run_here(write(folder), folder / "home", progress=progress).state == "complete"
    (note,) = [told.value for told in progress.of("note") if "really the best" in str(told.value)]
    assert "compared image by image" in note
    return folder / "home"


def test_the_probability_is_that_of_a_comparison_image_by_image(certain: Path, tmp_path: Path) -> None:
    rows, spec = read_rows(certain, "certain"), load_spec(write(tmp_path))
    found, data = certainty_of(rows), load_images(spec.data)
    trials = rows.trials["train"]
    models = []
    for trial in trials:
        configuration = Configuration(
            data=spec.data, topology=TOPOLOGY, recipe=spec.stages[0].recipe_space.decode(trial.point), epochs=4, seed=0
        )
        models.append((configuration, rows.checkpoints["train"][trial.number][-1].path))
    logits = validation_logits(models, data, evenly_spaced(len(data.validation), 2000), CPU)
    hits = np.stack([(one.argmax(1) == data.validation.labels).numpy() for one in logits], axis=1)
    assert hits.mean(0).tolist() == pytest.approx([trial.metrics["val_accuracy"] for trial in trials])
    scores = hits.mean(0) + 1e-9 * (np.arange(4) == found.trial)
    expected = probability_of_being_best(scores, covariance_of_hits(hits), seed=0)
    assert (found.method, found.num_trials, found.num_images) == ("paired", 4, len(data.validation))
    assert found.trial == rows.stages["train"].result["best"]["trial"]
    assert found.probability == pytest.approx(expected, abs=0.05)  # other random draws


def test_status_tells_it_in_one_sentence(certain: Path, command_line: CommandLine) -> None:
    done = command_line("status", "certain", home=certain, COLUMNS="80")
    text = " ".join(done.out.split())
    found = certainty_of(read_rows(certain, "certain"))
    assert f"Trial {found.trial} is really the best of the 4 trials with a probability of" in text
    assert f"{100 * found.probability:.0f} % ({found.num_images} validation images, compared image by image)." in text


def test_without_checkpoints_the_accuracies_alone_decide(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def lose_checkpoints(told: Told) -> None:
        if told.what == "trial ended":
            for folder in home.rglob(f"trial-{told.value[0]:04d}"):
                shutil.rmtree(folder)

    # The best trial's checkpoints are gone, too, but no later stage needs them.
    assert run_here(write(tmp_path), home, progress=RecordingProgress(lose_checkpoints)).state == "complete"
    found = certainty_of(read_rows(home, "certain"))
    assert found.method == "counts"
    assert "checkpoint" in str(found.reason)
    assert 0 < found.probability <= 1


@pytest.mark.parametrize("metric", ["macro-f1", "loss"])
def test_other_metrics_are_compared_by_resampled_images(tmp_path: Path, metric: str) -> None:
    assert run_here(write(tmp_path, metric=metric), tmp_path / "home").state == "complete"
    found = certainty_of(read_rows(tmp_path / "home", "certain"))
    assert found.method == "paired"
    assert 0.2 < found.probability <= 1


def test_trials_ranked_by_their_best_epoch_are_compared_with_its_weights(tmp_path: Path) -> None:
    (train,) = STUDY["stages"]
    assert run_here(write(tmp_path, stages=[{**train, "rank_by": "best"}]), tmp_path / "home").state == "complete"
    found = certainty_of(read_rows(tmp_path / "home", "certain"))
    assert (found.method, found.reason) == ("paired", None)


def test_a_single_trial_needs_no_certainty(tmp_path: Path) -> None:
    (train,) = STUDY["stages"]
    file = write(tmp_path, stages=[{**train, "num_trials": 1, "epochs": 1}])
    assert run_here(file, tmp_path / "home").state == "complete"
    assert read_rows(tmp_path / "home", "certain").stages["train"].result["certainty"] is None


@pytest.mark.parametrize(("count", "limit"), [(5, 10), (10, 10), (11, 10), (99, 10)])
def test_images_are_spread_evenly(count: int, limit: int) -> None:
    found = evenly_spaced(count, limit)
    assert len(found) == min(count, limit)
    gaps = found.diff()
    assert int(gaps.max()) - int(gaps.min()) <= 1
    assert int(found[0]) == 0
    assert int(found[-1]) < count
