"""`vitsearch evaluate` as a user types it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import CommandLine
from tests.unit.training import CPU, DIGITS, configuration, digits
from trainers.champion import save_model
from trainers.data.images import load_test_images
from trainers.models.building import build_model
from trainers.results.model_report import ModelReport


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model of digits with random weights."""
    folder, config = tmp_path / "model", configuration()
    weights = build_model(config.topology, digits().task, seed=0, device=CPU).state_dict()
    save_model(folder, weights, configuration=config, data=digits(), metrics={}, temperature=1.5)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Test digits in class folders, with a class that the model does not know."""
    folder, test = tmp_path / "photos", load_test_images(DIGITS)
    for number in range(30):
        place = folder / str(int(test.labels[number]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.images[number, 0].numpy()).save(place / f"{number}.png")
    (folder / "letter").mkdir()
    Image.new("L", (32, 32)).save(folder / "letter" / "a.png")
    return folder


def test_a_terminal_shows_the_report_and_which_images_it_is_about(
    model: Path, photos: Path, command_line: CommandLine
) -> None:
    done = command_line("evaluate", model, photos, COLUMNS="80")
    assert done.status == 0
    assert "30 images of" in done.out
    assert "all images: the source has no test part" in " ".join(done.out.split())
    for part in (
        "balanced-accuracy",
        "95 % interval",
        "baseline",
        "calibration",
        "recall",
        "instead of",
        "'letter' (1)",
    ):
        assert part in done.out
    table = done.out.split("metric", 1)[1]
    assert max(map(len, table.split("Most confident")[0].splitlines())) <= 80


def test_programs_get_the_report_as_json(model: Path, photos: Path, command_line: CommandLine) -> None:
    done = command_line("evaluate", model, photos, "--format", "json")
    report = ModelReport.model_validate(json.loads(done.out))
    assert (report.part, report.num_images) == ("all", 30)
    assert report.classes == tuple("0123456789")
    assert report.metrics.keys() == {"accuracy", "balanced-accuracy", "macro-f1", "loss"}
    assert report.notes[0].startswith("1 images left out")


def test_without_data_the_models_own_test_part_is_evaluated(model: Path, command_line: CommandLine) -> None:
    report = json.loads(command_line("evaluate", model, "--format", "json").out)
    assert (report["part"], report["num_images"], report["source"]) == ("test", 60, "digits")
    assert report["notes"] == []


def test_plots_and_tables_are_written_once(
    model: Path, photos: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "new"
    done = command_line("evaluate", model, photos, "--out", folder)
    assert str(folder) in done.err
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert written.keys() == {
        "confusion-matrix.png",
        "reliability.png",
        "mistakes.png",
        "metrics.csv",
        "per-class.csv",
        "confusion-matrix.csv",
        "mistakes.csv",
        "report.json",
    }
    assert str(photos) in (folder / "mistakes.csv").read_text()
    again = command_line("evaluate", model, photos, "--out", folder)
    assert (again.status, again.out) == (2, "")
    assert "exists and is not empty. Name another." in again.err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written


def test_a_folder_that_cannot_be_written_is_one_message(
    model: Path, photos: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = command_line("evaluate", model, photos, "--out", tmp_path / "file" / "new")
    assert done.status == 2
    assert "must be a folder that can be written" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-study"], "no study 'no-such-study'"),
        (["MODEL", "nowhere"], "nowhere does not exist"),
        (["MODEL", "PHOTOS", "--part", "test"], "must have a test part"),
        (["MODEL", "PHOTOS", "--part", "some"], "some"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], message: str, model: Path, photos: Path, command_line: CommandLine
) -> None:
    given = [str({"MODEL": model, "PHOTOS": photos}.get(one, one)) for one in arguments]
    done = command_line("evaluate", *given)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
