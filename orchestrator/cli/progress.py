"""Displays of a running study: one live line per stage in a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as _TimeRemaining

from orchestrator.stages.progress import as_percent
from orchestrator.store.records import StageRecord, TrialRecord
from trainers.config import EpochReport

_PLAIN_PAUSE_S = 5.0
"""Minimum time between plain lines about quick trials."""


class LiveProgress:
    """One live line per stage: a bar, finished trials, the best trial so far, elapsed and remaining time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeRemaining(compact=True),
            TextColumn("{task.fields[best]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        self._task = self._bars.add_task(stage.name, total=total, completed=done, best="")

    def epoch(self, trial: TrialRecord, report: EpochReport) -> None:
        if self._task is not None:
            text = f"trial {trial.number}, epoch {report.epoch}: {as_percent(report.val_accuracy)}"
            self._bars.update(self._task, best=text)

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        if self._task is None:
            return
        self._bars.update(self._task, advance=1)
        if best:
            self._bars.update(self._task, best=f"best {best}")
        if trial.state == "failed":
            self.note(f"trial {trial.number} failed: {trial.reason}")

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        if self._task is None or stage.name != self._bars.tasks[-1].description:
            self._task = self._bars.add_task(stage.name, total=1, completed=0, best="")
        task = self._bars.tasks[-1]
        if stage.state == "complete":
            self._bars.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))
        self._bars.update(task.id, best=summary if stage.state == "complete" else f"{stage.state}: {summary}")
        self._bars.stop_task(task.id)
        self._task = None

    def note(self, message: str) -> None:
        self._bars.console.print(message, markup=False)


class PlainProgress:
    """One line per trained trial and occasional lines for quick trials, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = 0
        self._done = 0
        self._stage = ""
        self._began = time.monotonic()
        self._last_printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        self._stage, self._total, self._done = stage.name, total, done
        self._began = self._last_printed = time.monotonic()
        self._print(f"{stage.name}: started" if not done else f"{stage.name}: resumed at {done} of {total}")

    def epoch(self, trial: TrialRecord, report: EpochReport) -> None: ...

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        self._done += 1
        now = time.monotonic()
        trained = "val_accuracy" in trial.metrics and "epochs" in trial.metrics
        if trial.state == "failed":
            self._print(f"{self._stage}: trial {trial.number} failed: {trial.reason}")
        if not trained and now - self._last_printed < _PLAIN_PAUSE_S:
            return
        self._last_printed = now
        spent = f" in {trial.ended_at - trial.started_at:.1f} s" if trial.ended_at else ""
        result = f", {as_percent(trial.metrics['val_accuracy'])}" if trained else ""
        self._print(
            f"{self._stage}: {self._done} of {self._total}, trial {trial.number} {trial.state}{spent}{result}"
            + (f"; best {best}" if best else "")
            + f"; {self._left(now)} left"
        )

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        self._print(f"{stage.name}: {stage.state}: {summary}")

    def note(self, message: str) -> None:
        self._print(message)

    def _left(self, now: float) -> str:
        seconds = (now - self._began) / max(self._done, 1) * max(self._total - self._done, 0)
        return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
