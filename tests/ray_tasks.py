"""Trial workers that need no torch: their reports depend only on the learning rate of the task."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trainers.config import EpochReport, PackedTrainTask, ScoreTask, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

EPOCH_S = 0.1
"""Duration of an epoch of `slow`, seconds."""


def curve(task: TrainTask) -> list[float]:
    """Validation accuracy after each epoch: it rises linearly to the learning rate."""
    epochs, target = task.configuration.epochs, task.configuration.recipe.learning_rate
    return [target * (epoch + 1) / epochs for epoch in range(epochs)]


def quick(task: Task, reporter: Reporter) -> TaskOutcome:
    """A worker that ends at once."""
    if isinstance(task, ScoreTask):
        return TaskOutcome(state="complete", metrics={"params": float(task.seed)})
    assert isinstance(task, TrainTask)
    values = curve(task)
    for epoch, value in enumerate(values, start=1):
        if reporter.should_stop():
            return TaskOutcome(state="interrupted")
        reporter.report(report(epoch, value))
    return TaskOutcome(state="complete", metrics=_metrics(values))


def slow(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `quick`, but each epoch takes `EPOCH_S`. Epochs recorded in the task's folder are only reported again."""
    assert isinstance(task, TrainTask)
    task.folder.mkdir(parents=True, exist_ok=True)
    done = epochs_of(task.folder)
    values = curve(task)
    for epoch, value in enumerate(values, start=1):
        if epoch not in done:
            deadline = time.monotonic() + EPOCH_S
            while time.monotonic() < deadline:
                if reporter.should_stop():
                    return TaskOutcome(state="interrupted")
                time.sleep(0.005)
            new = task.folder / f"new-{epoch}"
            new.write_text(str(os.getpid()))
            new.rename(task.folder / f"done-{epoch}")  # a process may be killed at any moment
        reporter.report(report(epoch, value))
    return TaskOutcome(state="complete", metrics=_metrics(values))


def deadly(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `quick`, but a score task with seed 3 kills its process."""
    if (task.seed if isinstance(task, ScoreTask) else 0) == 3:
        os.kill(os.getpid(), 9)
    return quick(task, reporter)


def hanging(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `quick`, but trials with a learning rate above 0.5 hang."""
    assert isinstance(task, TrainTask)
    if task.configuration.recipe.learning_rate > 0.5:
        time.sleep(3600)
    return quick(task, reporter)


def diverging(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `quick`, but trials with a learning rate above 0.5 fail in their second epoch."""
    assert isinstance(task, TrainTask)
    values = curve(task)
    if task.configuration.recipe.learning_rate <= 0.5:
        return quick(task, reporter)
    reporter.report(report(1, values[0]))
    return TaskOutcome(state="failed", error="not-finite", reason="the training loss is nan")


def deadly_training(task: Task, reporter: Reporter) -> TaskOutcome:
    """Like `quick`, but trials with a learning rate above 0.5 kill their process after the first epoch."""
    assert isinstance(task, TrainTask)
    if task.configuration.recipe.learning_rate > 0.5:
        reporter.report(report(1, curve(task)[0]))
        os.kill(os.getpid(), 9)
    return quick(task, reporter)


def one_after_another(
    run_task: Callable[[Task, Reporter], TaskOutcome],
) -> Callable[[PackedTrainTask, Sequence[Reporter]], Iterator[tuple[int, TaskOutcome]]]:
    """A worker for packs that runs their tasks in turn, returns all outcomes at the end and adds the pack's size."""

    def run_packed(task: PackedTrainTask, reporters: Sequence[Reporter]) -> Iterator[tuple[int, TaskOutcome]]:
        outcomes = [run_task(one, reporter) for one, reporter in zip(task.tasks, reporters, strict=True)]
        for position, outcome in enumerate(outcomes):
            yield position, outcome.model_copy(update={"details": {"pack_size": len(outcomes)}})

    return run_packed


def epochs_of(folder: Path) -> dict[int, int]:
    """Process id by epoch, for the epochs trained in a folder of `slow`."""
    return {int(path.name.removeprefix("done-")): int(path.read_text()) for path in folder.glob("done-*")}


def report(epoch: int, value: float) -> EpochReport:
    """A report of an epoch with the given validation accuracy."""
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1.0 - value,
        val_accuracy=value,
        learning_rate=0.1,
        num_images=10,
        wall_time_s=0.1,
    )


packed_quick = one_after_another(quick)
packed_slow = one_after_another(slow)
packed_deadly = one_after_another(deadly_training)
packed_hanging = one_after_another(hanging)


def _metrics(values: list[float]) -> dict[str, float]:
    return {"val_accuracy": values[-1], "val_loss": 1.0 - values[-1]}
