"""What a training asks of its weights, whichever path computes it."""

from collections.abc import Mapping
from typing import Protocol

from trainers.training.checkpoints import Checkpoint
from trainers.training.compiling import CompiledForward
from trainers.training.memory import described_parts
from trainers.training.row import Row
from trainers.training.saving import HostCopies, Snapshot
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

    def snapshot(self) -> Snapshot:
        """A copy of both, and of the averages that training maintains."""
        ...

    def details(self) -> Mapping[str, str]:
        """What a user must know about how the steps were computed, for the details of the outcome."""
        ...


class RowLearner(Learner):
    """A row with the meter of its signals."""

    def __init__(self, row: Row, meter: SignalMeter) -> None:
        self.row = row
        self.meter = meter

    def restore(self, checkpoint: Checkpoint) -> None:
        self.row.restore(checkpoint)

    def begin(self) -> None:
        self.row.ranks.copy_first(self.row.shared_tensors())
        self.meter.begin()

    def finish_epoch(self, progress: float) -> None:
        self.row.finish_epoch(progress)
        self.row.ranks.copy_first(self.row.shared_tensors())  # GPUs of different types may round differently

    def snapshot(self) -> Snapshot:
        copies = HostCopies()
        return Snapshot(
            weights=self.row.weights(copies),
            averages=self.row.averages(copies),
            optimizer=self.row.optimizer_tensors(copies),
            wait=copies.wait,
        )

    def details(self) -> dict[str, str]:
        found = {}
        if (parts := described_parts(self.row)) is not None:
            found["memory"] = parts
        if isinstance(self.row.forward, CompiledForward) and self.row.forward.problem is not None:
            found["not_compiled"] = self.row.forward.problem
        return found
