"""Estimates the time left in a search of trainings, from a model of their cost that learns from every epoch."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import fmean, median

from orchestrator.engines.cost_model import (
    MOST_FITTED,
    ObservedCost,
    TrainingShape,
    fit_memory_gib,
    prediction_error,
)
from orchestrator.engines.interfaces import Search
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.stages.kind import StageResult
from orchestrator.store.records import TrialRecord
from search_spaces.base import ImageTask
from trainers.config import Configuration, EpochReport, TrainTask
from trainers.hardware.peak_memory import MEMORY_PEAK

_MOST_SIZES = 100
"""Number of different trainings whose time is predicted to estimate that of a new trial."""


class CostError(StageResult):
    """How well the model of cost predicted each training from the trainings before it."""

    num_trainings: int
    median_error: float
    """Median of |predicted / measured - 1| for the time per epoch."""
    memory_error: float | None = None
    """The same for the peak of the memory on a GPU; `None` on a CPU."""

    @property
    def lines(self) -> list[str]:
        """The errors in words, one line each."""
        trainings = "1 training" if self.num_trainings == 1 else f"{self.num_trainings} trainings"
        error = f"{100 * self.median_error:.0f} %"
        lines = [f"time per epoch, predicted from earlier trials: median error {error} ({trainings})"]
        if self.memory_error is not None:
            lines.append(f"memory on the GPU, predicted likewise: median error {100 * self.memory_error:.0f} %")
        return lines


def observe(configuration: Configuration, trial: TrialRecord, task: ImageTask) -> ObservedCost | None:
    """The time per epoch of a trial that has ended with a result; `None` if its rows do not tell.

    Args:
        configuration: Its training.
        trial: The trial.
        task: Image size, channels and classes of the data.
    """
    metrics = trial.metrics
    if not trial.is_usable or not {"wall_time_s", "epochs", "throughput_images_per_s"} <= set(metrics):
        return None
    epochs = metrics["epochs"]
    num_images = metrics["throughput_images_per_s"] * metrics["wall_time_s"] / epochs
    shape = TrainingShape.of(configuration, task, num_images=num_images)._replace(
        pack_size=int(trial.details.get("pack_size", 1))
    )
    return ObservedCost(shape, metrics["wall_time_s"] / epochs)


def on_newest_device(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that have ended on the same device as the newest of them, in the order in which they ended.

    Rows of version 0.1.0 do not tell the device; they count as one.
    """
    ended = sorted((one for one in trials if one.ended_at is not None), key=lambda one: one.ended_at or 0.0)
    places = [(one.details.get("host"), one.details.get("device")) for one in ended]
    return [one for one, place in zip(ended, places, strict=True) if place == places[-1]]


def cost_error(
    trials: Sequence[TrialRecord], configuration_of: Callable[[TrialRecord], Configuration], task: ImageTask
) -> CostError | None:
    """The error of the model over the trials of a stage, in the order in which they ended; `None` with fewer than 2.

    Args:
        trials: The trials.
        configuration_of: The training of a trial.
        task: Image size, channels and classes of the data.
    """
    ended = on_newest_device(trials)
    observed = [one for trial in ended if (one := observe(configuration_of(trial), trial, task)) is not None]
    found = prediction_error(observed)
    if found is None:
        return None
    memory = prediction_error(
        [
            ObservedCost(one.shape, trial.metrics[MEMORY_PEAK])
            for trial in ended
            if MEMORY_PEAK in trial.metrics and (one := observe(configuration_of(trial), trial, task)) is not None
        ],
        fit_memory_gib,
    )
    return CostError(
        num_trainings=found.num_predicted,
        median_error=found.median,
        memory_error=None if memory is None else memory.median,
    )


