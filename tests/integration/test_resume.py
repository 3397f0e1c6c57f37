"""The same file and seed give the same study, whatever happens to its processes on the way."""

import random
import signal
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import Engine, event

from orchestrator.store.records import FINISHED
from orchestrator.store.repository import Store
from orchestrator.study import StudyBusyError
from orchestrator.tracking import Tracker
from orchestrator.tracking_events import EnsureExperiment
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import CommandLine, FinishedStudy, differences, read_rows, run_here, start, write_tiny

PROCESS_TIMEOUT_S = 240.0


def assert_is_the_same_study(home: Path, tiny: FinishedStudy) -> None:
    """The same trials, points, metrics, curves and results, and the same champion weights."""
    rows = read_rows(home)
    assert differences(rows, tiny.rows) == []
    mine, theirs = (
        load_file(Path(one.stages["promote"].result["folder"]) / "model.safetensors") for one in (rows, tiny.rows)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6, rtol=0) for name in mine)


def query(home: Path, statement: str) -> list[tuple]:
    """Rows straight from the database of a running study; none before there are tables."""
    if not (home / "vitsearch.db").exists():
        return []
    with closing(sqlite3.connect(home / "vitsearch.db", timeout=30)) as connection:
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []


def count_steps(home: Path) -> int:
    """How far a study is: attempts begun and epochs reported."""
    found = query(home, "SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM reports)")
    return int(found[0][0]) if found else 0


