"""The command that starts MLflow's server on our store. It runs in another process, so mlflow is not imported."""

import sys
from pathlib import Path
from typing import NamedTuple

from orchestrator.safe_text import masked_address
from orchestrator.tracking.login import APP_NAME as LOGIN_APP
from orchestrator.tracking.login import Login
from orchestrator.tracking.names import is_http

APP_NAME = "vitsearch"
"""Name of our entry point in the group `mlflow.app`, whose pages open on a study's trials."""


_UVICORN = "--log-level warning --timeout-graceful-shutdown 1"
"""The server ends a second after Ctrl-C, although pages that are open may still wait for an answer."""


class ServerCommand(NamedTuple):
    """Command line and environment of an MLflow server."""

    argv: list[str]
    env: dict[str, str]
    """Variables to add to the environment."""
    url: str


def server_command(
    tracking_uri: str,
    artifact_root: Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    allowed_hosts: str | None = None,
    login: Login | None = None,
) -> ServerCommand:
    """The command that serves MLflow's pages and API on our store, with the fastest settings that we measured.

    Args:
        tracking_uri: Address of a database, not of a server.
        artifact_root: Folder for the files of clients.
        port: Port to listen on.
        host: Interface to listen on.
        allowed_hosts: Comma-separated host names that clients may use, such as `mlflow.example:*,127.0.0.1:*`; by
            default localhost and private addresses.
        login: Files of MLflow's authentication; `None` asks for no password.

    Raises:
        ValueError: `tracking_uri` is the address of a server.
    """
    if is_http(tracking_uri):
        raise ValueError(
            f"an MLflow server must be started on a database, but {masked_address(tracking_uri)} is a server already. "
            "Open it in a browser."
        )
    argv = [sys.executable, "-m", "mlflow", "server"]
    argv += ["--artifacts-destination", artifact_root.absolute().as_uri(), "--workers", "1"]
    argv += ["--host", host, "--port", str(port), "--uvicorn-opts", _UVICORN]
    argv += ["--app-name", LOGIN_APP if login else APP_NAME]
    if allowed_hosts:
        argv += ["--allowed-hosts", allowed_hosts]
    env = {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,  # not an argument, which `ps` shows to everybody
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONWARNINGS": "ignore",
        **(login.environment if login else {}),
    }
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104
    return ServerCommand(argv, env, f"http://{shown}:{port}")
