"""Fakes of progress displays and controls, and records with defaults."""

from collections.abc import Callable
from typing import Any, NamedTuple

from orchestrator.store.records import FINISHED, StageRecord, TrialRecord, TrialState
from trainers.config import EpochReport


class Told(NamedTuple):
    """One call of a progress display."""

    what: str
    stage: str
    value: Any = None


class RecordingProgress:
    """A progress display that records its calls and passes each to `react`."""

    def __init__(self, react: Callable[[Told], None] = lambda _: None) -> None:
        self.told: list[Told] = []
        self._react = react
        self._stage = ""

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:
        self._stage = stage.name
        self._tell("stage began", (done, total))

    def epoch(self, trial: TrialRecord, report: EpochReport, *, value: str | None) -> None:
        assert value is None or value.strip()
        self._tell("epoch", (trial.number, report.epoch))

    def trial_ended(self, trial: TrialRecord, *, best: str | None) -> None:
        self._tell("trial ended", (trial.number, trial.state, best))

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        self._stage = stage.name
        self._tell("stage ended", (stage.state, summary))

    def note(self, message: str) -> None:
        self._tell("note", message)

    def of(self, what: str) -> list[Told]:
        """The recorded calls of one method."""
        return [one for one in self.told if one.what == what]

    def _tell(self, what: str, value: Any) -> None:
        self.told.append(Told(what, self._stage, value))
        self._react(self.told[-1])


class Switch:
    """A control that requests a stop once `on` is True."""

    def __init__(self) -> None:
        self.on = False

    def should_stop(self) -> bool:
        return self.on


def make_trial(number: int, *, state: TrialState = "complete", **fields: Any) -> TrialRecord:
    """A trial's row with default values, except for the given `fields`."""
    given: dict[str, Any] = {
        "id": number + 100,
        "stage_id": 1,
        "point": {"x": number},
        "sampler_state": {},
        "seed": number,
        "metrics": {},
        "details": {},
        "reason": None,
        "error": None,
        "started_at": 1.0,
        "ended_at": 2.0 if state in FINISHED else None,
    }
    return TrialRecord.model_validate({**given, **fields, "number": number, "state": state})


def make_stage(name: str = "train", **fields: Any) -> StageRecord:
    """A stage's row with default values, except for the given `fields`."""
    given: dict[str, Any] = {
        "id": 1,
        "study_id": 1,
        "position": 0,
        "name": name,
        "kind": name,
        "state": "running",
        "reason": None,
        "result": {},
        "started_at": 1.0,
        "ended_at": None,
    }
    return StageRecord.model_validate({**given, **fields})
