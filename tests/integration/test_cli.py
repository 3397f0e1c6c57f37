"""Every command as a user types it: output, exit status and imported modules."""

import csv
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

from orchestrator.cli.main import GROUPS, app
from orchestrator.store.repository import Store
from tests.tiny import CommandLine, FinishedStudy, command, write_tiny
from trainers.champion import load_model
from trainers.data.images import load_test_images

HEAVY = ("sqlalchemy", "numpy", "torch", "mlflow", "optuna", "scipy", "matplotlib", "sklearn")
IMPORTED = f"""
import sys
from orchestrator.cli.main import main
try:
    main()
finally:
    print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def home(tiny: FinishedStudy, tmp_path: Path) -> Path:
    """A copy of the finished study's home, to be changed."""
    return Path(shutil.copytree(tiny.home, tmp_path / "copy"))


@pytest.fixture
def digit(tiny: FinishedStudy, tmp_path: Path) -> Path:
    """An image file of a test digit."""
    data = load_model(Path(tiny.champion["folder"])).card.configuration.data
    path = tmp_path / "digit.png"
    Image.fromarray(load_test_images(data).images[0, 0].numpy()).save(path)
    return path


# --- from nothing ---


def test_the_console_script_runs(tmp_path: Path) -> None:
    done = subprocess.run(command("--version"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    name, version = done.stdout.split()
    assert name == "vitsearch"
    assert version[0].isdigit()


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--format", "json"], ["validate", "FILE"]])
def test_the_quick_commands_import_nothing_heavy(arguments: list[str], tiny: FinishedStudy, tmp_path: Path) -> None:
    given = [str(tiny.file) if argument == "FILE" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *given],
        cwd=tmp_path,
        env={"VITSEARCH_HOME": str(tiny.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    allowed = {"validate": {"numpy"}, "list": {"sqlalchemy"}}
    assert set(done.stderr.split()) <= allowed.get(arguments[0], set())
    assert done.stdout


def test_a_command_at_a_service_imports_no_database(tmp_path: Path) -> None:
    command_at = [sys.executable, "-c", IMPORTED, "list", "--server", "http://127.0.0.1:1"]
    done = subprocess.run(command_at, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "must answer" in done.stderr) == (1, True)
    assert set(HEAVY) & set(done.stderr.split()) == set()


def test_help_groups_the_commands_and_each_has_its_own_help(command_line: CommandLine) -> None:
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    overview = command_line("--help", COLUMNS="80")
    assert overview.status == 0
    lines = overview.out.splitlines()
    assert max(map(len, lines)) <= 80
    listed = [words[1] for words in map(str.split, lines) if len(words) > 2 and words[0] == "│" and words[1] in names]
    assert listed == names, "each command must have one line"
    assert [heading for line in lines if (heading := line.strip("╭╮─ ")) in (*GROUPS, "Commands")] == list(GROUPS)
    for name in names:
        told = command_line(name, "--help", COLUMNS="80")
        assert told.status == 0
        assert max(map(len, told.out.splitlines())) <= 80
        assert not {"<bool>", "<int", "<str>", "[[", "..]"} & set(told.out.split()), told.out
        assert "<bool>" not in told.out


def test_looking_at_an_empty_home_works_and_creates_nothing(command_line: CommandLine) -> None:
    assert "vitsearch run studies/quickstart.yaml" in command_line("list").out
    assert command_line("list", "--format", "json").json() == []
    for arguments in (["status", "tiny"], ["best", "tiny"], ["delete", "tiny", "--yes"], ["predict", "tiny", "x.png"]):
        done = command_line(*arguments)
        assert done.status == 2, arguments
        assert "there is no study 'tiny'" in done.err
        assert done.out == ""
    assert command_line("ui").status == 1
    assert not command_line.home.exists()


def test_an_unknown_command_or_option_exits_with_two(command_line: CommandLine, tiny: FinishedStudy) -> None:
    assert command_line("rnu").status == 2
    assert command_line("run", tiny.file, "--fast").status == 2
    assert command_line("list", "--format", "xml").status == 2


# --- a finished study ---


def test_list_shows_the_study(command_line: CommandLine, tiny: FinishedStudy) -> None:
    (row,) = command_line("list", "--format", "json", home=tiny.home).json()
    assert row["study"] == "tiny"
    assert row["state"] == "complete"
    assert row["stages"] == row["stages_done"] == len(tiny.rows.stages)
    assert row["test_accuracy"] == tiny.champion["test_accuracy"]
    text = command_line("list", home=tiny.home).out
    assert f"{100 * tiny.champion['test_accuracy']:.2f}" in text
    assert "tiny" in text


def test_status_has_every_stage_and_the_champion(command_line: CommandLine, tiny: FinishedStudy) -> None:
    summary = command_line("status", "tiny", "--format", "json", home=tiny.home).json()
    assert summary["champion"]["test_accuracy"] == tiny.champion["test_accuracy"]
    assert [stage["name"] for stage in summary["stages"]] == list(tiny.rows.stages)
    assert {stage["state"] for stage in summary["stages"]} == {"complete"}
    assert [stage["trials"].get("complete", 0) for stage in summary["stages"]] == [
        len(trials) for trials in tiny.rows.trials.values()
    ]
    assert all(stage["wall_time_s"] > 0 for stage in summary["stages"])
    assert [row["proxy"] for row in summary["correlation"]["proxies"]]
    done = command_line("status", "tiny", home=tiny.home)
    assert done.status == 0
    assert all(name in done.out for name in tiny.rows.stages)
    assert tiny.champion["folder"] in done.out


def test_a_wrong_name_is_answered_with_the_nearest(command_line: CommandLine, tiny: FinishedStudy) -> None:
    for arguments in (["status", "tinny"], ["best", "tinny"], ["delete", "tinny"], ["predict", "tinny", "a.png"]):
        done = command_line(*arguments, home=tiny.home)
        assert done.status == 2
        assert "Did you mean 'tiny'?" in done.err
        assert len(done.err.splitlines()) == 1


def test_the_end_of_a_run_shows_what_was_found_and_what_to_type(command_line: CommandLine, tiny: FinishedStudy) -> None:
    text = command_line("run", tiny.file, "--quiet", home=tiny.home)
    assert text.err == ""
    next_steps = ("vitsearch ui", "vitsearch best tiny", "vitsearch predict tiny")
    for part in ("Leaderboard", "each proxy", "Champion", *next_steps):
        assert part in text.out
    summary = command_line("run", tiny.file, "--quiet", "--format", "json", home=tiny.home).json()
    assert summary == command_line("status", "tiny", "--format", "json", home=tiny.home).json()


def test_best_prints_a_file_that_train_turns_into_the_champion_again(
    command_line: CommandLine, tiny: FinishedStudy, digit: Path, tmp_path: Path
) -> None:
    file = tmp_path / "best.yaml"
    file.write_text(command_line("best", "tiny", home=tiny.home).out)
    assert yaml.safe_load(file.read_text()) == tiny.champion["configuration"]
    again = command_line("train", file, "--format", "json", "--quiet")
    assert again.status == 0, again.err
    result = again.json()
    assert result["state"] == "complete"
    assert result["test_accuracy"] == tiny.champion["test_accuracy"]
    assert result["val_accuracy"] == tiny.champion["val_accuracy"]
    assert result["folder"] == str(tmp_path / "best")
    own = command_line("predict", tmp_path / "best", digit, "--format", "json").json()
    assert own == command_line("predict", "tiny", digit, "--format", "json", home=tiny.home).json()


def test_train_can_be_typed_again_with_another_configuration(
    command_line: CommandLine, tiny: FinishedStudy, tmp_path: Path
) -> None:
    file, text = tmp_path / "best.yaml", command_line("best", "tiny", home=tiny.home).out
    assert "epochs: 4" in text
    for epochs in (1, 2):
        file.write_text(text.replace("epochs: 4", f"epochs: {epochs}").replace("lawa", "last"))
        if epochs == 2:
            refused = command_line("train", file)
            assert refused.status == 2
            assert "--overwrite" in refused.err
            assert "epoch" not in refused.err
        done = command_line("train", file, *(["--overwrite"] if epochs == 2 else []))
        assert done.status == 0, done.err
        assert f"epoch {epochs} of {epochs}" in done.err
        assert f"model in {tmp_path / 'best'}" in done.out
    assert sorted(path.name for path in tmp_path.glob("best*")) == ["best", "best.yaml"]


def test_train_that_stops_before_its_average_has_enough_checkpoints_says_so(
    command_line: CommandLine, tiny: FinishedStudy, tmp_path: Path
) -> None:
    configuration = tiny.champion["configuration"] | {
        "averaging": {"name": "lawa", "window": 3, "spacing": 1},
        "stopping": {"name": "patience", "epochs": 1, "min_delta": 1.0},
    }
    file = tmp_path / "early.yaml"
    file.write_text(yaml.safe_dump(configuration))
    done = command_line("train", file, "--quiet")
    assert done.status == 1
    assert "checkpoints" in done.err
    assert len(done.err.splitlines()) == 1


def test_predict_names_classes_and_refuses_what_is_no_image(
    command_line: CommandLine, tiny: FinishedStudy, digit: Path
) -> None:
    done = command_line("predict", "tiny", digit, home=tiny.home)
    assert done.status == 0
    assert done.out.startswith(f"{digit}: ")
    assert "%" in done.out
    (row,) = command_line("predict", "tiny", digit, "--format", "json", home=tiny.home).json()
    assert row["path"] == str(digit)
    assert row["label"] in "0123456789"
    for wrong in (tiny.file, digit.with_name("missing.png")):
        done = command_line("predict", "tiny", digit, wrong, home=tiny.home)
        assert done.status == 2
        assert str(wrong) in done.err
        assert done.out.startswith(f"{digit}: ")  # the others are predicted
        assert len(done.err.splitlines()) == 1
    assert command_line("predict", tiny.home, digit).status == 2  # a folder, but no model
    Path("tiny").mkdir()  # such as the folder of the images
    shutil.copy(digit, "tiny")
    assert command_line("predict", "tiny", "tiny", home=tiny.home).out.startswith("tiny/digit.png: ")


def test_predict_takes_folders_and_patterns(command_line: CommandLine, tiny: FinishedStudy, digit: Path) -> None:
    folder = digit.parent / "photos"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    names = ["b.png", "a.PNG", "deep/c.png", "deep/.hidden/d.png"]
    for name in names:
        shutil.copy(digit, folder / name)
    (folder / "notes.txt").write_text("no image")
    done = command_line("predict", "tiny@champion", folder, "--format", "json", home=tiny.home)
    assert done.status == 0, done.err
    assert [row["path"] for row in done.json()] == [str(folder / name) for name in ("a.PNG", "b.png", "deep/c.png")]
    assert "left out: 1 not an image (.txt)" in done.err
    rows = command_line("predict", "tiny", f"{folder}/**/*.png", digit, "--csv", "--top", "2", home=tiny.home)
    assert rows.status == 0, rows.err
    head, *lines = csv.reader(rows.out.splitlines())
    assert head == ["path", "label", "probability", "label_2", "probability_2"]
    assert [line[0] for line in lines] == [str(folder / "b.png"), str(folder / "deep" / "c.png"), str(digit)]
    assert float(lines[0][2]) >= float(lines[0][4])
    one = command_line("predict", "tiny", digit, "--top", "1", home=tiny.home)
    assert "(" not in one.out
    for empty in (f"{folder}/*.bmp", folder / "deep" / ".hidden" / "none"):
        (folder / "deep" / ".hidden" / "none").mkdir(exist_ok=True)
        found = command_line("predict", "tiny", digit, empty, home=tiny.home)
        assert (found.status, str(empty) in found.err, len(found.out.splitlines())) == (2, True, 1)


def test_trials_are_listed_with_what_was_searched(command_line: CommandLine, tiny: FinishedStudy) -> None:
    rows = command_line("trials", "tiny", "--format", "json", home=tiny.home).json()
    assert [(row["stage"], row["trial"]) for row in rows] == [
        (stage, trial.number) for stage, trials in tiny.rows.trials.items() for trial in trials
    ]
    text = command_line("trials", "tiny", "--stage", "train", "--csv", home=tiny.home)
    table = list(csv.DictReader(text.out.splitlines()))
    trained = tiny.rows.trials["train"]
    assert [row["state"] for row in table] == [trial.state for trial in trained]
    assert [float(row["recipe.learning_rate"]) for row in table] == [
        trial.point["recipe.learning_rate"] for trial in trained
    ]
    assert [float(row["val_accuracy"]) for row in table] == [trial.metrics["val_accuracy"] for trial in trained]
    shown = command_line("trials", "tiny", home=tiny.home, COLUMNS="80")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert all(name in shown.out for name in ("train: 9 complete", "learning_rate", "curriculum", "val. acc. (%)"))
    assert not any(name in shown.out for name in ("topology.", ".spread", "metric.wall_time_s"))  # known, or "±"
    wrong = command_line("trials", "tiny", "--stage", "trian", home=tiny.home)
    assert (wrong.status, "Did you mean 'train'?" in wrong.err) == (2, True)


def test_a_champion_is_exported_next_to_nothing_else(command_line: CommandLine, tiny: FinishedStudy) -> None:
    done = command_line("export", "tiny", "--format", "safetensors", home=tiny.home)
    assert done.status == 0, done.err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["tiny.safetensors", "tiny.safetensors.json"]
    again = command_line("export", "tiny", "--format", "safetensors", home=tiny.home)
    assert (again.status, "--overwrite" in again.err, len(again.err.splitlines())) == (2, True, 1)
    other = Path.cwd() / "other.pt2"
    given = ("export", tiny.champion["folder"], "--format", "torch-export", "--out", other, "--json")
    assert command_line(*given).json()["file"] == str(other)
    assert other.is_file()


def test_best_before_there_is_a_champion_says_how_to_see_why(command_line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(write_tiny(tmp_path).read_text().partition("  - stage: grow")[0])
    assert command_line("run", file, "--quiet").status == 0
    for arguments in (["best", "tiny"], ["predict", "tiny", "x.png"]):
        done = command_line(*arguments)
        assert done.status == 1
        assert "vitsearch status tiny" in done.err
        assert "Traceback" not in done.err
    assert command_line("status", "tiny", "--format", "json").json()["champion"] is None
    assert command_line("status", "tiny").status == 0


def test_validate_says_what_the_study_will_do(command_line: CommandLine, tiny: FinishedStudy) -> None:
    done = command_line("validate", tiny.file)
    assert done.status == 0
    assert "screen -> grow -> train -> stopping -> averaging -> correlate -> promote" in done.out
    assert not command_line.home.exists()


def test_every_example_study_is_valid(command_line: CommandLine, tmp_path: Path) -> None:
    files = sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        done = command_line("validate", file, "--data", "digits")
        assert (done.status, done.err) == (0, "")


def test_plugins_are_listed_and_shown_with_their_card(command_line: CommandLine) -> None:
    rows = command_line("plugins", "--format", "json").json()
    assert {"proxies", "stopping", "curricula", "averaging", "schedules", "samplers", "spaces"} <= {
        row["kind"] for row in rows
    }
    stopping = command_line("plugins", "stopping", "--format", "json").json()
    assert {row["kind"] for row in stopping} == {"stopping"}
    for row in rows:
        card = command_line("plugins", row["kind"], row["name"], "--format", "json").json()
        assert card["about"]
        assert bool(card["source"]) == (row["kind"] not in ("spaces", "models"))
    assert "Prechelt" in command_line("plugins", "stopping", "generalization-loss").out
    assert "Did you mean 'stopping'?" in command_line("plugins", "stoping").err
    wrong = command_line("plugins", "stopping", "patient")
    assert (wrong.status, "Did you mean 'patience'?" in wrong.err) == (2, True)


def test_ui_says_where_a_server_is_and_when_the_port_is_taken(command_line: CommandLine, tiny: FinishedStudy) -> None:
    remote = command_line("ui", MLFLOW_TRACKING_URI="http://mlflow.example:5000")
    assert (remote.status, remote.out.strip()) == (0, "MLflow is running at http://mlflow.example:5000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = command_line("ui", "--port", str(taken.getsockname()[1]), home=tiny.home)
    assert done.status == 1
    assert "--port" in done.err


def test_delete_removes_rows_and_files_of_that_study_only(command_line: CommandLine, home: Path) -> None:
    uid = command_line("status", "tiny", "--format", "json", home=home).json()["uid"]
    folder, other = home / "artifacts" / "studies" / f"tiny-{uid}", home / "artifacts" / "studies" / "other"
    assert folder.is_dir()
    other.mkdir()
    done = command_line("delete", "tiny", "--yes", home=home)
    assert (done.status, done.out.strip()) == (0, "deleted study 'tiny'")
    assert not folder.exists()
    assert other.is_dir()
    assert command_line("list", "--format", "json", home=home).json() == []


def test_several_studies_are_deleted_by_patterns_after_one_question(
    command_line: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(f"sqlite:///{home}/vitsearch.db", artifact_root=home / "artifacts")
    for name in ("test-1", "test-2", "keep"):
        store.create_study(name, spec={"seed": 3}, digest="a", data_digest="b", stage_names=[("screen", "screen")])
    store.close()
    asked = []
    monkeypatch.setattr("typer.confirm", lambda question: asked.append(question) or False)
    assert command_line("delete", "test-*", "tiny", "test-1", home=home).status == 1
    assert "Delete 3 studies" in asked[0]
    assert all(name in asked[0] for name in ("test-1", "test-2", "tiny"))
    assert command_line("delete", "test-*", "tiny", "test-1", "--yes", home=home).status == 0
    assert [row["study"] for row in command_line("list", "--format", "json", home=home).json()] == ["keep"]
    nothing = command_line("delete", "test-*", "--yes", home=home)
    assert (nothing.status, "matches none" in nothing.err) == (2, True)


def test_prune_drops_what_no_champion_needs(command_line: CommandLine, home: Path, digit: Path) -> None:
    (before,) = command_line("list", "--format", "json", home=home).json()
    on_disk = sum(path.stat().st_size for path in home.glob("artifacts/studies/*/**/*") if path.is_file())
    assert before["num_bytes"] == on_disk
    prediction = command_line("predict", "tiny", digit, home=home).out
    status = command_line("status", "tiny", "--format", "json", home=home).json()
    (planned,) = command_line("prune", "--dry-run", "--format", "json", home=home).json()
    assert 0 < planned["num_bytes_freed"] < before["num_bytes"] == planned["num_bytes_before"]
    assert command_line("list", "--format", "json", home=home).json() == [before]
    (pruned,) = command_line("prune", "--format", "json", home=home).json()
    assert pruned == planned
    (after,) = command_line("list", "--format", "json", home=home).json()
    assert after["num_bytes"] == before["num_bytes"] - pruned["num_bytes_freed"]
    assert list(home.glob("artifacts/studies/*/**/epoch-*")) == []
    assert command_line("predict", "tiny", digit, home=home).out == prediction
    assert command_line("status", "tiny", "--format", "json", home=home).json() == status
    assert "freed 0 B" in command_line("prune", "tiny", home=home).out


def test_prune_leaves_studies_that_can_go_on(command_line: CommandLine, tmp_path: Path, home: Path) -> None:
    store = Store.open(f"sqlite:///{home}/vitsearch.db", artifact_root=home / "artifacts")
    store.create_study("later", spec={"seed": 3}, digest="a", data_digest="b", stage_names=[("train", "train")])
    store.close()
    done = command_line("prune", "later", home=home)
    assert done.status == 0
    assert "it is waiting, and can be resumed" in done.out
    assert command_line("prune", "lter", home=home).status == 2


def test_nothing_is_deleted_while_mlflow_is_away(command_line: CommandLine, home: Path) -> None:
    dead = {"VITSEARCH_TRACKING": "on", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = command_line("delete", "tiny", "--yes", home=home, **dead)
    assert done.status == 1
    assert "nothing was deleted" in done.err
    assert len(done.err.splitlines()) == 1
    assert len(command_line("list", "--format", "json", home=home).json()) == 1


def test_a_broken_setting_is_named(command_line: CommandLine) -> None:
    done = command_line("list", VITSEARCH_TRACKING="perhaps")
    assert done.status == 2
    assert "VITSEARCH_TRACKING" in done.err
