"""A real PostgreSQL server for the tests: in a temporary folder, on a Unix socket, with Debian's binaries."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

OWN_SERVER = "VITSEARCH_TEST_POSTGRES_URL"
"""Environment variable with the SQLAlchemy URL of another server to use; its user must be able to create databases."""
_SUPERUSER = "vitsearch"
_UNPRIVILEGED = "postgres"
"""System user that runs the server if the tests run as root, because PostgreSQL refuses to run as root."""
_START_S = 300.0


class PostgresServer:
    """Creates databases; a server started by the tests can also be stopped and restarted.

    Args:
        url: URL of a database that is used to create others.
        folder: Folder of a server started by the tests; `None` for an existing server.
        options: Options of a server started by the tests.
    """

    def __init__(self, url: str, folder: Path | None = None, options: Sequence[str] = ()) -> None:
        self._url = url
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        from sqlalchemy import create_engine, make_url, text

        name = f"test_{uuid.uuid4().hex[:12]}"
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return make_url(self._url).set(database=name).render_as_string(hide_password=False)

    @property
    def can_be_stopped(self) -> bool:
        """Whether the tests started the server."""
        return self._folder is not None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self._folder is not None
        if self._process is not None:
            return
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(_binaries() / "postgres"),
                    *("-D", str(self._folder / "data"), "-k", str(self._folder), "-c", "listen_addresses="),
                    # Without fsync, only a crash of the machine can lose data, not a crash of the server.
                    *("-c", "fsync=off", "-c", "max_connections=60"),
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                **_as_unprivileged(),
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                told = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL must start, but does not answer: {told}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(host=str(self._folder), user=_SUPERUSER, dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, sent: signal.Signals = signal.SIGINT) -> None:
        """Stop a server started by the tests: SIGINT ends all connections, SIGQUIT and SIGKILL simulate a crash."""
        if self._process is not None:
            self._process.send_signal(sent)
            self._process.wait(_START_S)
            self._process = None


@contextmanager
def running_server(*settings: str) -> Iterator[PostgresServer]:
    """A server for the whole session; without one, the test that needs it is skipped with the reason.

    Args:
        settings: Options of `postgres`, which replace those of the tests.
    """
    if find_spec("psycopg") is None:
        pytest.skip("PostgreSQL's driver is not installed: pip install 'psycopg[binary]'")
    given = os.environ.get(OWN_SERVER)
    if given:
        yield PostgresServer(given)
        return
    if not (_binaries() / "initdb").exists():
        pytest.skip(f"PostgreSQL is not installed (apt-get install postgresql) and {OWN_SERVER} names no server")
    options = _as_unprivileged()
    # Not in pytest's folder: a socket needs a short path that the server's user can reach.
    folder = Path(tempfile.mkdtemp(prefix="vitsearch-pg-"))
    try:
        if options:
            shutil.chown(folder, options["user"], options["group"])
        subprocess.run(
            [
                str(_binaries() / "initdb"),
                *("-D", str(folder / "data"), "-U", _SUPERUSER, "-A", "trust"),
                *("--no-sync", "--encoding=UTF8", "--locale=C"),
            ],
            check=True,
            capture_output=True,
            **options,
        )
        server = PostgresServer(f"postgresql+psycopg://{_SUPERUSER}@/postgres?host={folder}", folder, settings)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """Debian's folder of the newest installed version; on other systems the folder of `postgres` on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("postgres")
    return found[-1] if found else Path(on_path).parent if on_path else Path("/nowhere")


def _as_unprivileged() -> dict[str, Any]:
    """Process options with which PostgreSQL starts: an unprivileged user, and English messages."""
    environment = {**os.environ, "LC_ALL": "C"}
    if os.geteuid() != 0:
        return {"env": environment, "cwd": "/"}
    import pwd

    try:
        pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        pytest.skip(f"PostgreSQL refuses to run as root, and there is no user {_UNPRIVILEGED!r} to run it")
    user = {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []}
    return {"env": environment, "cwd": "/", **user}


def empty_database(request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of a new database of the kind, `sqlite` or `postgresql`, that a fixture's parameter names."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/vitsearch.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()
