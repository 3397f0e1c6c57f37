"""Communication between a running task and its study. All layers in between implement or wrap this protocol."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from trainers.config import EpochReport


class Reporter(Protocol):
    """Receives the reports of a task and can ask it to stop. Implementations subclass it."""

    def report(self, report: EpochReport) -> None:
        """Receive the report of a finished epoch. A resumed training reports its earlier epochs again."""
        ...

    def should_stop(self) -> bool:
        """Whether the task should stop now, to be resumed later. Called between batches."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """A context that a pool keeps open while it runs the task in the study's process."""
        return nullcontext()


class SilentReporter(Reporter):
    """Ignores reports and never asks to stop."""

    def report(self, report: EpochReport) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Return false."""
        return False
