"""Guard against loss spikes: a training goes back to the start of its epoch and leaves out the steps around a spike."""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainers.training.checkpoints import Checkpoint

MOST_RETURNS = 3
"""Number of times that one training goes back."""
WINDOW = 100
"""Number of newest losses that a loss is compared with."""
LEAST_LOSSES = 20
"""Number of losses that are needed for a comparison."""
BEFORE, AFTER = 2, 1
"""Numbers of steps before and after the spike that are left out with it."""
_NORMAL = 1.4826
"""Standard deviation of a normal distribution per median absolute deviation."""
_LEAST_SCALE = 0.01
"""Least standard deviation, as a fraction of the median."""
_LOSSES = "spikes.losses"

logger = logging.getLogger(__name__)


class Spike(NamedTuple):
    """A loss far above those before it."""

    place: int
    """Its index among the losses that were examined."""
    loss: float
    median: float
    """Median of the losses before it; NaN if there were too few."""


def find_spike(before: Sequence[float], losses: Sequence[float], threshold: float) -> Spike | None:
    """Find the first loss that is not finite, or exceeds the median of the losses before it by far.

    Args:
        before: Earlier losses, oldest first; the newest `WINDOW` count.
        losses: The losses to examine, oldest first. Each is compared with those before it, too.
        threshold: Smallest excess, in standard deviations. They are estimated from the median absolute deviation, and
            are at least 1 % of the median.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1, for going back and leaving batches out. There,
    a person decides, goes back about 100 steps and leaves out 200 to 500 batches.
    """
    known = list(before)[-WINDOW:]
    for place, loss in enumerate(losses):
        median = statistics.median(known) if len(known) >= LEAST_LOSSES else math.nan
        if not math.isfinite(loss):
            return Spike(place, loss, median)
        if not math.isnan(median):
            deviation = statistics.median(abs(one - median) for one in known)
            scale = max(_NORMAL * deviation, _LEAST_SCALE * abs(median))
            if loss > median + threshold * scale:
                return Spike(place, loss, median)
        known = [*known, loss][-WINDOW:]
    return None


class SpikeGuard:
    """Decides when a training goes back, and which steps it leaves out.

    A guard is part of a training's state: `tensors` and `returns` are saved with each checkpoint. All decisions depend
    on the losses since the start of the training, so a resumed training takes the same ones.

    Args:
        threshold: See `find_spike`.
        checkpoint: The checkpoint from which the training resumes, if it does.
    """

    def __init__(self, threshold: float, checkpoint: Checkpoint | None) -> None:
        self._threshold = threshold
        self.returns: list[str] = [] if checkpoint is None else list(checkpoint.spikes)
        """What the guard did, for people; one entry for each return."""
        saved = None if checkpoint is None else checkpoint.optimizer.get(_LOSSES)
        self._before: list[float] = [] if saved is None else saved.tolist()
        self._examined: list[float] = []  # of this epoch
        self._left_out: set[int] = set()

    def leaves_out(self, number: int) -> bool:
        """Whether the present epoch leaves out its step `number`, counted from 1."""
        return number in self._left_out

    def must_return(self, numbers: Sequence[int], losses: Sequence[float], epoch: int) -> bool:
        """Examine further losses of an epoch. If one is a spike, the steps around it are left out from now on.

        Args:
            numbers: Numbers of the steps taken since the last call or the start of the epoch.
            losses: Their losses.
            epoch: Number of the epoch.

        Returns:
            Whether the training must go back to the start of the epoch. It must not after `MOST_RETURNS` times, and if
            no step of the epoch would be left.
        """
        spike = None
        if len(self.returns) < MOST_RETURNS:
            spike = find_spike([*self._before, *self._examined], losses, self._threshold)
        if spike is not None:
            at = numbers[spike.place]
            near = {number for number in range(max(at - BEFORE, 1), at + AFTER + 1) if not self.leaves_out(number)}
            for around in (near, {at}):  # in a short epoch, the spike alone
                if self._examined or not around.issuperset(numbers):
                    self._go_back(spike, at, around, epoch)
                    return True
        self._examined += losses
        return False

    def _go_back(self, spike: Spike, at: int, around: set[int], epoch: int) -> None:
        self._examined.clear()
        self._left_out |= around
        usual = "" if math.isnan(spike.median) else f", after a median of {spike.median:.4g}"
        self.returns.append(
            f"the training loss was {spike.loss:.4g} at step {at} of epoch {epoch}{usual}: training went back to the "
            f"start of the epoch and left out {_steps(around)}"
        )
        last = "" if len(self.returns) < MOST_RETURNS else f" It goes back no more, after {MOST_RETURNS} times."
        logger.warning("Loss spike: %s.%s", self.returns[-1], last)

    def finish_epoch(self) -> None:
        """Note the losses of the epoch, which is finished."""
        self._before = [*self._before, *self._examined][-WINDOW:]
        self._examined.clear()
        self._left_out.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The state to be saved with the optimizer's."""
        return {_LOSSES: torch.tensor(self._before, dtype=torch.float64)}


def _steps(numbers: set[int]) -> str:
    first, last = min(numbers), max(numbers)
    return f"step {first}" if first == last else f"its steps {first} to {last}"
