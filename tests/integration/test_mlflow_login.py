"""`vitsearch ui --auth`: MLflow's server with user names and passwords."""

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from configparser import ConfigParser
from pathlib import Path

import pytest

from orchestrator.cli import serving
from orchestrator.tracking.login import ADMIN, PASSWORD_VARIABLE, LoginError, prepare_login
from tests.tiny import CommandLine, command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(url: str, password: str | None) -> int:
    """How MLflow answers a client."""
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json"},
    )
    if password is not None:
        sent = base64.b64encode(f"{ADMIN}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {sent}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_files_with_secrets_are_made_once_and_only_their_user_can_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    folder = tmp_path / "login"
    first, second = prepare_login(folder), prepare_login(folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700, 0o600}
    key = "MLFLOW_FLASK_SERVER_SECRET_KEY"
    assert first.environment[key] == second.environment[key]
    assert len(first.environment[key]) == 64
    assert first.password is not None
    monkeypatch.setenv(PASSWORD_VARIABLE, "correct horse battery")
    assert prepare_login(folder).password is None
    monkeypatch.delenv(PASSWORD_VARIABLE)
    (folder / "users.db").touch()
    assert prepare_login(folder).password is None, "the administrator exists already"
    (folder / "auth.ini").write_text("nonsense")
    with pytest.raises(LoginError, match=r"auth.ini must hold MLflow's settings"):
        prepare_login(folder)
    (tmp_path / "file").touch()
    with pytest.raises(LoginError, match="must be a folder for users"):
        prepare_login(tmp_path / "file")


def test_the_settings_follow_a_home_that_moves_and_keep_what_was_changed(tmp_path: Path) -> None:
    prepare_login(tmp_path / "old")
    config = tmp_path / "old" / "auth.ini"
    config.write_text(config.read_text().replace("= READ", "= NO_PERMISSIONS"))
    moved = (tmp_path / "old").rename(tmp_path / "100% new")
    environment = prepare_login(moved).environment
    read = ConfigParser()  # as MLflow reads it
    read.read(environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert read["mlflow"]["database_uri"] == f"sqlite:///{moved}/users.db"
    assert read["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert read["mlflow"]["admin_username"] == ADMIN
    assert read["mlflow"].getint("auth_cache_ttl_seconds") == 60


def test_others_reach_mlflow_only_with_a_password(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "home"
    given = {"VITSEARCH_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VITSEARCH_", "MLFLOW_"))}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("ui", "--auth", "--port", str(port)),
            env=clean | given,
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        told = (tmp_path / "log").read_text(encoding="utf-8")
        password = told.partition(f"The user {ADMIN} has the password ")[2].split(" ")[0]
        assert [status_of(url, one) for one in (None, "wrong", password)] == [401, 401, 200], told
        arguments = Path(f"/proc/{process.pid}/cmdline")
        assert not arguments.exists() or password not in arguments.read_text(encoding="utf-8"), "`ps` shows no secret"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_other_machines_need_a_password_and_a_server_elsewhere_is_not_started(command_line: CommandLine) -> None:
    for arguments, environment, told in (
        (("--host", "0.0.0.0"), {}, "Add --auth"),
        (("--auth",), {"MLFLOW_TRACKING_URI": "https://mlflow.example"}, "is a server already"),
        (("absent", "--auth", "--port", str(free_port())), {}, "absent"),
    ):
        done = command_line("ui", *arguments, **environment)
        assert (done.status, told in done.err) == (2, True), done.err


def test_the_page_of_a_study_is_opened_with_a_login_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[bool, str]] = []
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(serving, "_study", lambda name, _: name)
    monkeypatch.setattr(serving, "page_of", lambda study, _, server: f"{server.url}/{study}")
    monkeypatch.setattr(serving, "show", lambda server, page: shown.append(("basic-auth" in server.command.argv, page)))
    port = free_port()
    serving.ui_command(port, "first", asks_login=True)
    assert shown == [(True, f"http://127.0.0.1:{port}/first")]
