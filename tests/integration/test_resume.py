"""The same file and seed give the same study, however often its processes are interrupted."""

import signal
import socket
import time
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import Engine, event

from orchestrator.cli.running import run_command
from orchestrator.store.repository import Store
from orchestrator.study.lock import StudyBusyError
from orchestrator.tracking.events import EnsureExperiment
from orchestrator.tracking.mlflow_client import Tracker
from tests.fakes import RecordingProgress, Switch, Told
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, counts, finished_epochs, place_of
from tests.run_tree import assert_run_tree
from tests.tiny import CommandLine, FinishedStudy, read_rows, run_here, start, write_tiny
from trainers.data.cache_settings import watch_decoding

PROCESS_TIMEOUT_S = 900.0


def at(home: Path) -> Place:
    """A home with the database that it has of itself."""
    return Place(home, f"sqlite:///{home}/vitsearch.db")


# --- twice the same ---


def test_the_same_seed_gives_the_same_study_in_another_home(tiny: FinishedStudy, tmp_path: Path) -> None:
    run_here(write_tiny(tmp_path), tmp_path / "home")
    assert_is_the_same_study(at(tmp_path / "home"), tiny)


def test_another_seed_gives_another_study(tiny: FinishedStudy, tmp_path: Path) -> None:
    switch = Switch()

    def stop_after_the_screen(told: Told) -> None:
        switch.on = told.what == "stage ended"

    progress = RecordingProgress(stop_after_the_screen)
    file = write_tiny(tmp_path, **{"seed: 7": "seed: 8"})
    assert run_here(file, tmp_path / "home", progress=progress, control=switch).state == "interrupted"
    points = [[trial.point for trial in rows.trials["screen"]] for rows in (read_rows(tmp_path / "home"), tiny.rows)]
    assert points[0] != points[1]
    assert len(points[0]) == len(points[1])


def test_running_a_complete_study_again_says_so_and_writes_nothing(
    tiny: FinishedStudy, command_line: CommandLine
) -> None:
    before, changed = counts(place_of(tiny)), read_rows(tiny.home).study.updated_at
    done = command_line("run", tiny.file, home=tiny.home)
    assert done.status == 0
    assert "already complete" in done.err
    assert "Champion" in done.out
    assert counts(place_of(tiny)) == before
    assert read_rows(tiny.home).study.updated_at == changed


def test_a_changed_file_under_the_same_name_is_refused_and_the_change_named(
    tiny: FinishedStudy, command_line: CommandLine, tmp_path: Path
) -> None:
    before = counts(place_of(tiny))
    changed = write_tiny(tmp_path, **{"epochs: 4": "epochs: 3"})
    done = command_line("run", changed, home=tiny.home)
    assert done.status == 2
    assert "stages[2].epochs: 4 -> 3" in done.err
    assert "vitsearch delete tiny" in done.err
    assert done.out == ""
    assert counts(place_of(tiny)) == before


# --- a process that dies before there is a study; tests/faults kills it later ---


