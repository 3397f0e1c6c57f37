"""The work of the engines' benchmark, none or some computing, for our engines and as a user of Ray Tune writes it."""

import time

from ray import tune

from search_spaces.ramps import value_at
from trainers.config import EpochReport, Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter

EPOCHS = 10
EPOCH_S = 0.3


def value(rate: float, epoch: int) -> float:
    """The reported metric: trials with better rates are better from the start."""
    return rate * epoch


def no_work(task: Task, reporter: Reporter) -> TaskOutcome:
    """One epoch that takes no time."""
    return _train(task, reporter, epochs=1, epoch_s=0.0)


def short_training(task: Task, reporter: Reporter) -> TaskOutcome:
    """`EPOCHS` epochs of `EPOCH_S` seconds of CPU time each."""
    return _train(task, reporter, epochs=EPOCHS, epoch_s=EPOCH_S)


def _train(task: Task, reporter: Reporter, *, epochs: int, epoch_s: float) -> TaskOutcome:
    assert isinstance(task, TrainTask)
    rate = value_at(task.configuration.recipe.learning_rate, 0.0)
    for epoch in range(1, epochs + 1):
        if reporter.should_stop():
            return TaskOutcome(state="interrupted")
        compute(epoch_s)
        reporter.report(
            EpochReport(
                epoch=epoch,
                train_loss=1.0,
                val_loss=1.0,
                val_accuracy=value(rate, epoch),
                learning_rate=rate,
                num_images=1,
                wall_time_s=epoch_s,
            )
        )
    return TaskOutcome(state="complete", metrics={"val_accuracy": value(rate, epochs), "val_loss": 1.0})


def compute(seconds: float) -> None:
    """Keep a core busy for `seconds` of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def as_function(config: dict[str, float]) -> None:
    """A trial as most users of Tune write it, in its own process."""
    tune.report({"val_accuracy": value(config["rate"], 1), "training_iteration": 1})


class AsClass(tune.Trainable):
    """A trial by a user of Tune who knows `reuse_actors`."""

    def setup(self, config: dict[str, float]) -> None:
        self._rate, self._epochs, self._epoch_s = config["rate"], int(config["epochs"]), config["epoch_s"]
        self._epoch = 0

    def reset_config(self, new_config: dict[str, float]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, float | bool]:
        self._epoch += 1
        compute(self._epoch_s)
        return {"val_accuracy": value(self._rate, self._epoch), "done": self._epoch >= self._epochs}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:  # noqa: ARG002 - Tune's signature
        return {"epoch": self._epoch}

    def load_checkpoint(self, checkpoint: dict[str, int] | None) -> None:
        self._epoch = checkpoint["epoch"] if checkpoint else 0
