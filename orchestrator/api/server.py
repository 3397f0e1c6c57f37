"""Runs the service until a signal stops it."""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from orchestrator.api.app import make_service
from orchestrator.service.access_tokens import has_tokens
from orchestrator.service.devices import detect_pool
from orchestrator.service.supervisor import Supervisor
from orchestrator.service.webhooks import WebhookSender
from orchestrator.settings import Settings, SettingsError
from orchestrator.store.repository import Store

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_MAX_CONNECTIONS = 1000
_STOP_S = 5.0
_PAUSE_S = 30.0
"""Pause after an unexpected error of the queue."""

_logger = logging.getLogger(__name__)


def run_service(
    settings: Settings,
    *,
    host: str,
    port: int,
    mlflow_url: str | None,
    runs_studies: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the studies of an installation, and run submitted ones, until SIGINT or SIGTERM.

    Studies that run then continue without the service.

    Args:
        settings: Settings of the installation.
        host: Interface to listen on.
        port: Port to listen on.
        mlflow_url: Address at which browsers reach MLflow; `None` shows no links.
        runs_studies: Whether this process starts the drivers of submitted studies.
        announce: Called with the address when the port is open.

    Raises:
        SettingsError: There are no tokens and other machines could reach the interface, the interface or the port
            cannot be used, or a data root does not exist.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root, tracking=settings.tracking)
    try:
        needs_token = has_tokens(store)
        check_service(settings, host, needs_token=needs_token)
        hosts = None if needs_token else _LOOPBACK_NAMES
        app = make_service(settings, needs_token=needs_token, hosts=hosts, mlflow_url=mlflow_url)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
        )
        with open_port(host, port) as listener, _supervised(store, settings, is_needed=runs_studies):
            announce(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
            _Server(config, app).run(sockets=[listener])
    finally:
        store.close()


class _Server(uvicorn.Server):
    """Ends the streams of events before it waits for requests; otherwise they would be cut off with an error."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.is_stopping = True
        await super().shutdown(sockets)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens for connections.

    Raises:
        SettingsError: The interface does not exist, or the port is in use.
    """
    try:
        # With the protocol given, accepted connections have TCP_NODELAY; asyncio does not set it otherwise.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_MAX_CONNECTIONS)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"--host and --port: must be an interface of this machine and a free port, but {host}, port {port}, "
            f"cannot be used: {error.strerror}. Use another one, such as --port {port % 65535 + 1}"
        ) from None
    return listener


def check_service(settings: Settings, host: str, *, needs_token: bool) -> None:
    """Check whether a service may run.

    Raises:
        SettingsError: See `run_service`.
    """
    if not needs_token and not is_loopback(host):
        raise SettingsError(
            f"--host: must be an address of this machine, such as 127.0.0.1, while there are no access tokens, but got "
            f"{host!r}. Create a token first: vitsearch token create"
        )
    for root in settings.data_roots:
        if not root.is_dir():
            raise SettingsError(f"VITSEARCH_DATA_ROOTS: must be existing folders, but {root} is none. Correct it.")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@contextmanager
def _supervised(store: Store, settings: Settings, *, is_needed: bool) -> Iterator[None]:
    """Run submitted studies meanwhile, and announce their ends."""
    if not is_needed:
        yield
        return
    supervisor = Supervisor(store, settings, detect_pool(settings))
    stop = threading.Event()
    threads = [
        threading.Thread(target=keep_running, args=(supervisor, stop), name="supervisor", daemon=True),
        threading.Thread(target=WebhookSender(store, settings).run, args=(stop,), name="webhooks", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(_STOP_S)


def keep_running(supervisor: Supervisor, stop: threading.Event, *, pause_s: float = _PAUSE_S) -> None:
    """Run submitted studies until `stop`. An unexpected error is logged; it must not end the queue of a service."""
    while not stop.is_set():
        try:
            supervisor.run(stop.is_set)
        except Exception:
            _logger.exception("the queue met an unexpected error, and continues in %g s", pause_s)
            stop.wait(pause_s)
