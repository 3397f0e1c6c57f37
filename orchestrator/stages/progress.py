"""What a running study tells whoever watches it."""

from typing import Any, Protocol

from orchestrator.store.records import StageRecord, TrialRecord
from trainers.config import EpochReport


class Progress(Protocol):
    """A display of a running study; the command line has one for people, one for logs and a silent one."""

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        """A stage begins, or goes on with `done` of at most `total` trials finished."""
        ...

    def epoch(self, trial: TrialRecord, report: EpochReport) -> None: ...

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        """A trial ended; `best` says what the best so far is."""
        ...

    def stage_ended(self, stage: StageRecord, summary: str) -> None: ...

    def note(self, message: str) -> None:
        """Something that a person should know."""
        ...


class SilentProgress:
    """Says nothing."""

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None: ...

    def epoch(self, trial: TrialRecord, report: EpochReport) -> None: ...

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None: ...

    def stage_ended(self, stage: StageRecord, summary: str) -> None: ...

    def note(self, message: str) -> None: ...


def as_percent(value: Any) -> str:
    """A fraction as people read it: 0.9778 is `97.8 %`."""
    return f"{100 * float(value):.1f} %"
