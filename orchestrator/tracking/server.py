"""How to start MLflow's server on a store of ours. It imports no mlflow: the server is a process of its own."""

import sys
from pathlib import Path
from typing import NamedTuple

from orchestrator.tracking.names import is_http


class ServerCommand(NamedTuple):
    """How to start an MLflow server."""

    argv: list[str]
    env: dict[str, str]
    """To be added to the environment."""
    url: str


def server_command(
    tracking_uri: str, artifact_root: Path, *, port: int, host: str = "127.0.0.1", allowed_hosts: str | None = None
) -> ServerCommand:
    """The command that serves MLflow's pages and API on a store of ours, with the settings that were measured as best.

    Args:
        tracking_uri: A database; not the address of a server.
        artifact_root: Where clients of this server put their files.
        port: To listen on.
        host: Interface to listen on.
        allowed_hosts: Comma-separated names under which it may be reached, such as `mlflow.example:*,127.0.0.1:*`;
            in place of MLflow's default, which is localhost and private addresses.

    Raises:
        ValueError: `tracking_uri` is a server already.
    """
    if is_http(tracking_uri):
        raise ValueError(
            f"a server is started on a database, but {tracking_uri} is a server already. Open it in a browser."
        )
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    argv += ["--artifacts-destination", artifact_root.absolute().as_uri(), "--workers", "1"]
    argv += ["--host", host, "--port", str(port), "--uvicorn-opts", "--log-level warning"]
    if allowed_hosts:
        argv += ["--allowed-hosts", allowed_hosts]
    env = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONWARNINGS": "ignore",
    }
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104
    return ServerCommand(argv, env, f"http://{shown}:{port}")
