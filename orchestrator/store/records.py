"""Rows of the tables as plain data."""

import time
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from search_spaces.dimensions import Point
from trainers.config import CheckpointRecord, TaskOutcome

RunState = Literal["waiting", "running", "interrupted", "complete", "failed"]
"""State of an execution or a stage."""
StudyState = Literal[RunState, "cancelled"]
"""State of a study. No row has `cancelled`, which only submissions are (`orchestrator.study.states`)."""
TrialState = Literal["waiting", "running", "complete", "stopped", "failed"]
"""`waiting` means that the trial began, was interrupted or lost, and will be resumed."""
FINISHED: frozenset[str] = frozenset({"complete", "stopped", "failed"})
USABLE: frozenset[str] = frozenset({"complete", "stopped"})


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudyRecord(_Record):
    """One study. Times are seconds since 1970, UTC."""

    id: int
    uid: str
    name: str
    spec: dict[str, Any]
    spec_digest: str
    data_digest: str
    """Digest of the images at the start of the study."""
    state: StudyState
    reason: str | None
    owner: str
    created_at: float
    updated_at: float


class ExecutionRecord(_Record):
    """One execution of a study by a driver."""

    id: int
    study_id: int
    number: int
    state: Literal["running", "interrupted", "complete", "failed", "lost", "waiting"]
    reason: str | None
    host: str
    pid: int
    code_version: str
    setup: dict[str, Any] | None = None
    """Engine, pool and scheduler, with the reason for the choice; `None` in rows of older versions."""
    started_at: float
    ended_at: float | None


class StageRecord(_Record):
    """One stage of a study with its result."""

    id: int
    study_id: int
    position: int
    name: str
    kind: str
    state: RunState
    reason: str | None
    result: dict[str, Any]
    started_at: float | None
    ended_at: float | None


class TrialRecord(_Record):
    """One trial of a stage."""

    id: int
    stage_id: int
    number: int
    state: TrialState
    point: Point
    sampler_state: dict[str, Any]
    """The sampler's notes on this suggestion, needed to rebuild the sampler."""
    seed: int
    metrics: dict[str, float]
    details: dict[str, Any]
    reason: str | None
    error: str | None
    started_at: float
    ended_at: float | None

    @property
    def is_usable(self) -> bool:
        """Whether the trial ended with a result."""
        return self.state in USABLE

    @property
    def topology(self) -> str | None:
        """The topology that was sampled or made; `None` if the trial has none."""
        topology = self.point.get("topology") or self.details.get("topology")
        return None if topology is None else str(topology)

    @property
    def rung(self) -> int | None:
        """The epoch at which a scheduler stopped the trial; `None` if it ended in another way."""
        return self.details.get("rung") if self.state == "stopped" else None


class AttemptRecord(_Record):
    """One attempt at a trial. Its id is the fencing token: a result counts only while its attempt is running."""

    id: int
    trial_id: int
    number: int
    num_lost: int = 0
    """Number of earlier attempts whose process died or hung."""


class EndedTrial(NamedTuple):
    """The end of an attempt, not yet written."""

    trial: TrialRecord
    """The trial afterwards; it waits if the attempt was interrupted."""
    attempt: AttemptRecord
    state: str
    """State of the attempt."""
    checkpoints: tuple[CheckpointRecord, ...]
    events: tuple[str, ...]
    """Events for MLflow, as JSON."""

    @classmethod
    def of(
        cls,
        trial: TrialRecord,
        attempt: AttemptRecord,
        outcome: TaskOutcome,
        events: tuple[str, ...] = (),
        *,
        at: float | None = None,
    ) -> "EndedTrial":
        """A trial whose attempt has ended with an outcome, by default now."""
        values: dict[str, Any] = {"state": "waiting"}
        if outcome.state != "interrupted":
            values = {
                "state": outcome.state,
                "metrics": dict(outcome.metrics),
                "details": dict(outcome.details),
                "reason": outcome.reason,
                "error": outcome.error,
                "ended_at": time.time() if at is None else at,
            }
        return cls(trial.model_copy(update=values), attempt, outcome.state, outcome.checkpoints, events)


class ScoreKey(NamedTuple):
    """The inputs of a score other than the topology, the batch and the seed."""

    proxy: str
    settings: str
    """Digest of the proxy's settings."""
    code: str
    """Digest of the code that computes the score."""


class ScoreRecord(_Record):
    """A proxy's score of one topology, or the reason why there is none."""

    value: float | None
    spread: float | None
    reason: str | None
    """Why there is no value; the same for equal keys."""
    wall_time_s: float
