"""`submit`, `watch`, `logs`, `cancel`, `resume` and `extend` with `--server`: the studies of a service."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.cli.exit_status import BAD_INPUT, FAILED, INTERRUPTED
from orchestrator.cli.remote import summary_there
from orchestrator.cli.tables import study_report
from orchestrator.store.service_records import ACTIVE, state_words
from trainers.yaml_source import SpecError, absolute_path, expanded_path, read_yaml

if TYPE_CHECKING:
    from orchestrator.client import Client

NOTHING_YET = "is running, and has written nothing yet"
"""Shown by `watch` at its start, because the process of a study needs some seconds for its first line."""
POLL_S = 1.0
PATIENCE_S = 600.0
"""How long `watch` waits for a service that does not answer."""
PAUSE_S = 2.0
_SHOWN_LINES = 20

Submission = Mapping[str, Any]


def validate_there(client: "Client", file: Path, *, overrides: Mapping[str, Any]) -> None:
    """Let a service check a study file as it would when it is submitted: with its plug-ins, data and studies."""
    _require_file_alone(file, overrides)
    tell_local_images(client, file)
    found = client.validate(file)
    out(f"{file}: study {found['study']!r} is valid at {client.url}: {' -> '.join(found['stages'])}")
    for remark in found["remarks"]:
        note(remark)


def _require_file_alone(file: Path, overrides: Mapping[str, Any]) -> None:
    if overrides:
        fail(
            f"a service reads the file alone, but {' and '.join(overrides)} were given as options. Write them into "
            f"{file}.",
            status=BAD_INPUT,
        )
    if not file.is_file():
        fail(f"{file}: must be a YAML file, but does not exist. Check the path.", status=BAD_INPUT)


def tell_local_images(client: "Client", file: Path) -> None:
    """Tell that images on this computer are not those that a service on another one reads."""
    from trainers.data.sources import BUILT_IN

    if client.is_local:
        return
    try:
        block = read_yaml(file).data.get("data")
    except SpecError:  # the service reports it
        return
    source = block.get("source") if isinstance(block, dict) else None
    if not isinstance(source, str) or not source or source in BUILT_IN or expanded_path(source).is_absolute():
        return
    here = Path(absolute_path(source, file.absolute().parent))
    if here.exists():
        note(
            f"{here} is on this computer and is not sent: the service looks for {source!r} in its data folder "
            "(VITSEARCH_DATA_ROOTS)"
        )


def submit_there(
    client: "Client",
    file: Path,
    *,
    overrides: Mapping[str, Any],
    priority: int,
    key: str | None,
    retry_failed: bool,
    shared: bool,
    webhook: str | None,
    webhook_secret: str | None,
    as_json: bool,
) -> None:
    """Submit a study file to a service."""
    _require_file_alone(file, overrides)
    tell_local_images(client, file)
    submitted = client.submit(
        file,
        priority=priority,
        shared=shared,
        key=key,
        retry_failed=retry_failed,
        webhook=webhook,
        webhook_secret=webhook_secret,
    )
    tell_submission(client, submitted, as_json=as_json)


def cancel_there(client: "Client", name: str, *, as_json: bool) -> None:
    """Cancel a study of a service."""
    found = client.cancel(name)
    if as_json:
        print_json(found)
    elif found["state"] == "running":
        out(f"study {found['study']!r} stops after its current step; every finished trial and epoch is kept")
    elif found["state"] == "cancelled":
        out(f"study {found['study']!r} is cancelled. Resume it with: vitsearch resume {found['study']}")
    else:
        out(f"study {found['study']!r} is {found['state']} already; nothing was changed")


def logs_there(client: "Client", name: str, *, follow: bool) -> None:
    """Print what the drivers of a study wrote."""
    reader = _LogParts(client, name)
    found = client.submission(name)
    if not reader.print_new(out):
        note(f"study {found['study']!r} has written nothing yet: it is {found['state']}")
    while follow and found["state"] in ACTIVE:
        time.sleep(POLL_S)
        found = client.submission(name)
        reader.print_new(out)


def watch_there(client: "Client", name: str, *, as_json: bool) -> None:
    """Follow a study of a service to its end, then print its results. Ctrl-C ends the watching only."""
    try:
        found = _follow(client, name)
    except KeyboardInterrupt:
        fail(
            f"watching has ended, and study {name!r} continues in the background. End it with: vitsearch cancel {name}",
            status=INTERRUPTED,
        )
    if found["state"] != "complete":
        fail(end_words(found["study"], found["state"], found["reason"]), status=FAILED)
    summary = summary_there(client, name)
    if as_json:
        print_json(summary)
    else:
        out(study_report(summary, is_remote=True))


def end_words(name: str, state: str, reason: str | None) -> str:
    """How a study ended that is not complete, and what to do."""
    why = (reason or "the log has the reason").rstrip(".")
    how = {"failed": f"failed: {why}", "cancelled": "was cancelled"}.get(state, f"was {state}: {why}")
    return f"study {name!r} {how}. Resume with: vitsearch resume {name}"


def tell_submission(client: "Client", found: Submission, *, as_json: bool) -> None:
    """Print a submission."""
    if as_json:
        print_json(found)
        return
    why = found["reason"] if found["state"] == "waiting" else None
    out(f"study {found['study']!r} {state_words(found['state'], why)}")
    if found["state"] in ACTIVE:
        note(f"It runs at {client.url}/studies/{found['study']}. Watch it with: vitsearch watch {found['study']}")


class _LogParts:
    """Prints a log as it grows, in whole lines."""

    def __init__(self, client: "Client", name: str, *, num_lines: int | None = None) -> None:
        self._client, self._name, self._num_lines = client, name, num_lines
        self._offset, self._rest = 0, ""
        self._unshown: list[str] = []
        """Lines that were read before the service stopped answering."""

    def print_new(self, show: Callable[[str], None]) -> bool:
        """Print the new lines; returns whether there were any."""
        while True:
            text, after = self._client.log(self._name, offset=self._offset)
            if after == self._offset:
                break
            self._offset = after
            *whole, self._rest = (self._rest + text).split("\n")
            self._unshown += whole
        lines, self._unshown = self._unshown, []
        if self._num_lines is not None:
            lines, self._num_lines = lines[-self._num_lines :], None
        for line in lines:
            show(line)
        return bool(lines)


def _follow(client: "Client", name: str) -> Submission:
    """Print the log of a study, and why it waits, until it is over. A service that is started again is waited for."""
    from orchestrator.client import ServerUnavailableError

    reader, told, has_answered = _LogParts(client, name, num_lines=_SHOWN_LINES), "", False
    lost_at: float | None = None
    while True:
        try:
            found = client.submission(name)
            has_written = reader.print_new(note)
        except ServerUnavailableError:
            if not has_answered or (lost_at is not None and time.monotonic() > lost_at + PATIENCE_S):
                raise
            if lost_at is None:
                lost_at = time.monotonic()
                note(
                    f"the service at {client.url} does not answer, which does not affect the study; trying again for "
                    f"up to {PATIENCE_S / 60:g} minutes"
                )
            time.sleep(PAUSE_S)
            continue
        if lost_at is not None:
            lost_at = None
            note("the service answers again")
        is_first, has_answered = not has_answered, True
        if is_first and not has_written and found["state"] == "running":
            note(f"{found['study']}: {NOTHING_YET}")
        if found["state"] not in ACTIVE:
            return found
        if found["state"] == "waiting" and found["reason"] != told:
            told = found["reason"]
            note(f"{found['study']}: {told}")
        time.sleep(POLL_S)
