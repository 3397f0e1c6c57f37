"""The processes of a team's installation, started from its settings file as systemd and containers start them."""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from sqlalchemy import make_url

from orchestrator.client import Client, ServerUnavailableError
from orchestrator.settings import Settings
from tests.integration.test_mlflow_server import free_port
from tests.postgres import PostgresServer

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "deploy"
START = FOLDER / "start.sh"
TIMEOUT_S = 400.0
STUDY = """\
study: first
pool: ray
data: {source: digits, image_size: 32, max_images: 60, max_test_images: 20}
resources: {max_concurrent: 1}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"]
    num_trials: 1
    epochs: 1
    recipe: {batch_size: 32}
  - stage: promote
"""


def settings_of(file: Path) -> dict[str, str]:
    """The lines `NAME=value` of a settings file."""
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `start.sh` to its end, with programs that only print their arguments."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "VITSEARCH_"))}
    return subprocess.run([str(START), *arguments], env=kept | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A folder like that of a virtual environment, with programs that print their arguments."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("vitsearch", "ray", "python"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" address=${{RAY_ADDRESS-none}} auth=$RAY_AUTH_MODE\n')
        (folder / name).chmod(0o755)
    return str(folder.parent)


EXAMPLE = FOLDER / "vitsearch.env.example"


def test_the_example_with_secrets_starts_every_part(programs: str, tmp_path: Path) -> None:
    edited = tmp_path / "vitsearch.env"
    edited.write_text(EXAMPLE.read_text().replace("change-me", "secret"))
    ray = start("ray", str(edited), VENV=programs)
    assert ray.stdout == "ray start --head --block --port=6379 --include-dashboard=false address=none auth=token\n"
    node = start("node", str(edited), VENV=programs)
    assert node.stdout == "ray start --address=ray:6379 --block address=ray:6379 auth=token\n"
    mlflow = start("mlflow", str(edited), VENV=programs)
    assert mlflow.stdout.startswith(
        "python -m mlflow server --artifacts-destination file:///srv/mlflow/artifacts --host"
    )
    assert "secret" not in mlflow.stdout, "everybody sees arguments"
    assert " --host 127.0.0.1 --port 5000 " in mlflow.stdout
    serve = start("serve", str(edited), VENV=programs, SERVE_PORT="8001")
    told = "vitsearch serve --host 127.0.0.1 --port 8001 --mlflow http://localhost:5000 address=ray:6379 auth=token\n"
    assert serve.stdout == told
    joined = start("join-and-serve", str(edited), VENV=programs, SERVE_PORT="8001")
    assert joined.stdout.splitlines()[0].startswith("ray start --address=ray:6379 --num-cpus=0 --num-gpus=0 address=")
    assert joined.stdout.endswith(told)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("mlflow", "MLFLOW_BACKEND_STORE_URI"),
        ("ray", "RAY_AUTH_TOKEN"),
        ("node", "RAY_AUTH_TOKEN"),
        ("serve", "VITSEARCH_DATABASE_URL"),
    ],
)
def test_the_secrets_of_the_example_are_refused(programs: str, part: str, name: str) -> None:
    found = start(part, str(EXAMPLE), VENV=programs)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"start.sh {part}: {name} must hold a secret of your own, but still holds change-me" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "must be mlflow, ray, node, serve or join-and-serve, but got: ''"),
        (["workers"], "but got: 'workers'"),
        (["serve", "/nowhere.env"], "there is no settings file /nowhere.env; copy"),
        (["serve"], "start.sh serve: VITSEARCH_DATABASE_URL must be set"),
        (["ray"], "start.sh ray: RAY_AUTH_TOKEN must be set"),
        (["mlflow"], "start.sh mlflow: MLFLOW_BACKEND_STORE_URI must be set"),
    ],
)
def test_what_is_missing_is_named(programs: str, arguments: list[str], message: str) -> None:
    found = start(*arguments, VENV=programs)
    assert found.returncode == 2
    assert message in found.stderr


