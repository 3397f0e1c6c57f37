"""What a search is, and what an engine, a suggester, a pool and a ledger offer each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from orchestrator.store.records import AttemptRecord, TrialRecord
from search_spaces.dimensions import Dimension, Point
from trainers.config import Configuration, EpochReport, Fence, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

ATTEMPT_FILE = "attempt"
"""In a training's folder: its fence."""


class EngineUnavailableError(RuntimeError):
    """An engine or pool cannot run here; the message says why and what to do."""


class Objective(NamedTuple):
    """A metric of a trial, and which way is better."""

    metric: str
    direction: Literal["maximize", "minimize"]


class Suggestion(NamedTuple):
    """One point to try, with what the sampler wants to remember of it."""

    point: Point
    sampler_state: dict[str, Any]


class Lost(NamedTuple):
    """A task has no outcome: the worker that did it died."""

    reason: str


class Suggester(Protocol):
    """Proposes points.

    What it proposes depends on the seed, the trial's number, the finished trials, and the trials that run at the time.
    """

    def ask(self, number: int) -> Suggestion | None:
        """The point of trial `number`, or `None` when nothing is left to try."""
        ...

    def expect(self, trial: TrialRecord) -> None:
        """A trial that an earlier process asked for runs again; told once, before anything is asked for."""
        ...

    def tell(self, trial: TrialRecord) -> None:
        """Learn how a trial ended, asked for in this process or in an earlier one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a stage hands to an engine."""

    num_trials: int
    suggester: Suggester
    make_task: Callable[[TrialRecord], Task]
    """What evaluates a trial, as plain data."""
    objectives: tuple[Objective, ...]
    """Empty where no trial is better than another."""
    parameters: Callable[[Point], Mapping[str, Any]] = field(default=dict)
    """Flat readable parameters of a point, for people."""
    links: Callable[[Point], Mapping[str, str]] = field(default=lambda _: {})
    """What a point came from (`grown_from`, `averaged_from`), for lineage."""
    known_metrics: Callable[[Point], Mapping[str, float]] = field(default=lambda _: {})
    """What earlier stages know of a point (`proxy.length-distortion`), shown beside the trial's own metrics."""
    epochs: int | None = None
    """Budget of a trial that trains, which a scheduler may cut; `None` for tasks that report nothing on their way."""
    sizes: Callable[[], Sequence[Configuration]] = field(default=tuple)
    """Trainings of every size that trials may have."""
    changeable: tuple[Dimension, ...] = ()
    """What a scheduler may change in a trial that is being trained."""
    weights_of: Callable[[Point], str] = field(default=lambda _: "")
    """Trials with the same word here can take over each other's weights."""


def task_of_attempt(search: Search, trial: TrialRecord, attempt: AttemptRecord) -> Task:
    """What an attempt at a trial does: a training is fenced, and alone where an earlier one took its process along."""
    task = search.make_task(trial)
    if not isinstance(task, TrainTask):
        return task
    fence = Fence(file=task.folder / ATTEMPT_FILE, token=attempt.id)
    return task.model_copy(update={"fence": fence, "alone": attempt.num_lost > 0})


class Control(Protocol):
    """Tells running work to end early."""

    def should_stop(self) -> bool: ...


class Ledger(Protocol):
    """Where an engine writes down what happens: the store, the tracking and the progress display of one stage."""

    def trials(self) -> list[TrialRecord]: ...

    def begin(self, number: int, suggestion: Suggestion) -> TrialRecord:
        """Write a suggestion as a running trial."""
        ...

    def resume(self, trial: TrialRecord) -> TrialRecord:
        """Go on with a waiting trial. It comes back failed when it has killed its process too often."""
        ...

    def attempt(self, trial: TrialRecord) -> AttemptRecord:
        """That at a running trial."""
        ...

    def reporter(self, trial: TrialRecord) -> Reporter: ...

    def finish(self, trial: TrialRecord, outcome: TaskOutcome) -> TrialRecord:
        """Note how a trial ended; it is written with the next trial that begins, or by `settle`."""
        ...

    def settle(self) -> None:
        """Write what is noted; called before anything is waited for."""
        ...

    def curve(self, trial: TrialRecord) -> list[EpochReport]:
        """What a trial has reported."""
        ...

    def lose(self, trial: TrialRecord, reason: str) -> TrialRecord:
        """Write that the worker of a running trial died; it comes back waiting, to be resumed."""
        ...


class Pool(Protocol):
    """Evaluates tasks, in this process or elsewhere."""

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        """Trainings of these sizes will come: time to find out how many go side by side."""
        ...

    def has_room(self) -> bool:
        """Whether another task would be of use now."""
        ...

    def is_busy(self) -> bool: ...

    def submit(self, key: int, task: Task, reporter: Reporter) -> None: ...

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        """The key of a task that ended, and how. Reporters are called in here, in the caller's thread."""
        ...

    def close(self) -> None:
        """End the workers. What is still running is dropped."""
        ...


class Engine(Protocol):
    """Runs a search to its end, or until it is told to stop."""

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """All trials of the search, by number; fewer than asked for where the control said stop."""
        ...
