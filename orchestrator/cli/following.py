"""`vitsearch watch` and `logs`: follow a submitted study."""

import time
from pathlib import Path

from orchestrator.cli.console import fail, note, out, print_json
from orchestrator.cli.exit_status import FAILED, INTERRUPTED
from orchestrator.cli.remote import client_of
from orchestrator.cli.service_studies import NOTHING_YET, end_words, logs_there, watch_there
from orchestrator.cli.submitting import opened_store
from orchestrator.cli.tables import study_report
from orchestrator.settings import Settings, load_settings
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord

POLL_S = 0.5
_SHOWN_LINES = 20
_START_EVERY = 20
"""Polls between two looks at whether a process runs the waiting studies."""
_LAST_LINE_S = 2.0
"""How long to wait for the last line of a driver that has ended."""


class LogReader:
    """Reads a file that another process appends to, in whole lines.

    Args:
        file: The file, which may not exist yet.
        num_lines: Number of last lines to begin with; `None` for all.
    """

    def __init__(self, file: Path, *, num_lines: int | None = None) -> None:
        self._file, self._num_lines = file, num_lines
        self._offset = 0
        self.last_line = ""
        """The last line that was read; empty if there is none."""

    def new_lines(self) -> list[str]:
        """The lines that were added since the last call."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as content:
            content.seek(self._offset)
            whole, newline, _ = content.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines = whole.decode("utf-8", "replace").split("\n") if newline else []
        self.last_line = lines[-1] if lines else self.last_line
        if self._num_lines is not None:
            lines, self._num_lines = lines[-self._num_lines :], None
        return lines


def logs_command(name: str, server: str | None, *, follow: bool) -> None:
    """Print what the drivers of a study wrote."""
    client = client_of(server)
    if client:
        logs_there(client, name, follow=follow)
        return
    from orchestrator.service.submitting import find_submission, log_file

    settings = load_settings()
    with opened_store(settings) as store:
        found = find_submission(store, name)
        log = LogReader(log_file(settings, found))
        lines = log.new_lines()
        if not lines:
            note(f"study {found.name!r} has written nothing yet: it is {found.state}")
        _print(lines)
        while follow and found.is_active:
            time.sleep(POLL_S)
            found = find_submission(store, found.uid)
            _print(log.new_lines() if found.is_active else _last_lines(log, found))


def watch_command(name: str, server: str | None, *, as_json: bool) -> None:
    """Follow a study to its end, then print its results. Ctrl-C ends the watching only."""
    client = client_of(server)
    if client:
        watch_there(client, name, as_json=as_json)
        return
    from orchestrator.service.submitting import find_submission
    from orchestrator.study.access import find_summary

    settings = load_settings()
    with opened_store(settings) as store:
        found = find_submission(store, name)
        try:
            found = _follow(found, store, settings)
        except KeyboardInterrupt:
            fail(
                f"watching has ended, and study {found.name!r} continues in the background. End it with: "
                f"vitsearch cancel {found.name}",
                status=INTERRUPTED,
            )
    if found.state != "complete":
        fail(end_words(found.name, found.state, found.reason), status=FAILED)
    summary = find_summary(found.name, settings)
    if as_json:
        print_json(summary)
    else:
        out(study_report(summary))


def _follow(found: SubmissionRecord, store: Store, settings: Settings) -> SubmissionRecord:
    """Print the log, and why the study waits, until it is over."""
    from orchestrator.service.submitting import find_submission, log_file
    from orchestrator.service.supervisor import start_queue
    from orchestrator.study.states import why_waiting

    log, told, polls = LogReader(log_file(settings, found), num_lines=_SHOWN_LINES), "", 0
    has_written = False
    while True:
        found = find_submission(store, found.uid)
        lines = log.new_lines() if found.is_active else _last_lines(log, found)
        has_written = has_written or bool(lines)
        for line in lines:
            note(line)
        if not found.is_active:
            return found
        why = why_waiting(store, found)
        if why is None and polls == 0 and not has_written:
            why = NOTHING_YET
        if why is not None and why != told:
            note(f"{found.name}: {why}")
            told = why
        if polls % _START_EVERY == 0 and (found.state == "waiting" or not store.queue().has_driver(found.name)):
            start_queue(settings)  # the process may have been killed, and the driver as well
        polls += 1
        time.sleep(POLL_S)


def _last_lines(log: LogReader, found: SubmissionRecord) -> list[str]:
    """The rest of a log. A driver writes its last line once it has ended its submission; a killed one writes none."""
    lines, deadline = log.new_lines(), time.monotonic() + _LAST_LINE_S
    while log.last_line and not log.last_line.startswith(f"{found.name}: {found.state}"):
        if time.monotonic() > deadline:
            break
        time.sleep(_LAST_LINE_S / 20)
        lines += log.new_lines()
    return lines


def _print(lines: list[str]) -> None:
    for line in lines:
        out(line)
