"""Processes of Ray, found by their ancestors."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

HEAD, RAYLET, WORKER = "gcs_server", "raylet", "ray::"
"""How their names begin."""


def started_by(process: int) -> dict[int, str]:
    """Every process that this one has started, directly or not, with its name."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = path.read_text(errors="replace").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        number, _, name = before.partition(" (")
        parents.setdefault(int(after.split()[1]), []).append((int(number), name))
    found: dict[int, str] = {}
    asked = [process]
    while asked:
        for number, name in parents.get(asked.pop(), []):
            found[number] = name
            asked.append(number)
    return found


def started_in(folders: Iterable[Path]) -> list[int]:
    """Ray's own processes whose files are in these folders, and what they have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            command = path.read_text(errors="replace")
            if any(str(folder) in command for folder in folders):
                found.append(int(path.parent.name))
    return [*found, *(process for one in found for process in started_by(one))]


def named(process: int, name: str) -> list[int]:
    """Those of them whose names begin so, in no order."""
    return [number for number, found in started_by(process).items() if found.startswith(name)]


def kill(processes: Iterable[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def are_gone(processes: Iterable[int], *, within_s: float = 300.0) -> bool:
    """Whether all of them end in that time."""
    return comes_true(lambda: not any(_runs(process) for process in processes), within_s)


def comes_true(condition: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def folders_of(process: int) -> list[Path]:
    """Where a driver has put the files of its own Ray."""
    return list(Path(tempfile.gettempdir()).glob(f"vitsearch-ray-{process}-*"))


def described(process: int) -> str:
    """Its number, name, state and parent, as the system tells them; for messages."""
    return " ".join(_stat(process).split()[:4])


def _runs(process: int) -> bool:
    state = _stat(process).rpartition(")")[2].split()
    return bool(state) and state[0] not in "ZX"


def _stat(process: int) -> str:
    """Empty where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
