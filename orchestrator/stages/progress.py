"""The display of a running study."""

from typing import Any, Protocol, runtime_checkable

from orchestrator.store.records import StageRecord, TrialRecord
from trainers.config import EpochReport


class Progress(Protocol):
    """A display of a running study. The command line has one for terminals, one for logs and a silent one."""

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        """A stage begins or resumes, with `done` of at most `total` trials finished."""
        ...

    def epoch(self, trial: TrialRecord, report: EpochReport, *, value: str | None) -> None:
        """A training finished an epoch, with a value of the study's metric; `None` if it has no validation images."""
        ...

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        """A trial ended; `best` describes the best one so far."""
        ...

    def stage_ended(self, stage: StageRecord, summary: str) -> None: ...

    def note(self, message: str) -> None:
        """Show a message."""
        ...


@runtime_checkable
class ShowsTimeLeft(Protocol):
    """An optional part of a display."""

    def time_left(self, seconds: float) -> None:
        """The estimated time left in the search of the running stage has changed."""
        ...


class SilentProgress:
    """A display that shows nothing."""

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None: ...

    def epoch(self, trial: TrialRecord, report: EpochReport, *, value: str | None) -> None: ...

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None: ...

    def stage_ended(self, stage: StageRecord, summary: str) -> None: ...

    def note(self, message: str) -> None: ...


def as_percent(value: Any) -> str:
    """A fraction as a percentage: 0.9778 becomes `97.8 %`."""
    return f"{100 * float(value):.1f} %"
