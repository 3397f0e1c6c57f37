"""Input and output of a stage."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.engines.interfaces import Engine, Pool
from orchestrator.engines.seeds import seed_for
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.spec.proxy_choices import with_former_defaults
from orchestrator.stages.control import StageControl
from orchestrator.stages.kind import FinishedStage, R, S, StageKind
from orchestrator.stages.progress import Progress
from orchestrator.store.past_growths import Growths
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord, TrialRecord
from plugins.metrics.deciding import DecidingMetric
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice

if TYPE_CHECKING:
    from orchestrator.spec.study_file import StudySpec
    from orchestrator.store.repository import Store
    from orchestrator.tracking.run_tree import RunTree


class StageFailedError(RuntimeError):
    """A stage cannot reach its goal; the message states the reason and what to do."""


class StageInterruptedError(RuntimeError):
    """The stage ended early and can be resumed, because a stop was requested or writing became impossible."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """Records and objects that all stages of a study share."""

    study: StudyRecord
    spec: "StudySpec"
    store: "Store"
    run_tree: "RunTree"
    image_task: ImageTask
    growths: Growths = field(default_factory=Growths)
    """How the study grew, in this execution and earlier ones."""


@dataclass(frozen=True, kw_only=True)
class Machinery:
    """The engine and pool that run trials, the display that shows them, and the time that they take."""

    engine: Engine
    pool: Pool
    progress: Progress
    costs: TrainingCosts = field(default_factory=TrainingCosts)
    """What this execution knows of the time of trainings."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """Everything that a stage needs besides its block in the study file."""

    shared: StudyContext
    machinery: Machinery
    control: StageControl
    stage: StageRecord
    execution: ExecutionRecord
    folder: Path
    """Folder of this stage's files."""
    abandon: Callable[[str], NoReturn]
    """Mark the study as interrupted for a reason and end the process. Used if the stage's thread hangs."""

    @property
    def study(self) -> StudyRecord:
        return self.shared.study

    @property
    def spec(self) -> "StudySpec":
        return self.shared.spec

    @property
    def store(self) -> "Store":
        return self.shared.store

    @property
    def run_tree(self) -> "RunTree":
        return self.shared.run_tree

    @property
    def image_task(self) -> ImageTask:
        return self.shared.image_task

    @property
    def progress(self) -> Progress:
        return self.machinery.progress

    @cached_property
    def metric(self) -> DecidingMetric:
        """The validation metric by which the study decides."""
        return DecidingMetric.of(self.spec.metric[0])

    @property
    def seed(self) -> int:
        return seed_for(self.spec.seed, self.stage.name)

    def as_begun(self, proxies: Iterable[PluginChoice]) -> tuple[PluginChoice, ...]:
        """Proxies with the defaults of the version that began the study, so that all its scores can be compared."""
        return with_former_defaults(proxies, self.store.executions(self.study.id)[0].code_version)

    @property
    def computation(self) -> dict[str, Any]:
        """Fields of a training's task that say how it is computed, from the study's resources."""
        resources = self.spec.resources
        return {"precision": resources.precision, "compile": resources.compile}

    @property
    def earlier_epochs(self) -> tuple[int, ...]:
        """Numbers of epochs that the trainings of this stage had before the study grew."""
        return self.shared.growths.earlier_epochs(self.stage.name)

    def earlier(self, kind: StageKind[S, R], *, name: str | None = None) -> FinishedStage[S, R] | None:
        """The latest stage of a kind before this one, or that with a name, with its result; `None` if there is none."""
        before = zip(self.store.stages(self.study.id), self.spec.stages[: self.stage.position], strict=False)
        found = [
            (record, spec) for record, spec in before if isinstance(spec, kind.model) and name in (None, spec.name)
        ]
        if not found:
            return None
        record, spec = found[-1]
        return FinishedStage(
            record=record, spec=spec, result=kind.read(record, spec, lambda: self.store.trials(record.id))
        )

    def required(self, kind: StageKind[S, R]) -> FinishedStage[S, R]:
        """Like `earlier`, for a kind that the stage's `requires` lists."""
        found = self.earlier(kind)
        assert found is not None, f"stage {self.stage.name!r} must require the stage that it reads"
        return found

    def trial_of(self, stage: FinishedStage[S, R], number: int) -> TrialRecord:
        """A trial of an earlier stage."""
        return next(trial for trial in self.store.trials(stage.record.id) if trial.number == number)
