"""The interfaces between a search and what runs it: suggester, engine, pool and ledger."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from orchestrator.store.records import AttemptRecord, TrialRecord
from plugins.metrics.deciding import DecidingMetric
from search_spaces.dimensions import Dimension, Point
from trainers.config import Configuration, EpochReport, Fence, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

ATTEMPT_FILE = "attempt"
"""Name of the fence file in a training's folder."""


class EngineUnavailableError(RuntimeError):
    """An engine or pool cannot run here; the message states the reason and what to do."""


class RayLostError(EngineUnavailableError):
    """Ray has died, or its cluster does not answer. The study can continue when it runs again.

    Attributes:
        loss: What is lost, in a few words.
    """

    def __init__(self, message: str, *, loss: str = "its Ray cluster does not answer") -> None:
        super().__init__(message)
        self.loss = loss


class Objective(NamedTuple):
    """A metric of a trial, and whether more or less of it is better."""

    metric: str
    direction: Literal["maximize", "minimize"]

    @classmethod
    def of(cls, metric: DecidingMetric) -> "Objective":
        """The metric's value on the validation part, after the last epoch of a training."""
        return cls(metric.key, metric.direction)


class Suggestion(NamedTuple):
    """A point to try, and the sampler's notes on it."""

    point: Point
    sampler_state: dict[str, Any]


class KnownResult(NamedTuple):
    """A result of an earlier search, which a sampler may learn from. It is not a trial of this search."""

    point: Point
    values: tuple[float, ...]
    """One value per objective."""


class Lost(NamedTuple):
    """A task has no outcome, because its worker died."""

    reason: str


class Suggester(Protocol):
    """Proposes points.

    A proposal depends on the seed, the trial's number, the finished trials, and the trials that run at the time.
    """

    @property
    def shortage(self) -> str | None:
        """Why a search has fewer trials than asked for; `None` if that is not a shortage."""
        ...

    def ask(self, number: int) -> Suggestion | None:
        """The point of trial `number`, or `None` if no point is left to try for now."""
        ...

    def expect(self, trial: TrialRecord) -> None:
        """Note that a trial of an earlier execution runs again; called before the first `ask`."""
        ...

    def tell(self, trial: TrialRecord) -> None:
        """Learn the result of a finished trial, of this execution or an earlier one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Search:
    """A stage's search, as an engine runs it."""

    num_trials: int
    suggester: Suggester
    make_task: Callable[[TrialRecord], Task]
    """The task that evaluates a trial, as plain data."""
    objectives: tuple[Objective, ...]
    """The metrics to optimise; empty if trials are not compared."""
    reported: Objective | None = None
    """The metric of an epoch's report that schedulers compare; `None` means the first objective."""
    parameters: Callable[[Point], Mapping[str, Any]] = field(default=dict)
    """A point as flat, readable parameters."""
    links: Callable[[Point], Mapping[str, str]] = field(default=lambda _: {})
    """The origin of a point (`grown_from`, `averaged_from`), shown in MLflow."""
    known_metrics: Callable[[Point], Mapping[str, float]] = field(default=lambda _: {})
    """Metrics of a point from earlier stages (`proxy.length-distortion`), shown with the trial's own."""
    measured: Callable[[Point], Mapping[str, float]] = field(default=lambda _: {})
    """Metrics of a point that are known without its trial, and belong to the trial's own (`latency_ms`)."""
    epochs: int | None = None
    """Budget of a training, which a scheduler may cut; `None` for tasks that report nothing before they end."""
    sizes: Callable[[], Sequence[Configuration]] = field(default=tuple)
    """A training of each size that trials may have."""
    changeable: tuple[Dimension, ...] = ()
    """Dimensions that a scheduler may change during training."""
    weights_of: Callable[[Point], str] = field(default=lambda _: "")
    """Trials with equal values here can load each other's weights."""
    may_be_cut: bool = True
    """Whether a scheduler may end trainings early or change them."""
    validates: bool = True
    """Whether the trials have validation figures: their trainings do not use the validation images."""

    @property
    def scheduled_by(self) -> Objective:
        """The metric that schedulers compare."""
        return self.reported or self.objectives[0]


def task_of_attempt(search: Search, trial: TrialRecord, attempt: AttemptRecord) -> Task:
    """The task of an attempt. A training is fenced, and not packed if an earlier attempt lost its process."""
    task = search.make_task(trial)
    if not isinstance(task, TrainTask):
        return task
    fence = Fence(file=task.folder / ATTEMPT_FILE, token=attempt.id)
    return task.model_copy(update={"fence": fence, "alone": attempt.num_lost > 0})


class Control(Protocol):
    """Tells running work to end early."""

    def should_stop(self) -> bool: ...


class Ledger(Protocol):
    """Records each change of a trial for an engine: in the store, MLflow's outbox and the progress display."""

    def trials(self) -> list[TrialRecord]: ...

    def begin(self, number: int, suggestion: Suggestion) -> TrialRecord:
        """Write a suggestion as a running trial."""
        ...

    def resume(self, trial: TrialRecord) -> TrialRecord:
        """Write a waiting trial as running, or as failed if it has killed its process too often."""
        ...

    def attempt(self, trial: TrialRecord) -> AttemptRecord:
        """The current attempt of a running trial."""
        ...

    def reporter(self, trial: TrialRecord) -> Reporter: ...

    def finish(self, trial: TrialRecord, outcome: TaskOutcome) -> TrialRecord:
        """Take the outcome of a running trial; it is written when the next trial begins, or by `settle`."""
        ...

    def settle(self) -> None:
        """Write outcomes that are not written yet; called before waiting for running trials."""
        ...

    def curve(self, trial: TrialRecord) -> list[EpochReport]:
        """The reports of a trial, oldest first."""
        ...

    def lose(self, trial: TrialRecord, reason: str) -> TrialRecord:
        """Write a running trial as waiting, after its worker died."""
        ...


class Pool(Protocol):
    """Runs tasks, in this process or elsewhere."""

    @property
    def lookahead(self) -> int:
        """Number of newest trials whose results the next suggestion must not use, so that it does not depend on their
        order; 0 if it uses all known results. Valid after `prepare`."""
        ...

    def prepare(self, configurations: Sequence[Configuration], *, num_tasks: int) -> None:
        """Get ready for a search; called before its first task.

        Args:
            configurations: A training of each size, if the tasks are trainings; a pool may measure how many fit side by
                side.
            num_tasks: Maximum number of tasks.
        """
        ...

    def has_room(self) -> bool:
        """Whether the pool could use another task now."""
        ...

    def is_busy(self) -> bool: ...

    def submit(self, key: int, task: Task, reporter: Reporter) -> None: ...

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        """The key and the outcome of the next task that ends. Reporters are called here, in the caller's thread."""
        ...

    def close(self) -> None:
        """End the workers and drop running tasks."""
        ...


class Engine(Protocol):
    """Runs a search to its end, or until a stop is requested."""

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """All trials of the search by number; after a stop request, those that have begun."""
        ...
