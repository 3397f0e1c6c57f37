"""Ends this process and its child processes at once, for somebody who does not want to wait for a clean end."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator

GRACE_S = 0.7
"""Time for a clean end before the processes are killed."""
SAY_S = 1.0
"""Time for the last words."""

_last_acts: dict[object, Callable[[], None]] = {}


def before_abrupt_end(action: Callable[[], None]) -> Callable[[], None]:
    """Call `action`, which must be quick, after the child processes were killed; returns a function to forget it."""
    key = object()
    _last_acts[key] = action

    def forget() -> None:
        _last_acts.pop(key, None)

    return forget


class AbruptEnd:
    """Ends this process if it has not ended soon after `start`.

    Args:
        grace_s: Time for a clean end.
        say: Called before the end. The end does not wait for it if it takes long, as with a terminal that is blocked.
    """

    def __init__(self, *, grace_s: float = GRACE_S, say: Callable[[], None] = lambda: None) -> None:
        self._grace_s, self._say = grace_s, say
        self._timer: threading.Timer | None = None

    def start(self, status: int) -> None:
        """Let this process end with an exit status after the time for a clean end."""
        if self._timer is None:
            self._timer = threading.Timer(self._grace_s, self._end, args=(status,))
            self._timer.daemon = True
            self._timer.start()

    def cancel(self) -> None:
        """Let this process continue: it has cleaned up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, status: int) -> None:
        end_at_once(status, say=self._say)


def end_at_once(status: int, *, say: Callable[[], None] = lambda: None) -> None:
    """Kill all child processes, remove what would stay behind, and end this process without any clean-up.

    Args:
        status: The exit status.
        say: Called last, for at most `SAY_S` seconds.
    """
    try:
        for act in (*_children(), *list(_last_acts.values())):
            with contextlib.suppress(Exception):  # such as a process that has ended
                act()
        last = threading.Thread(target=_quietly, args=(say,), daemon=True)
        last.start()
        last.join(SAY_S)
    finally:
        os._exit(status)


def _quietly(say: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        say()


def _children() -> Iterator[Callable[[], None]]:
    """How to kill each child process and its descendants."""
    try:
        import psutil  # comes with Ray; without Ray, only multiprocessing starts processes
    except ImportError:
        yield from (child.kill for child in multiprocessing.active_children())
        return
    # Ray's workers are children of its raylet: collect all before the first is killed and its children are orphans.
    yield from [child.kill for child in psutil.Process().children(recursive=True)]