class SearchTime:
    """The time left in a search, counted in predicted epochs.

    Concurrent trials share the remaining work. Time outside of epochs, such as that of checkpoints, is taken from the
    trials that have ended here.

    Args:
        search: The search.
        task: Image size, channels and classes of the data.
        known: Trials of earlier executions.
        costs: Learns from the trainings; by default, nothing else uses what they teach.
    """

    def __init__(
        self, search: Search, task: ImageTask, known: Sequence[TrialRecord] = (), *, costs: TrainingCosts | None = None
    ) -> None:
        self._search = search
        self._task = task
        self._costs = TrainingCosts() if costs is None else costs
        self._shapes: dict[int, TrainingShape] = {}
        self._seconds: dict[int, list[float]] = {}
        """Wall time of each epoch of the running trials."""
        self._done: dict[int, int] = {}
        """Newest epoch of each running trial."""
        self._ended: set[int] = {trial.number for trial in known if trial.ended_at is not None}
        epochs = [trial.metrics["epochs"] for trial in known if trial.is_usable and "epochs" in trial.metrics]
        self._sum_epochs, self._num_usable = sum(epochs), len(epochs)
        self._begun_earlier = {trial.number for trial in known}
        self._overheads: deque[float] = deque(maxlen=MOST_FITTED)
        self._of_sizes: list[TrainingShape] | None = None
        for trial in on_newest_device(known)[-MOST_FITTED:]:
            observed = self._observe(trial)
            if observed is not None:
                self._shapes[trial.number] = observed.shape
                self._costs.learn(trial.id, observed, is_earlier=True)

    def epoch_ended(self, trial: TrialRecord, report: EpochReport) -> None:
        """Learn from an epoch, which a resumed training may have reported before."""
        self._done[trial.number] = report.epoch
        shape = self._shape(trial, report)
        if shape is not None:
            self._seconds.setdefault(trial.number, []).append(report.wall_time_s)
            self._learn(trial)

    def trial_ended(self, trial: TrialRecord) -> None:
        """Learn from a trial."""
        self._ended.add(trial.number)
        self._done.pop(trial.number, None)
        seconds = self._seconds.get(trial.number, [])
        if trial.is_usable:
            self._sum_epochs += trial.metrics.get("epochs", float(self._search.epochs or 0))
            self._num_usable += 1
            if trial.ended_at is not None and sum(seconds) > 0 and trial.number not in self._begun_earlier:
                self._overheads.append((trial.ended_at - trial.started_at) / sum(seconds))
            if seconds:
                pack_size = int(trial.details.get("pack_size", 1))
                self._shapes[trial.number] = self._shapes[trial.number]._replace(pack_size=pack_size)
                self._learn(trial)
        self._seconds.pop(trial.number, None)

    def _learn(self, trial: TrialRecord) -> None:
        seconds = median(self._seconds[trial.number])
        self._costs.learn(trial.id, ObservedCost(self._shapes[trial.number], seconds))

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended."""
        return len(self._ended) >= self._search.num_trials

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the last trial ends; `None` as long as no epoch of the search is known."""
        epochs = self._search.epochs
        if not self._shapes or not epochs:
            return None
        expected = self._sum_epochs / self._num_usable if self._num_usable else float(epochs)
        running = sum(
            max(expected - done, 0.0) * self._costs.epoch_s(self._shapes[number])
            for number, done in self._done.items()
            if number in self._shapes
        )
        num_new = max(self._search.num_trials - len(self._ended) - len(self._done), 0)
        new = num_new * expected * self._epoch_s_of_new() if num_new else 0.0
        overhead = max(median(self._overheads), 1.0) if self._overheads else 1.0
        return (running + new) * overhead / max(len(self._done), 1)

    def _epoch_s_of_new(self) -> float:
        """Mean time of an epoch of the trials that have not begun: of each size, else of the newest ones."""
        newest = list(islice(reversed(self._shapes.values()), MOST_FITTED))
        return fmean(self._costs.epoch_s(shape) for shape in self._sizes(newest[0]) or newest)

    def _sizes(self, like: TrainingShape) -> list[TrainingShape]:
        """The shapes of all sizes of the search, with the images and the packs of another shape."""
        if self._of_sizes is None:
            configurations = list(self._search.sizes())[:_MOST_SIZES]
            shapes = [TrainingShape.of(one, self._task, num_images=like.num_images) for one in configurations]
            self._of_sizes = [shape._replace(pack_size=like.pack_size) for shape in shapes]
        return self._of_sizes

    def _observe(self, trial: TrialRecord) -> ObservedCost | None:
        task = self._search.make_task(trial) if trial.is_usable else None
        return observe(task.configuration, trial, self._task) if isinstance(task, TrainTask) else None

    def _shape(self, trial: TrialRecord, report: EpochReport) -> TrainingShape | None:
        if trial.number not in self._shapes:
            task = self._search.make_task(trial)
            if not isinstance(task, TrainTask):
                return None
            num_images = float(report.num_images)
            self._shapes[trial.number] = TrainingShape.of(task.configuration, self._task, num_images=num_images)
        return self._shapes[trial.number]
