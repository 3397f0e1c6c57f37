"""What a training asks of its weights, whichever path computes it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from trainers.training.checkpoints import Checkpoint
from trainers.training.row import Row
from trainers.training.signals import SignalMeter


class Learner(Protocol):
    """Weights and optimizer state of one training."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore both from a checkpoint."""
        ...

    def begin(self) -> None:
        """Start or continue training with the present weights."""
        ...

    def finish_epoch(self, progress: float) -> None:
        """Handle the end of an epoch's steps. `progress` in (0, 1] is the completed fraction of the epochs."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The state dict to evaluate, valid until the next step."""
        ...

    def averages(self) -> Mapping[str, Mapping[str, Tensor]]:
        """State dicts of the averages that training maintains, by name, valid until the next step."""
        ...

    def optimizer_tensors(self) -> Mapping[str, Tensor]:
        """The optimizer state by parameter index, such as `3.exp_avg`, valid until the next step."""
        ...


class RowLearner(Learner):
    """A row with the meter of its signals."""

    def __init__(self, row: Row, meter: SignalMeter) -> None:
        self.row = row
        self.meter = meter

    def restore(self, checkpoint: Checkpoint) -> None:
        self.row.restore(checkpoint)

    def begin(self) -> None:
        self.meter.begin()

    def finish_epoch(self, progress: float) -> None:
        self.row.finish_epoch(progress)

    def weights(self) -> dict[str, Tensor]:
        return self.row.weights()

    def averages(self) -> dict[str, dict[str, Tensor]]:
        return self.row.averages()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return self.row.optimizer_tensors()
