"""`vitsearch ui`: starts MLflow's server, or finds the running one, and opens a page of it in the browser."""

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from typing import NamedTuple, NoReturn
from urllib.parse import quote

from orchestrator.cli.console import fail, note, out
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.safe_text import masked_address
from orchestrator.settings import Settings, load_settings
from orchestrator.store.records import StudyRecord
from orchestrator.tracking.login import ADMIN, prepare_login
from orchestrator.tracking.names import is_http
from orchestrator.tracking.server import ServerCommand, server_command

LOOPBACK = "127.0.0.1"
_NUM_STUDIES = 5
KEEPER = "orchestrator.cli.keeping"


class Server(NamedTuple):
    """MLflow's server: its address, and the command that starts it unless it is running."""

    url: str
    command: ServerCommand | None


def ui_command(port: int, name: str | None = None, *, host: str = LOOPBACK, asks_login: bool = False) -> None:
    """Show the page of a study, or the pages of all studies, with a server that runs until Ctrl-C."""
    settings = load_settings()
    if asks_login:
        _serve_with_login(settings, port, host, name)
        return
    if host != LOOPBACK:
        fail(f"--host: must be {LOOPBACK} without --auth, but got {host!r}. Add --auth.", status=BAD_INPUT)
    study = None if name is None else _study(name, settings)
    server = find_server(settings, port, study)
    if study is not None:
        show(server, page_of(study, settings, server))
        return
    if server.command is None:
        out(f"MLflow is running at {server.url}")
        return
    note(f"{_starting(server.command)} Pages of the newest studies:")
    for page in _newest_pages(settings, server.url):
        note(f"  {page}")
    _keep(server.command)


def _serve_with_login(settings: Settings, port: int, host: str, name: str | None) -> None:
    """Run a server that asks for a user name and a password, and open the page of a study if one is named."""
    if is_http(settings.tracking_uri):
        fail(
            f"--auth starts a server on a database, but {masked_address(settings.tracking_uri)} is a server already. "
            "Unset MLFLOW_TRACKING_URI.",
            status=BAD_INPUT,
        )
    if not _is_free(port, host):
        fail(f"port {port} of {host} must be free, but cannot be used. Use another: --port {port + 1}", status=1)
    study = None if name is None else _study(name, settings)
    login = prepare_login(settings.login_folder)
    command = server_command(settings.tracking_uri, settings.mlflow_root, port=port, host=host, login=login)
    server = Server(command.url, command)
    page = None if study is None else page_of(study, settings, server)
    if login.password is not None:
        note(f"The user {ADMIN} has the password {login.password} (shown only now)")
    if page is None:
        note(f"{_starting(command)} It asks for a user name and a password.")
        _keep(command)
    else:
        note("MLflow asks for a user name and a password.")
        show(server, page)


def find_server(settings: Settings, port: int, study: StudyRecord | None = None) -> Server:
    """The server for the studies: that of the settings, one on `port` that shows `study`, or a new one."""
    if is_http(settings.tracking_uri):
        return Server(settings.tracking_uri, None)
    if not settings.home.exists():
        fail(f"{settings.home} must contain a study, but does not exist yet. Run a study first.", status=1)
    command = server_command(settings.tracking_uri, settings.mlflow_root, port=port)
    if _is_free(port):
        return Server(command.url, command)
    if study is None or not _shows(command.url, study):
        fail(f"port {port} must be free, but it is in use. Use another port: --port {port + 1}", status=1)
    return Server(command.url, None)


def page_of(study: StudyRecord, settings: Settings, server: Server) -> str:
    """Address of a study's page. An experiment that MLflow has lost is sent again first."""
    from orchestrator.study.tracking_access import study_page

    page = study_page(study, settings, server_url=server.url)
    if page is None and settings.tracking:
        restore(study, settings)
        page = study_page(study, settings, server_url=server.url)
    if page is None:
        fail(
            f"study {study.name!r} must have an experiment in MLflow, but has none, because it ran with "
            f"VITSEARCH_TRACKING=off. Show its results with: vitsearch status {study.name}",
            status=1,
        )
    return page


