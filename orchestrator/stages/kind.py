"""Types that a stage declares: its model, its result, its run function and its summary line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.stage_registry import load_stage
from orchestrator.store.records import StageRecord, TrialRecord


class StageResult(BaseModel):
    """The result of a finished stage, for later stages and for people; stored as JSON in the stage's row.

    Rows of older versions must remain readable: new fields need a default, and unknown keys are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """The output of a finished stage: `result` for later stages and people, the rest for MLflow."""

    result: StageResult
    summary: str
    """A one-line summary for people."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """Content of text files by file name, such as `screening.csv`."""
    plots: tuple[Path, ...] = ()
    events: tuple[str, ...] = ()
    """Further tracking events, sent before the stage's run ends."""


S = TypeVar("S", bound=StageModel)
R = TypeVar("R", bound=StageResult)


def _as_stored(raw: Mapping[str, Any], _spec: Any, _trials: Callable[[], list[TrialRecord]]) -> Mapping[str, Any]:
    return raw


@dataclass(frozen=True, kw_only=True)
class StageKind(Generic[S, R]):
    """A kind of stage. `orchestrator.spec.stage_registry.STAGES` defines its name."""

    model: type[S]
    """Model of its block in a study file."""
    result: type[R]
    run: Callable[[Any, S], StageOutcome]
    """Runs the stage, given its `StageContext` and its block of the study file."""
    line: Callable[[R], str]
    """Summarises the result in a few words for `vitsearch status`."""
    complete: Callable[[Mapping[str, Any], S, Callable[[], list[TrialRecord]]], Mapping[str, Any]] = _as_stored
    """Completes a stored result of an older version from the stage's trials, for later stages."""

    def read(self, stage: StageRecord, spec: S, trials: Callable[[], list[TrialRecord]]) -> R:
        """The result of a finished stage, written by this version or an older one."""
        return self.result.model_validate(self.complete(stage.result, spec, trials))


@dataclass(frozen=True, kw_only=True)
class FinishedStage(Generic[S, R]):
    """An earlier stage, as later stages read it."""

    record: StageRecord
    spec: S
    result: R


def stage_kind(name: str) -> StageKind[Any, Any]:
    """The kind of stage with a name in `STAGES`; imports its module."""
    kind: StageKind[Any, Any] = load_stage(name)
    return kind
