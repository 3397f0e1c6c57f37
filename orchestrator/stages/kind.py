"""What a file in `orchestrator/stages/` declares: a stage's model, its result, how it runs, and its line for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.stage_registry import load_stage
from orchestrator.store.records import StageRecord, TrialRecord


class StageResult(BaseModel):
    """What a finished stage leaves for later stages and for people; stored as JSON in the stage's row.

    Rows of older versions must be readable: a field added later needs a default, and unknown keys are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """What a finished stage leaves: `result` for later stages and people, the rest for MLflow."""

    result: StageResult
    summary: str
    """One line for people."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """File name and content, such as `screening.csv`."""
    plots: tuple[Path, ...] = ()
    events: tuple[str, ...] = ()
    """Further tracking events, sent before the stage's run ends."""


S = TypeVar("S", bound=StageModel)
R = TypeVar("R", bound=StageResult)


def _as_stored(raw: Mapping[str, Any], _spec: Any, _trials: Callable[[], list[TrialRecord]]) -> Mapping[str, Any]:
    return raw


@dataclass(frozen=True, kw_only=True)
class StageKind(Generic[S, R]):
    """A stage. `orchestrator.spec.stage_registry.STAGES` has its name."""

    model: type[S]
    """Its block in a study file."""
    result: type[R]
    run: Callable[[Any, S], StageOutcome]
    """Runs the stage in a `StageContext`, with its block of the study file."""
    line: Callable[[R], str]
    """What it found, in a few words, for `vitsearch status`."""
    complete: Callable[[Mapping[str, Any], S, Callable[[], list[TrialRecord]]], Mapping[str, Any]] = _as_stored
    """Adds to a stored result of an older version what later stages need, from the stage's trials."""

    def read(self, stage: StageRecord, spec: S, trials: Callable[[], list[TrialRecord]]) -> R:
        """The result of a finished stage, of this version or an older one."""
        return self.result.model_validate(self.complete(stage.result, spec, trials))


@dataclass(frozen=True, kw_only=True)
class FinishedStage(Generic[S, R]):
    """An earlier stage as a later one sees it."""

    record: StageRecord
    spec: S
    result: R


def stage_kind(name: str) -> StageKind[Any, Any]:
    """The stage of a name in `STAGES`; its module is imported."""
    kind: StageKind[Any, Any] = load_stage(name)
    return kind