def restore(study: StudyRecord, settings: Settings) -> None:
    """Send MLflow everything about a study whose experiment it no longer has."""
    from orchestrator.study.tracking_access import send_again

    note(f"MLflow has no experiment {study.name!r}; sending everything again")
    sent = send_again(study, settings)
    if sent.waiting or sent.rejected:
        note(
            f"MLflow lacks {sent.waiting + sent.rejected} events: {sent.waiting} still wait, {sent.rejected} were "
            "rejected"
        )


def sync_command(name: str) -> None:
    """Send MLflow everything about a study once more."""
    from orchestrator.study.tracking_access import send_again

    settings = load_settings()
    if not settings.tracking:
        fail("MLflow must be in use to be filled again, but VITSEARCH_TRACKING is off. Set it to on.", status=BAD_INPUT)
    sent = send_again(_study(name, settings), settings)
    if sent.all == 0:
        fail(f"study {name!r} must have events for MLflow, but has none, because it ran without tracking", status=1)
    if sent.rejected:
        note(f"MLflow rejected {sent.rejected} of the {sent.all} events. The first: {sent.reason}")
    if sent.waiting:
        fail(
            f"MLflow at {masked_address(settings.tracking_uri)} must answer, but {sent.waiting} of the {sent.all} "
            f"events still wait. Start it, then send them with: vitsearch sync {name}",
            status=1,
        )
    out(f"sent all {sent.all} events of study {name!r} to MLflow. Open its page with: vitsearch ui {name}")


def show(server: Server, page: str) -> None:
    """Open a page in the browser if there is one, and run the server unless it is running."""
    if server.command is None:
        open_in_browser(page)
        return
    note(f"{_starting(server.command)} The page:")
    note(f"  {page}")
    _keep(server.command, page if _has_browser() else "")


def open_in_browser(page: str) -> None:
    """Print the address of a page, and open it if there is a browser."""
    out(page)
    if _has_browser():
        import webbrowser

        webbrowser.open(page)


def _starting(command: ServerCommand) -> str:
    return f"Starting MLflow at {command.url}, which takes some seconds (press Ctrl-C to stop it)."


def _keep(command: ServerCommand, page: str = "") -> NoReturn:
    """Become the small process that runs the server, tells when it is ready, and ends it at Ctrl-C."""
    arguments = [sys.executable, "-P", "-m", KEEPER, command.url, page, *command.argv]
    os.execvpe(arguments[0], arguments, {**os.environ, **command.env})  # noqa: S606


def _study(name: str, settings: Settings) -> StudyRecord:
    from orchestrator.study.access import find_study

    return find_study(name, settings)


def _newest_pages(settings: Settings, server_url: str) -> list[str]:
    from orchestrator.study.access import open_existing
    from orchestrator.study.tracking_access import study_page

    with open_existing(settings) as store:
        studies = store.list_studies()[:_NUM_STUDIES] if store else []
    pages = (study_page(study, settings, server_url=server_url) for study in studies)
    return [page for page in pages if page is not None]


def _is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _shows(url: str, study: StudyRecord) -> bool:
    """Whether an MLflow server at `url` has the experiment of a study."""
    address = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(study.name)}"
    try:
        with urllib.request.urlopen(address, timeout=5) as response:  # noqa: S310 - our own address
            found = json.load(response)
    except (urllib.error.URLError, OSError, ValueError):
        return False
    tags = {tag["key"]: tag["value"] for tag in found.get("experiment", {}).get("tags", ())}
    return bool(tags.get("vitsearch.spec_digest") == study.spec_digest[:16])


def _has_browser() -> bool:
    """Whether a page can be opened in a graphical browser; a text browser would take over the terminal."""
    return sys.platform in {"darwin", "win32"} or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
