"""Shows how far the decoding of images is: a live line in a terminal, occasional plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from orchestrator.cli.progress import LiveProgress, PlainProgress, RemainingTime, StageLine, short_time
from orchestrator.stages.progress import Progress
from trainers.data.cache_settings import watch_decoding
from trainers.data.listing import UnreadableError

_NAME = "images"
_PAUSE_S = 10.0
"""Time between plain lines, and before the first one."""


class LiveDecoding:
    """A live line.

    Args:
        show: Shows a line; `None` means that it is no longer needed.
    """

    def __init__(self, show: Callable[[StageLine | None], object]) -> None:
        self._show = show
        self._time: RemainingTime | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._time is None or done == 0:
            self._time = RemainingTime(total=total, done=0)
            self._show(StageLine(_NAME, self._time))
        if done:
            self._time.item_ended()
        if done >= total:
            self._time = None
            self._show(None)


class PlainDecoding:
    """A line now and then.

    Args:
        console: Where to print.
        clock: Gives the time in seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last = 0.0
        self._time: RemainingTime | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._time is None or done == 0:
            self._last = self._clock()
            self._time = RemainingTime(total=total, done=0, clock=self._clock)
        if done:
            self._time.item_ended()
        if self._clock() - self._last >= _PAUSE_S:
            self._last = self._clock()
            left = f"; about {short_time(self._time.left_s)} left" if self._time.left_s is not None else ""
            self._console.print(f"{_NAME}: {done} of {total} decoded{left}", markup=False, soft_wrap=True)
        if done >= total:
            self._time = None  # the next images begin anew


@contextmanager
def study_display(console: Console) -> Iterator[Progress]:
    """The display of a study, on which the decoding of its images is shown, too."""
    if console.is_terminal or console.is_jupyter:
        with LiveProgress(console) as live, watch_decoding(LiveDecoding(live.show)):
            yield live
    else:
        with PlainProgress(console) as plain, watch_decoding(PlainDecoding(console)):
            yield plain


@contextmanager
def show_decoding(console: Console, *, quiet: bool = False) -> Iterator[None]:
    """Show the decoding of images inside the context, on a separate display."""
    if quiet:
        yield
    elif not console.is_terminal:
        with watch_decoding(PlainDecoding(console)):
            yield
    else:
        live = Live(console=console, refresh_per_second=4, transient=True)
        with live, watch_decoding(LiveDecoding(lambda line: live.update(line or "", refresh=True))):
            yield


@contextmanager
def advise_skip_broken() -> Iterator[None]:
    """Inside the context, the error for broken images advises the option of the command, not the field of a file."""
    try:
        yield
    except UnreadableError as error:
        raise error.with_remedy("`--skip-broken`") from None