def test_mlflow_with_users_needs_their_settings(programs: str, tmp_path: Path) -> None:
    edited = tmp_path / "vitsearch.env"
    lines = EXAMPLE.read_text().replace("change-me", "secret").replace("# MLFLOW_", "MLFLOW_")
    edited.write_text(lines)
    assert {"MLFLOW_APP_NAME", "MLFLOW_TRACKING_PASSWORD"} <= settings_of(edited).keys()
    found = start("mlflow", str(edited), VENV=programs)
    assert "MLFLOW_AUTH_CONFIG_PATH must name MLflow's settings of users" in found.stderr
    (tmp_path / "auth.ini").touch()
    found = start("mlflow", str(edited), VENV=programs, MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"))
    assert "--app-name basic-auth" in found.stdout
    edited.write_text(lines.replace("KEY=secret", "KEY=change-me"))
    assert "MLFLOW_FLASK_SERVER_SECRET_KEY must hold a secret" in start("mlflow", str(edited), VENV=programs).stderr


def test_a_line_that_is_no_setting_is_refused(programs: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.env"
    file.write_text("RAY_AUTH_TOKEN=a\nexport A=b\n")
    found = start("ray", str(file), VENV=programs)
    assert (found.returncode, found.stdout) == (2, "")
    assert "a line must read NAME=value, but got: export A" in found.stderr


def test_the_settings_of_the_example_exist() -> None:
    known = {f"VITSEARCH_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in settings_of(EXAMPLE) if name.startswith("VITSEARCH_")} <= known
    for address in ("VITSEARCH_DATABASE_URL", "MLFLOW_BACKEND_STORE_URI"):
        url = make_url(settings_of(EXAMPLE)[address])
        assert (url.username, url.password) == ("vitsearch", settings_of(EXAMPLE)["POSTGRES_PASSWORD"])


def test_containers_and_units_start_what_the_script_knows() -> None:
    compose: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    parts = set(re.findall(r"^([a-z-]+(?: \| [a-z-]+)*)\)$", START.read_text(), re.MULTILINE))
    known = {name for part in parts for name in part.split(" | ")}
    assert known == {"mlflow", "ray", "node", "serve", "join-and-serve"}
    hosts = {make_url(settings_of(EXAMPLE)["VITSEARCH_DATABASE_URL"]).host, "mlflow", "ray"}
    assert hosts < compose["services"].keys()
    for name, service in compose["services"].items():
        assert service["env_file"] == "vitsearch.env"
        assert name == "postgres" or service["command"][0] in known
        assert all(volume.split(":")[0] in compose["volumes"] or volume[0] in ".$" for volume in service["volumes"])
    assert compose["services"]["mlflow"]["environment"] == {"MLFLOW_HOST": "0.0.0.0"}
    assert compose["services"]["serve"]["environment"] == {"SERVE_HOST": "0.0.0.0"}
    opened = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert opened
    assert all(port.startswith("127.0.0.1:") for port in opened)
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert "postgresql-client" in dockerfile
    assert 'ENTRYPOINT ["/opt/vitsearch/docs/deploy/start.sh"]' in dockerfile
    for unit in FOLDER.glob("*.service"):
        (command,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        assert command == f"/opt/vitsearch/docs/deploy/start.sh {unit.stem.removeprefix('vitsearch-')}"


# --- the real processes ---


@contextmanager
def installation(file: Path, environment: dict[str, str], *parts: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Parts of an installation, which end with everything that they have started."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for part in parts:
            with (file.parent / f"{part}.log").open("wb") as log:
                running[part] = subprocess.Popen(
                    [str(START), part, str(file)], env=environment, stdout=log, stderr=log, start_new_session=True
                )
        yield running
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def until(condition: Callable[[], object], parts: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Wait until a condition holds; an error of the network counts as no."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition():
                return
        except (httpx.TransportError, ServerUnavailableError):
            pass
        ended = [name for name, process in parts.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            told = {name: (logs / f"{name}.log").read_text(errors="replace")[-3000:] for name in ended or parts}
            pytest.fail(f"must hold in {TIMEOUT_S:g} s; ended: {ended}; logs: {told}")
        time.sleep(0.5)


@pytest.mark.slow
def test_a_study_submitted_to_a_whole_installation_is_trained_and_shown(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    ports = {name: free_port() for name in ("ray", "mlflow", "serve")}
    given = settings_of(EXAMPLE) | {
        "VITSEARCH_DATABASE_URL": postgres.new_database(),
        "VITSEARCH_HOME": f"{tmp_path}/home",
        "VITSEARCH_ARTIFACT_ROOT": f"{tmp_path}/artifacts",
        "VITSEARCH_CACHE_FOLDER": f"{tmp_path}/cache",
        "VITSEARCH_DATA_ROOTS": str(tmp_path),
        "SERVE_HOST": "127.0.0.1",
        "SERVE_PORT": str(ports["serve"]),
        "SERVE_MLFLOW_URL": f"http://127.0.0.1:{ports['mlflow']}",
        "RAY_ADDRESS": f"127.0.0.1:{ports['ray']}",
        "RAY_HEAD_PORT": str(ports["ray"]),
        "RAY_NODE_IP": "127.0.0.1",
        "RAY_NUM_CPUS": "2",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
        "MLFLOW_BACKEND_STORE_URI": postgres.new_database(),
        "MLFLOW_ARTIFACTS_DESTINATION": f"file://{tmp_path}/mlflow",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(ports["mlflow"]),
    }
    file = tmp_path / "vitsearch.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "VITSEARCH_"))}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="vit-ray-") as ray_folder:  # sockets need short paths
        environment = kept | {
            "VENV": str(Path(sys.executable).parents[1]),
            "RAY_TMPDIR": ray_folder,
            "RAY_worker_niceness": "0",  # otherwise the other test processes starve the workers
        }
        made = subprocess.run(
            [Path(sys.executable).with_name("vitsearch"), "token", "create", "ann", "--role", "submitter"],
            env=environment | given,
            capture_output=True,
            text=True,
            check=True,
        )
        with (
            installation(file, environment, "mlflow", "ray", "serve") as parts,
            Client(f"http://127.0.0.1:{ports['serve']}", made.stdout.strip()) as service,
            httpx.Client(base_url=given["MLFLOW_TRACKING_URI"]) as mlflow,
        ):
            until(lambda: httpx.get(f"http://127.0.0.1:{ports['serve']}/ready").is_success, parts, tmp_path)
            until(lambda: mlflow.get("/health").is_success, parts, tmp_path)
            study_file = tmp_path / "first.yaml"
            study_file.write_text(STUDY)
            name = service.submit(study_file)["study"]
            over = ("complete", "failed", "cancelled")  # then the driver has told MLflow everything
            until(lambda: service.submission(name)["state"] in over, parts, tmp_path)
            found = service.study(name)
            assert (found["state"], found["reason"]) == ("complete", None), service.log(name)[0]
            assert found["stages"][0]["trials"] == {"complete": 1}
            asked = {"experiment_name": name}
            experiment = mlflow.get("/api/2.0/mlflow/experiments/get-by-name", params=asked).json()["experiment"]
            ids = {"experiment_ids": [experiment["experiment_id"]]}
            runs = mlflow.post("/api/2.0/mlflow/runs/search", json=ids).json()["runs"]
            assert len(runs) == 4  # the execution, its stages, and the trial
            assert {run["info"]["status"] for run in runs} == {"FINISHED"}
            asked = {"name": name, "alias": "champion"}
            registered = mlflow.get("/api/2.0/mlflow/registered-models/alias", params=asked).json()["model_version"]
            assert (name, registered["name"]) == ("ann~first", "ann~first")
