"""How a running task and its study talk to each other. Every layer in between implements or wraps this protocol."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from trainers.config import EpochReport


class Reporter(Protocol):
    """Receives what a task reports, and tells it when to end. Implementations subclass it."""

    def report(self, report: EpochReport) -> None:
        """Take the report of a finished epoch; after a resume, earlier epochs are reported again."""
        ...

    def should_stop(self) -> bool:
        """Whether the task should end now, to be resumed later; called between batches."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """A context that a pool holds open while it runs the task in the study's own process."""
        return nullcontext()


class SilentReporter(Reporter):
    """Ignores reports, and never asks to stop."""

    def report(self, report: EpochReport) -> None:
        """Do nothing."""

    def should_stop(self) -> bool:
        """Return false."""
        return False
