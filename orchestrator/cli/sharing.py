"""The commands share and download: what people of a service do with each other's studies."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.cli.remote import client_of

if TYPE_CHECKING:
    from orchestrator.client import Client


def share_command(name: str, server: str | None, *, shared: bool, as_json: bool) -> None:
    """Let others see a study of a service, or no longer."""
    client = _client(server, "shared")
    found = client.share(name, shared=shared)
    if as_json:
        print_json(found)
        return
    study, seen_by_all = found["study"], found["shared"]
    whom = "everyone with an access token" if seen_by_all else "only its owner and administrators"
    out(f"study {study!r} can be seen by {whom}")
    if seen_by_all:
        note(f"Its page: {client.url}/studies/{study}. Others use it as in: vitsearch download {study}")


def download_command(name: str, server: str | None, *, folder: Path | None, as_json: bool) -> None:
    """Copy the champion of a study of a service into a new folder."""
    client = _client(server, "downloaded")
    target = folder or Path(name)
    try:
        client.champion(name, target)
    except FileExistsError as error:
        fail(f"{error.filename} must be a new folder, but exists. Name another with --out.", status=BAD_INPUT)
    if as_json:
        print_json({"study": name, "folder": str(target.absolute())})
        return
    out(f"{target}: the champion of study {name!r}")
    note(f"Use it as in: vitsearch predict {target} IMAGE...")


def _client(server: str | None, done: str) -> "Client":
    client = client_of(server)
    if client is None:
        fail(
            f"studies of a service can be {done}, but no service was named. Use --server or VITSEARCH_SERVER.",
            status=BAD_INPUT,
        )
    return client
