"""Displays of a running study: one live line for the running stage in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.cli.console import message_lines
from orchestrator.store.records import StageRecord, TrialRecord
from trainers.config import EpochReport

_PLAIN_PAUSE_S = 5.0
"""Minimum time between plain lines about quick trials."""
_NAME_WIDTH = 10
"""Columns for the name of a stage; a longer name moves the rest of its line."""
_WIDEST_BAR, _NARROWEST_BAR = 24, 8
_ECHO_WIDTH = 2
"""Columns for the `^C` that a terminal adds to a live line. On another line, it would make the live line stay."""


class RemainingTime:
    """Estimates the time left in a stage from the work done since it began here; a pause does not count.

    A running training counts as the share of its epochs that are done. An estimate by the stage itself has priority.

    Args:
        clock: Gives the time in seconds.
    """

    def __init__(self, *, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._done_before = self._done = done
        self._clock = clock
        self._began = clock()
        self._num_epochs: float | None = None
        self._running: dict[int, int] = {}
        self._ends_at: float | None = None

    @property
    def total(self) -> int:
        """Maximum number of trials."""
        return self._total

    @property
    def done(self) -> int:
        """Number of trials that have ended."""
        return self._done

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began here."""
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the last trial ends; `None` without an estimate and a trial that has ended here."""
        if self._ends_at is not None and self._done < self._total:
            return max(self._ends_at - self._clock(), 0.0)
        ended = self._done - self._done_before
        if not ended:
            return None
        begun = sum(min(epoch / self._num_epochs, 1) for epoch in self._running.values()) if self._num_epochs else 0
        return self.elapsed_s / (ended + begun) * max(self._total - self._done - begun, 0)

    def expect(self, seconds: float) -> None:
        """Take over an estimate of the time left from now on."""
        self._ends_at = self._clock() + seconds

    def item_ended(self) -> None:
        """Count an item of another kind."""
        self._done += 1

    def epoch_ended(self, trial: TrialRecord, report: EpochReport) -> None:
        """Count an epoch of a running training."""
        self._running[trial.number] = report.epoch

    def trial_ended(self, trial: TrialRecord) -> None:
        """Count a trial."""
        self.item_ended()
        self._running.pop(trial.number, None)
        self._num_epochs = max(trial.metrics.get("epochs", 0), self._num_epochs or 0) or None


class StageLine:
    """The live line of a stage. What matters most comes first; at the end, a narrow terminal cuts the running trial.

    At 80 columns: `train       ━━━━━━─────────  4/10  2 min left  best 97.8 % (trial 3)`.
    """

    def __init__(self, name: str, time_left: RemainingTime) -> None:
        self.name = name
        self.time = time_left
        self.best = ""
        self.latest = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_s = self.time.left_s
        when = f"{short_time(self.time.elapsed_s)} so far" if left_s is None else f"{short_time(left_s)} left"
        texts = [f"{self.time.done}/{self.time.total}", when, *([f"best {self.best}"] if self.best else [])]
        max_width = max(options.max_width - _ECHO_WIDTH, 1)
        named = Text(f"{self.name:<{_NAME_WIDTH}}  ", style="bold")
        told = "".join(f"  {text}" for text in (*texts, self.latest) if text)
        room = max_width - named.cell_len - len(told)
        bar = self._bar(min(max(room, _NARROWEST_BAR), _WIDEST_BAR), is_ascii=options.ascii_only)
        line = Text.assemble(named, *bar, told)
        line.truncate(max_width, overflow="ellipsis")
        yield line

    def _bar(self, width: int, *, is_ascii: bool) -> Iterator[tuple[str, str]]:
        """The done and the remaining part of the bar, with their styles."""
        done = width * min(self.time.done, self.time.total) // max(self.time.total, 1)
        yield ("=" if is_ascii else "━") * done, "bar.complete"
        yield (
            ("-" if is_ascii else "─") * (width - done),
            "bar.back",
        )  # another character, for terminals without colours


class LiveProgress:
    """One live line for the running stage; it becomes a plain line with the stage's summary when the stage ends."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._line: StageLine | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, line: StageLine | None) -> None:
        """Show another line; `None` shows that of the running stage again."""
        self._live.update(line or self._line or "", refresh=True)

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        self._line = StageLine(stage.name, RemainingTime(total=total, done=done))
        self._live.update(self._line)

    def epoch(self, trial: TrialRecord, report: EpochReport, *, value: str | None) -> None:
        if self._line is not None:
            self._line.time.epoch_ended(trial, report)
            self._line.latest = f"(trial {trial.number}, epoch {report.epoch}{'' if value is None else f': {value}'})"

    def time_left(self, seconds: float) -> None:
        if self._line is not None:
            self._line.time.expect(seconds)

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        if self._line is None:
            return
        self._line.time.trial_ended(trial)
        if best:
            self._line.best = best
        if trial.state == "failed":
            self.note(f"trial {trial.number} failed: {trial.reason}")

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        line, self._line = self._line, None
        self._live.update("")
        result = summary if stage.state == "complete" else f"{stage.state}: {summary}"
        spent = "" if line is None or line.name != stage.name else short_time(line.time.elapsed_s)
        row = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        row.add_row(Text(f"{stage.name:<{_NAME_WIDTH}}", style="bold"), Text(f"{spent:>6}"), Text(result))
        self._live.console.print(row)

    def note(self, message: str) -> None:
        self._live.console.print(message_lines(message), markup=False)


def short_time(seconds: float) -> str:
    """A duration in a few characters: `45 s`, `12 min`, `3 h 20`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02}"


class PlainProgress:
    """One line per trained trial and occasional lines for quick trials, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._time = RemainingTime(total=0, done=0)
        self._last_printed = 0.0
        self._values: dict[int, str | None] = {}
        """Metric of each running training after its newest epoch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        self._stage, self._time = stage.name, RemainingTime(total=total, done=done)
        self._last_printed = time.monotonic()
        self._print(f"{stage.name}: started" if not done else f"{stage.name}: resumed at {done} of {total}")

    def epoch(self, trial: TrialRecord, report: EpochReport, *, value: str | None) -> None:
        self._time.epoch_ended(trial, report)
        self._values[trial.number] = value

    def time_left(self, seconds: float) -> None:
        self._time.expect(seconds)

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        self._time.trial_ended(trial)
        now = time.monotonic()
        trained = trial.number in self._values
        value = self._values.pop(trial.number, None)
        if trial.state == "failed":
            self._print(f"{self._stage}: trial {trial.number} failed: {trial.reason}")
        if not trained and now - self._last_printed < _PLAIN_PAUSE_S:
            return
        self._last_printed = now
        spent = f" in {trial.metrics['wall_time_s']:.1f} s" if "wall_time_s" in trial.metrics else ""
        result = "" if value is None else f", {value}"
        left_s = None if self._time.done == self._time.total else self._time.left_s
        self._print(
            f"{self._stage}: {self._time.done} of {self._time.total}, trial {trial.number} {trial.state}{spent}{result}"
            + (f"; best {best}" if best else "")
            + ("" if left_s is None else f"; about {short_time(left_s)} left")
        )

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        self._print(f"{stage.name}: {stage.state}: {summary}")

    def note(self, message: str) -> None:
        self._print(message)

    def _print(self, line: str) -> None:
        self._console.print(message_lines(line), markup=False, soft_wrap=True)