def counts(home: Path) -> dict[str, int]:
    tables = ("studies", "executions", "stages", "trials", "attempts", "reports", "checkpoints", "outbox")
    return {table: query(home, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def assert_rows_are_true(home: Path) -> None:
    """Nothing says `running`, trials are numbered without a gap, and none was finished twice."""
    for table in ("studies", "executions", "stages", "trials", "attempts"):
        assert query(home, f"SELECT count(*) FROM {table} WHERE state = 'running'") == [(0,)]
    numbers: dict[int, list[int]] = {}
    for stage, number in query(home, "SELECT stage_id, number FROM trials ORDER BY stage_id, number"):
        numbers.setdefault(stage, []).append(number)
    assert all(found == list(range(len(found))) for found in numbers.values())
    finished = f"state IN ({', '.join(repr(state) for state in sorted(FINISHED))})"
    twice = f"SELECT trial_id FROM attempts WHERE {finished} GROUP BY trial_id HAVING count(*) > 1"
    assert query(home, twice) == []
    ended = f"SELECT count(*) FROM trials WHERE {finished}"
    assert query(home, ended) == query(home, f"SELECT count(*) FROM attempts WHERE {finished}")


# --- twice the same ---


def test_the_same_seed_gives_the_same_study_in_another_home(tiny: FinishedStudy, tmp_path: Path) -> None:
    run_here(write_tiny(tmp_path), tmp_path / "home")
    assert_is_the_same_study(tmp_path / "home", tiny)


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
    before, changed = counts(tiny.home), read_rows(tiny.home).study.updated_at
    started = time.perf_counter()
    done = command_line("run", tiny.file, home=tiny.home)
    assert time.perf_counter() - started < 5
    assert done.status == 0
    assert "already complete" in done.err
    assert "Champion" in done.out
    assert counts(tiny.home) == before
    assert read_rows(tiny.home).study.updated_at == changed


def test_a_changed_file_under_the_same_name_is_refused_and_the_change_named(
    tiny: FinishedStudy, command_line: CommandLine, tmp_path: Path
) -> None:
    before = counts(tiny.home)
    changed = write_tiny(tmp_path, **{"epochs: 4": "epochs: 5"})
    done = command_line("run", changed, home=tiny.home)
    assert done.status == 2
    assert "stages[2].epochs: 4 -> 5" in done.err
    assert "vitsearch delete tiny" in done.err
    assert done.out == ""
    assert counts(tiny.home) == before


# --- SIGKILL ---


class Moment(NamedTuple):
    """When a process is killed: so long after its start, or after it came so far and so long."""

    steps: int | None
    seconds: float


def run_until(
    moment: Moment, file: Path, home: Path, send: Callable[[subprocess.Popen[str]], None], **environment: str
) -> int:
    """Run the study as a process of its own until a moment; its exit status after `send`."""
    process = start("run", file, "--quiet", home=home, cwd=file.parent, **environment)
    try:
        deadline = time.monotonic() + PROCESS_TIMEOUT_S
        while moment.steps is not None and count_steps(home) < moment.steps and process.poll() is None:
            assert time.monotonic() < deadline, "the study does not come forward"
            time.sleep(0.002)
        time.sleep(moment.seconds)
        send(process)
        process.communicate(timeout=PROCESS_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode


def kill_and_resume(tiny: FinishedStudy, folder: Path, moments: list[Moment]) -> None:
    """Kill a study at each moment, resume it to its end, and compare it with the undisturbed one."""
    home, file = folder / "home", write_tiny(folder)
    killed = 0
    for moment in moments:
        before = finished_epochs(home)
        status = run_until(moment, file, home, subprocess.Popen.kill)
        killed += status == -signal.SIGKILL
        kept = finished_epochs(home)
        assert {key: kept[key] for key in before} == before  # an epoch that was reported is not trained again
    assert killed == len(moments)
    before = finished_epochs(home)
    study = run_here(file, home)
    assert (study.state, study.reason) == ("complete", None)
    kept = finished_epochs(home)
    assert {key: kept[key] for key in before} == before
    assert_rows_are_true(home)
    assert_is_the_same_study(home, tiny)
    executions = Counter(read_rows(home).executions)
    assert executions["complete"] == 1
    assert executions["lost"] <= killed


def finished_epochs(home: Path) -> dict[tuple[int, int], str]:
    """Every reported epoch with its values, among them the time that it took, which no repetition reproduces."""
    found = query(home, 'SELECT trial_id, epoch, "values" FROM reports')
    return {(trial, epoch): values for trial, epoch, values in found}


def moments_over(num_steps: int, *, early: int, late: int, seed: int) -> list[Moment]:
    """Moments while a process starts, then moments in equal parts of the work, each at a random place in its part."""
    rng = random.Random(seed)
    first = [Moment(None, rng.uniform(0.2, 4.0)) for _ in range(early)]
    part = (num_steps - 1) / late
    steps = [1 + int(part * (index + rng.random())) for index in range(late)]
    return first + [Moment(count, rng.uniform(0, 0.1)) for count in steps]


def test_a_study_killed_three_times_ends_as_if_nothing_had_happened(tiny: FinishedStudy, tmp_path: Path) -> None:
    steps = count_steps(tiny.home)
    kill_and_resume(tiny, tmp_path, [Moment(1, 0.0), *moments_over(steps, early=0, late=2, seed=3)])


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_killed_at_twenty_random_moments_ends_as_if_nothing_had_happened(
    tiny: FinishedStudy, tmp_path: Path
) -> None:
    kill_and_resume(tiny, tmp_path, moments_over(count_steps(tiny.home), early=4, late=16, seed=11))


def test_a_process_that_dies_while_mlflow_makes_its_tables_leaves_none_behind(tmp_path: Path) -> None:
    uri, statements = f"sqlite:///{tmp_path}/mlflow.db", []

    def die(_connection, _cursor, statement: str, *_: object) -> None:
        statements.append(statement)
        if len(statements) == 100:  # of some 400
            raise KeyboardInterrupt

    event.listen(Engine, "after_cursor_execute", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            Tracker(uri, tmp_path).prepare()
    finally:
        event.remove(Engine, "after_cursor_execute", die)
    assert not (tmp_path / "mlflow.db").exists()
    tracker = Tracker(uri, tmp_path)
    tracker.deliver([EnsureExperiment(name="digits")])
    assert tracker.experiment_url("digits", server_url="http://here") is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tracked_study_that_is_killed_tells_mlflow_one_tree(tiny: FinishedStudy, tmp_path: Path) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)
    moments = moments_over(count_steps(tiny.home), early=0, late=5, seed=5)
    for moment in moments:
        killed = run_until(moment, file, home, subprocess.Popen.kill, VITSEARCH_TRACKING="on")
        assert killed == -signal.SIGKILL
    study = run_here(file, home, tracking=True)
    assert (study.state, study.reason) == ("complete", None)
    assert_is_the_same_study(home, tiny)
    assert query(home, "SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_lineage(home, tiny, num_executions=len(moments) + 1)


# --- Ctrl-C ---


def test_ctrl_c_in_training_says_how_to_go_on_and_going_on_completes(
    tiny: FinishedStudy, tmp_path: Path, command_line: CommandLine
) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)
    process = start("run", file, home=home, cwd=tmp_path)
    try:
        while not query(home, "SELECT 1 FROM reports LIMIT 1") and process.poll() is None:
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
    assert f"Go on with: vitsearch run {file}" in errors
    assert "Traceback" not in errors
    assert_rows_are_true(home)
    rows = read_rows(home)
    assert rows.study.state == "interrupted"
    assert rows.stages["train"].state == "interrupted"
    assert rows.stages["grow"].state == "complete"
    assert rows.stages["promote"].state == "waiting"
    assert {trial.state for trial in rows.trials["train"]} <= {"complete", "waiting"}
    kept = finished_epochs(home)
    assert command_line("run", file, home=home).status == 0
    assert {key: finished_epochs(home)[key] for key in kept} == kept
    assert_rows_are_true(home)
    assert_is_the_same_study(home, tiny)


def test_a_second_ctrl_c_ends_at_once_and_leaves_true_rows(tmp_path: Path) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)

    def second_ctrl_c(told: Told) -> None:
        if told == Told("epoch", "train", (1, 2)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_here(file, home, progress=RecordingProgress(second_ctrl_c))
    assert_rows_are_true(home)
    rows = read_rows(home)
    assert rows.study.state == "interrupted"
    assert [trial.state for trial in rows.trials["train"]] == ["complete", "waiting"]
    assert query(home, "SELECT state FROM attempts ORDER BY id DESC LIMIT 1") == [("interrupted",)]
    assert len(rows.curves["train"][1]) == 2


def test_the_first_signal_asks_and_the_second_raises(capsys: pytest.CaptureFixture[str]) -> None:
    from orchestrator.cli.signals import StopRequest, stop_on_signal

    control = StopRequest()
    handler = signal.getsignal(signal.SIGINT)
    with stop_on_signal(control):
        signal.raise_signal(signal.SIGTERM)
        assert control.should_stop()
        assert "once more" in capsys.readouterr().err
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


@pytest.mark.timeout(300)
def test_a_study_runs_while_mlflow_is_away_and_tells_it_everything_later(
    tiny: FinishedStudy, tmp_path: Path, command_line: CommandLine
) -> None:
    home, file = tmp_path / "home", write_tiny(tmp_path)
    tracked = {"VITSEARCH_TRACKING": "on"}
    dead = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{unused_port()}"}
    started = time.perf_counter()
    away = command_line("run", file, **tracked, **dead)
    # Importing mlflow takes seconds; one call that waits for a dead server as mlflow does by itself takes minutes.
    assert time.perf_counter() - started < 60 + 2 * tiny.wall_time_s
    assert away.status == 0, away.err
    assert "records are kept" in away.err
    assert_is_the_same_study(home, tiny)
    owed = command_line("status", "tiny", "--format", "json", **tracked).json()["tracking"]
    assert owed["owed"] > 50
    still_away = command_line("run", file, **tracked, **dead)
    assert still_away.status == 0
    assert f"{owed['owed']} records are kept" in still_away.err

    back = command_line("run", file, **tracked)
    assert back.status == 0, back.err
    summary = command_line("status", "tiny", "--format", "json", **tracked).json()
    assert summary["tracking"] == {"owed": 0, "rejected": 0}
    assert summary["num_executions"] == 1
    assert_lineage(home, tiny)


def assert_lineage(home: Path, tiny: FinishedStudy, *, num_executions: int = 1) -> None:
    """MLflow shows executions with their stages, and below the train stage its trials with their curves."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    by_level: dict[str, dict] = {"execution": {}, "stage": {}, "trial": {}}
    for run in runs:
        by_level[run.data.tags["vitsearch.level"]][run.info.run_name] = run
    assert len(runs) == sum(len(named) for named in by_level.values())
    executions = [by_level["execution"][name] for name in sorted(by_level["execution"])]
    assert [run.info.status for run in executions] == [*["KILLED"] * (num_executions - 1), "FINISHED"]
    assert {run.info.status for level in ("stage", "trial") for run in by_level[level].values()} == {"FINISHED"}
    for execution in executions:
        assert {one.dataset.name for one in execution.inputs.dataset_inputs} == {"digits"}
    assert set(by_level["stage"]) == set(tiny.rows.stages)
    parents = {run.data.tags["mlflow.parentRunId"] for run in by_level["stage"].values()}
    assert parents <= {execution.info.run_id for execution in executions}
    assert len(by_level["trial"]) == len(tiny.rows.trials["train"])
    train = by_level["stage"]["train"].info.run_id
    for run, trial, curve in zip(
        (by_level["trial"][name] for name in sorted(by_level["trial"])),
        tiny.rows.trials["train"],
        tiny.rows.curves["train"],
        strict=True,
    ):
        assert run.data.tags["mlflow.parentRunId"] == train
        assert run.data.params["topology"] == trial.point["topology"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
            [report.val_accuracy for report in curve]
        )
    assert "vitsearch.grown_from" in by_level["trial"]["trial 00"].data.tags
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.run_id == by_level["stage"]["promote"].info.run_id
    assert float(champion.tags["test_accuracy"]) == pytest.approx(tiny.champion["test_accuracy"], abs=1e-4)
