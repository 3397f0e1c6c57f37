"""A real MLflow server that is unreachable, starts and stops; several processes on a new database."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.tracking.events import (
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    LogInputs,
    LogMetrics,
    MetricPoint,
    RegisterModel,
    StartRun,
)
from orchestrator.tracking.mlflow_client import Tracker
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.server import server_command
from tests.fakes_tracking import MemoryOutboxStore
from tests.unit.test_serving import LIKE_MLFLOW

NOW = 1_760_000_000_000
SERVE_SH = Path(__file__).resolve().parents[2] / "mlflow" / "serve.sh"
STAGE, TRIAL = "study/7/stage/train", "study/7/trial/3"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(home: Path, port: int) -> Iterator[None]:
    home.mkdir(exist_ok=True)
    command = server_command(f"sqlite:///{home}/mlflow.db", home / "artifacts", port=port)
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command.argv, env={**os.environ, **command.env}, cwd=home, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def study(home: Path) -> list[Event]:
    weights = home / "model.safetensors"
    weights.write_bytes(b"weights")
    points = tuple(MetricPoint("val_accuracy", 1 - 1 / step, step, NOW + step) for step in range(1, 1201))
    return [
        EnsureExperiment(name="digits"),
        StartRun(key=STAGE, name="train", experiment="digits", start_time_ms=NOW),
        StartRun(key=TRIAL, parent_key=STAGE, name="trial 3", experiment="digits", params={"a": 1}, start_time_ms=NOW),
        LogInputs(key=TRIAL, name="digits", digest="ab12", source="digits"),
        LogMetrics(key=TRIAL, points=points),
        LogMetrics(key="study/7/trial/never-started", points=points[:1]),
        LogArtifact(key=TRIAL, path=str(weights), artifact_path="champion"),
        RegisterModel(key=TRIAL, name="digits", artifact_path="champion", alias="champion"),
        EndRun(key=TRIAL, status="FINISHED", end_time_ms=NOW + 9000),
    ]


@pytest.mark.slow
def test_everything_stays_owed_while_the_server_is_away_and_arrives_once_it_is_there(tmp_path: Path) -> None:
    port, events = free_port(), study(tmp_path)
    url = f"http://127.0.0.1:{port}"
    store = MemoryOutboxStore(events)
    outbox = Outbox(store, lambda: Tracker(url, tmp_path / "unused"), first_pause_s=0.2)
    assert outbox.flush(300.0) == len(events)
    assert outbox.last_error is not None

    with mlflow_server(tmp_path / "server", port):
        assert store.wait_until(lambda: store.count_owed() == 0, timeout_s=600.0)
        assert [event_id for event_id, _ in store.rejected] == [6]
        Tracker(url, tmp_path / "unused").deliver(
            [*events[:5], *events[6:]]
        )  # once more, by a process that knows nothing

        from mlflow import MlflowClient

        client = MlflowClient(url)
        runs = {
            run.info.run_name: run
            for run in client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        }
        assert set(runs) == {"train", "trial 3"}
        trial = runs["trial 3"]
        assert trial.data.tags["mlflow.parentRunId"] == runs["train"].info.run_id
        assert trial.info.status == "FINISHED"
        assert len(client.get_metric_history(trial.info.run_id, "val_accuracy")) == 1200
        assert [found.dataset.digest for found in trial.inputs.dataset_inputs] == ["ab12"]
        assert [found.path for found in client.list_artifacts(trial.info.run_id, "champion")] == [
            "champion/model.safetensors"
        ]
        assert client.get_model_version_by_alias("digits", "champion").run_id == trial.info.run_id
        assert len(client.search_model_versions("name = 'digits'")) == 1
        assert not (tmp_path / "unused").exists()

    store.append(EndRun(key=TRIAL, status="FINISHED", end_time_ms=NOW + 9001))
    assert outbox.close(timeout_s=300.0) == 1


@pytest.mark.slow
def test_processes_that_meet_at_a_new_database_all_deliver(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.tracking.mlflow_client import Tracker; "
        "from orchestrator.tracking.events import StartRun; home, name = Path(sys.argv[1]), sys.argv[2]; "
        "run = StartRun(key=name, name=name, experiment=name, start_time_ms=1); "
        "Tracker(f'sqlite:///{home}/mlflow.db', home / 'artifacts').deliver([run])"
    )
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "home"), f"study{number}"], stderr=subprocess.PIPE, cwd=folder
        )
        for number in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert errors == [b"", b""]
    assert list(folder.iterdir()) == []


def serve_sh(settings: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mlflow/serve.sh` with an interpreter that only prints the server's arguments and its database's address."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nwhile [ "$1" != -m ]; do shift; done\necho "$@" store="$MLFLOW_BACKEND_STORE_URI"\n')
    python.chmod(0o755)
    (folder / "server.env").write_text(settings)
    return subprocess.run(
        [str(SERVE_SH), str(folder / "server.env")],
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_team_server_starts_with_one_worker_and_the_settings_of_its_file(tmp_path: Path) -> None:
    settings = "# a comment\n\nMLFLOW_BACKEND_STORE_URI=postgresql://u:a=b@db/x?y=1\nMLFLOW_ARTIFACTS_DESTINATION=s3://b\nMLFLOW_PORT=1"
    found = serve_sh(settings, tmp_path, MLFLOW_PORT="5001", MLFLOW_SERVER_ALLOWED_HOSTS="mlflow.example")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == (
        "-m mlflow server --artifacts-destination s3://b --host 127.0.0.1 --port 5001 --workers 1 --uvicorn-opts "
        "--log-level warning --allowed-hosts mlflow.example store=postgresql://u:a=b@db/x?y=1"
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`mlflow/serve.sh` as in a terminal, whose Ctrl-C reaches all of its processes, with a small server."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").touch()
    (tmp_path / "mlflow" / "__main__.py").write_text(LIKE_MLFLOW)
    (tmp_path / "server.env").write_text("MLFLOW_BACKEND_STORE_URI=a\nMLFLOW_ARTIFACTS_DESTINATION=b\n")
    process = subprocess.Popen(
        [str(SERVE_SH), str(tmp_path / "server.env")],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_team_server_quietly(started: "subprocess.Popen[str]", number: int) -> None:
    assert started.stdout is not None
    assert [started.stdout.readline() for _ in range(3)][2] == "a warning\n"
    os.killpg(started.pid, number)
    written, _ = started.communicate(timeout=60)
    assert (written, started.returncode) == ("", 0)


def test_users_are_not_kept_in_a_file_of_the_folder_in_which_the_server_happens_to_start(tmp_path: Path) -> None:
    settings = (
        "MLFLOW_BACKEND_STORE_URI=sqlite:////x.db\nMLFLOW_ARTIFACTS_DESTINATION=s3://b\nMLFLOW_APP_NAME=basic-auth\n"
    )
    found = serve_sh(settings, tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "MLFLOW_AUTH_CONFIG_PATH must name MLflow's settings of users" in found.stderr
    found = serve_sh(settings, tmp_path, MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "server.env"))
    assert found.returncode == 0, found.stderr
    assert "--app-name basic-auth" in found.stdout


@pytest.mark.parametrize("settings", ["", "MLFLOW_BACKEND_STORE_URI=sqlite:////x.db\n", "$(touch x)=1\n", "export A\n"])
def test_the_team_server_does_not_start_on_half_a_configuration(settings: str, tmp_path: Path) -> None:
    found = serve_sh(settings, tmp_path)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
