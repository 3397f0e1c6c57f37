"""What a report tells of a study, read from the store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator.reports.summary import active_time_s
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.kind import StageResult
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord, TrialRecord
from trainers.config import EpochReport
from trainers.data.report import DataReport

Result = TypeVar("Result", bound=StageResult)


class ReportedStage(NamedTuple):
    """A stage with its trials and its typed result, if it has one."""

    record: StageRecord
    trials: list[TrialRecord]
    result: StageResult | None


@dataclass(frozen=True, kw_only=True)
class ReportedStudy:
    """A study with everything that its report tells."""

    study: StudyRecord
    spec: StudySpec | None
    """`None` if the stored file is not readable by this version."""
    stages: tuple[ReportedStage, ...]
    executions: tuple[ExecutionRecord, ...]
    data: DataReport | None
    folder: Path
    reports_of: Callable[[TrialRecord], list[EpochReport]]

    def last(self, kind: type[Result]) -> Result | None:
        """The result of the last stage with a result of this kind, or `None`."""
        found = self.last_stage(kind)
        return None if found is None else found[1]

    def last_stage(self, kind: type[Result]) -> tuple[ReportedStage, Result] | None:
        """The last stage with a result of this kind, with the result, or `None`."""
        found = [(stage, stage.result) for stage in self.stages if isinstance(stage.result, kind)]
        return found[-1] if found else None

    def picture(self, stage: ReportedStage, name: str) -> Path:
        """The file of a picture of a stage."""
        return self.folder / stage.record.name / name

    def time_s(self, stage: ReportedStage) -> float | None:
        """Seconds that a stage ran; `None` if it has not ended."""
        return active_time_s(stage.record, self.executions)

    @property
    def total_s(self) -> float:
        """Seconds of all stages that have ended."""
        return sum(self.time_s(stage) or 0.0 for stage in self.stages)


def minutes_text(seconds: float) -> str:
    """A time as short text, such as `45 s`, `2.3 minutes` or `3.1 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
