"""Homes of released versions: today's code migrates and reads them, and continues interrupted studies."""

import json
import math
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny import CommandLine
from trainers.config import DataConfig
from trainers.data.images import load_test_images

pytestmark = pytest.mark.numeric
HOMES = Path(__file__).parent / "homes"
VERSIONS = sorted(path.name for path in HOMES.iterdir() if path.is_dir())

# Training amplifies the rounding of another CPU. Without vector instructions, losses of this study differ by up to 5e-4
# and two of the 360 validation images are classified differently.
LOSS_TOLERANCE = 2e-3
ACCURACY_TOLERANCE = 4.5 / 360
_ACCURACIES = frozenset({"val_accuracy", "val_accuracy_best", "accuracy_lost", "gain"})
_DISCRETE = frozenset({"epochs_saved", "curves_stopped"})
"""Shares of epochs and curves: they change in steps where one accuracy or loss does."""


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """A released version."""
    name: str = request.param
    return name


@pytest.fixture
def home(version: str, command_line: CommandLine) -> Path:
    """A copy of its home, in another place than it was made in."""
    return Path(shutil.copytree(HOMES / version / "home", command_line.home))


@pytest.fixture
def expected(version: str) -> dict[str, Any]:
    """What its studies found."""
    content: dict[str, Any] = json.loads((HOMES / version / "expected.json").read_text())
    return content


def test_every_release_has_a_home_smaller_than_3_mb() -> None:
    assert "0.1.0" in VERSIONS
    for name in VERSIONS:
        assert sum(file.stat().st_size for file in (HOMES / name).rglob("*") if file.is_file()) < 3e6
        assert (HOMES / name / "README.md").is_file()


def test_the_finished_study_answers(home: Path, version: str, command_line: CommandLine, tmp_path: Path) -> None:
    summary = command_line("status", "finished", "--format", "json").json()
    assert summary["state"] == "complete"
    assert [stage["state"] for stage in summary["stages"]] == ["complete"] * 6
    champion = summary["champion"]
    assert Path(champion["folder"]).is_relative_to(home)
    assert (Path(champion["folder"]) / "model.safetensors").is_file()

    best = command_line("best", "finished")
    assert best.status == 0
    assert champion["configuration"]["topology"] in best.out

    digit = tmp_path / "digit.png"
    images = load_test_images(DataConfig(source="digits"))
    Image.fromarray(images.images[0, 0].numpy()).save(digit)
    (prediction,) = command_line("predict", "finished", str(digit), "--format", "json").json()
    assert prediction["label"] in {str(label) for label in range(10)}
    assert 0.1 < prediction["probability"] <= 1

    again = command_line("run", str(HOMES / version / "finished.yaml"), "--quiet")
    assert again.status == 0, again.err


def test_the_interrupted_study_ends_as_an_uninterrupted_one(
    home: Path, version: str, expected: dict[str, Any], command_line: CommandLine
) -> None:
    kept = sorted((home / "artifacts" / "studies").glob("interrupted-*/train/trial-0002/epoch-*"))
    assert kept, "the home must hold a training to be continued"
    done = command_line("run", str(HOMES / version / "interrupted.yaml"), "--quiet")
    assert done.status == 0, done.err
    found = trials_and_curves(home, "interrupted")
    wanted = expected["interrupted"]
    assert [key(trial) for trial in found["trials"]] == [key(trial) for trial in wanted["trials"]]
    for trial, other in zip(found["trials"], wanted["trials"], strict=True):
        for name, value in other["metrics"].items():
            assert_close(trial["metrics"][name], value, name, key(trial))
    assert found["curves"].keys() == wanted["curves"].keys()
    for number, curve in wanted["curves"].items():
        for report, other in zip(found["curves"][number], curve, strict=True):
            for name, value in other.items():
                assert_close(report[name], value, name, (number, other["epoch"]))
    # The two trials before were not trained again, and the third continued from its checkpoint.
    assert number_of_attempts(home, "interrupted", "train") == [1, 1, 2, 1, 1]


def test_the_finished_study_grows(home: Path, version: str, command_line: CommandLine, tmp_path: Path) -> None:
    before = trials_and_curves(home, "finished")
    text = (HOMES / version / "finished.yaml").read_text(encoding="utf-8")
    train = text.index("- stage: train")
    assert "num_trials: 4" in text[train:]
    file = tmp_path / "finished.yaml"
    file.write_text(text[:train] + text[train:].replace("num_trials: 4", "num_trials: 5", 1), encoding="utf-8")
    done = command_line("run", str(file), "--format", "json")
    assert done.status == 0, done.err
    assert "stages[1].num_trials: 4 -> 5" in done.err
    assert done.json()["state"] == "complete"
    after = trials_and_curves(home, "finished")
    kept = [trial for trial in before["trials"] if trial["stage"] in ("screen", "train")]
    assert [trial for trial in after["trials"] if key(trial) in map(key, kept)][: len(kept)] == kept
    assert {number: after["curves"][number] for number in before["curves"]} == before["curves"]
    assert number_of_attempts(home, "finished", "train") == [1] * 5
    assert command_line("best", "finished").status == 0


def key(trial: dict[str, Any]) -> tuple[Any, ...]:
    """What must be the same to the letter."""
    return trial["stage"], trial["trial"], trial["state"], trial["point"]


def assert_close(found: float, wanted: float, name: str, where: object) -> None:
    """Equal up to what another CPU's rounding can change."""
    if name in _DISCRETE:
        return
    absolute = ACCURACY_TOLERANCE if name in _ACCURACIES else 1e-6
    relative = 0.0 if name in _ACCURACIES else LOSS_TOLERANCE
    assert math.isclose(found, wanted, rel_tol=relative, abs_tol=absolute), (where, name)


def trials_and_curves(home: Path, study: str) -> dict[str, Any]:
    """The rows of a study in the form of `expected.json`."""
    trials = [
        {"stage": stage, "trial": number, "state": state, "point": json.loads(point), "metrics": json.loads(metrics)}
        for stage, number, state, point, metrics in query(
            home, study, "select s.name, t.number, t.state, t.point, t.metrics {rows} order by s.position, t.number"
        )
    ]
    curves: dict[str, list[dict[str, float]]] = {}
    reports = 'select t.number, r."values" {rows} order by t.number, r.epoch'
    for number, values in query(home, study, reports, "join reports r on r.trial_id = t.id"):
        curves.setdefault(str(number), []).append(json.loads(values))
    return {"trials": trials, "curves": curves}


def number_of_attempts(home: Path, study: str, stage: str) -> list[int]:
    """Attempts at each trial of a stage."""
    counts = f"select count(*) {{rows}} and s.name = '{stage}' group by t.number order by t.number"
    return [count for (count,) in query(home, study, counts, "join attempts a on a.trial_id = t.id")]


def query(home: Path, study: str, statement: str, joins: str = "") -> list[tuple[Any, ...]]:
    """Rows of a study's trials, read without our code."""
    rows = (
        f"from studies u join stages s on s.study_id = u.id join trials t on t.stage_id = s.id {joins} where u.name = ?"
    )
    with closing(sqlite3.connect(home / "vitsearch.db")) as database:
        return database.execute(statement.format(rows=rows), (study,)).fetchall()