@pytest.mark.parametrize("fail_at", [1, 5, 9, 14])
def test_a_process_that_dies_while_it_makes_the_tables_leaves_none_behind(fail_at: int, tmp_path: Path) -> None:
    url, statements = f"sqlite:///{tmp_path}/vitsearch.db", []

    def die(_connection, _cursor, statement: str, *_: object) -> None:
        statements.append(statement.lstrip().upper().startswith(("CREATE", "INSERT", "UPDATE")))
        if sum(statements) == fail_at:
            raise KeyboardInterrupt

    event.listen(Engine, "after_cursor_execute", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            Store.open(url)
    finally:
        event.remove(Engine, "after_cursor_execute", die)
    store = Store.open(url)
    assert store.list_studies() == []
    store.close()


def test_a_process_that_dies_while_mlflow_makes_its_tables_leaves_none_behind(tmp_path: Path) -> None:
    uri, statements = f"sqlite:///{tmp_path}/mlflow.db", []

    def die(_connection, _cursor, statement: str, *_: object) -> None:
        statements.append(statement)
        if len(statements) == 100:  # of some 400
            raise KeyboardInterrupt

    event.listen(Engine, "after_cursor_execute", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tracker(uri, tmp_path).deliver([EnsureExperiment(name="digits")])
    finally:
        event.remove(Engine, "after_cursor_execute", die)
    assert not (tmp_path / "mlflow.db").exists()
    tracker = Tracker(uri, tmp_path)
    tracker.deliver([EnsureExperiment(name="digits")])
    assert tracker.experiment_url("digits", server_url="http://here") is not None


# --- Ctrl-C ---


def test_ctrl_c_in_training_says_how_to_go_on_and_going_on_completes(
    tiny: FinishedStudy, tmp_path: Path, command_line: CommandLine
) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)
    process = start("run", file, home=home, cwd=tmp_path)
    try:
        with at(home).watch() as query:
            while not query("SELECT 1 FROM reports LIMIT 1") and process.poll() is None:
                time.sleep(0.002)
        # Meanwhile nobody else may run it.
        other = command_line("run", file, home=home)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PROCESS_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert (other.status, "another process" in other.err) == (1, True)
    assert process.returncode == 130
    assert f"Resume with: vitsearch run {file}" in errors
    assert "Traceback" not in errors
    assert_rows_are_true(at(home))
    rows = read_rows(home)
    assert rows.study.state == "interrupted"
    assert rows.stages["train"].state == "interrupted"
    assert rows.stages["grow"].state == "complete"
    assert rows.stages["promote"].state == "waiting"
    assert {trial.state for trial in rows.trials["train"]} <= {"complete", "waiting"}
    kept = finished_epochs(at(home))
    assert command_line("run", file, home=home).status == 0
    assert {key: finished_epochs(at(home))[key] for key in kept} == kept
    assert_rows_are_true(at(home))
    assert_is_the_same_study(at(home), tiny)


def test_a_second_ctrl_c_ends_at_once_and_leaves_true_rows(tmp_path: Path) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)

    def second_ctrl_c(told: Told) -> None:
        if told == Told("epoch", "train", (1, 2)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(file, home, progress=RecordingProgress(second_ctrl_c))
    assert_rows_are_true(at(home))
    rows = read_rows(home)
    assert rows.study.state == "interrupted"
    assert [trial.state for trial in rows.trials["train"]] == ["complete", "waiting"]
    assert at(home).query("SELECT state FROM attempts ORDER BY id DESC LIMIT 1") == [("interrupted",)]
    assert len(rows.curves["train"][1]) == 2


def test_a_second_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def second_ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.study.driver.run_study", second_ctrl_c)
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path / "home"))
    file = write_tiny(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(file, overrides={}, quiet=True, as_json=False)
    assert ended.value.code == 130
    told = capsys.readouterr().err
    assert (
        told == f"vitsearch: interrupted; every finished trial and epoch is kept. Resume with: vitsearch run {file}\n"
    )


def test_a_stop_while_images_are_decoded_does_not_wait_for_the_others(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("L", (8, 8), number).save(tmp_path / "photos" / name / f"{number}.png")
    switch, decoded = Switch(), []

    def stop_after_the_third(done: int, _total: int) -> None:
        decoded.append(done)
        switch.on = done >= 3

    file = write_tiny(tmp_path, **{"source: digits": "source: photos", ", max_images: 120, max_test_images: 60": ""})
    with watch_decoding(stop_after_the_third), pytest.raises(KeyboardInterrupt):
        run_here(file, tmp_path / "home", control=switch, stops_decoding=True)
    assert decoded[-1] == 3
    assert not (tmp_path / "home" / "vitsearch.db").exists()


def test_the_first_signal_asks_and_the_second_raises(capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator.cli.signals import StopRequest, stop_on_signal

    control = StopRequest()
    handler = signal.getsignal(signal.SIGINT)
    with stop_on_signal(control):
        signal.raise_signal(signal.SIGTERM)
        assert control.should_stop()
        assert "press Ctrl-C again to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_study_that_runs_here_is_not_run_a_second_time(tmp_path: Path) -> None:
    home, file, refused, switch = tmp_path / "home", write_tiny(tmp_path), [], Switch()

    def run_again(told: Told) -> None:
        if told.what == "stage began":
            with pytest.raises(StudyBusyError, match="vitsearch status tiny") as error:
                run_here(file, home)
            refused.append(error)
            switch.on = True

    run_here(file, home, progress=RecordingProgress(run_again), control=switch)
    assert len(refused) == 1


# --- MLflow away ---


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_study_runs_while_mlflow_is_away_and_tells_it_everything_later(
    tiny: FinishedStudy, tmp_path: Path, command_line: CommandLine
) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)
    tracked = {"VITSEARCH_TRACKING": "on"}
    dead = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{unused_port()}"}
    away = command_line("run", file, **tracked, **dead)
    assert away.status == 0, away.err
    assert "events are still waiting" in away.err
    assert_is_the_same_study(at(home), tiny)
    owed = command_line("status", "tiny", "--format", "json", **tracked).json()["tracking"]
    assert owed["owed"] > 50
    still_away = command_line("run", file, **tracked, **dead)
    assert still_away.status == 0
    assert f"{owed['owed']} events are still waiting" in still_away.err

    back = command_line("run", file, **tracked)
    assert back.status == 0, back.err
    summary = command_line("status", "tiny", "--format", "json", **tracked).json()
    assert summary["tracking"] == {"owed": 0, "rejected": 0, "reason": None}
    assert summary["num_executions"] == 1
    assert_run_tree(home, tiny)
