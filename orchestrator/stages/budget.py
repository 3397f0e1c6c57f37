"""What a stage may spend: its own budget, and its share of the study's."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trainers.config import EpochReport

SHARES: Mapping[str, float] = {
    "screen": 20,
    "grow": 8,
    "train": 60,
    "stopping": 2,
    "correlate": 4,
    "averaging": 3,
    "promote": 3,
}
"""Weight of each kind of stage: a stage may use that share of the time that is left, the rest is for later stages. Time
that a stage leaves unused goes to those after it."""
OVERHEAD_S: Mapping[str, float] = {
    "screen": 1,
    "grow": 1,
    "train": 3,
    "stopping": 1,
    "correlate": 2,
    "averaging": 1,
    "promote": 4,
}
"""Time that each kind of stage takes on a CPU besides its trials: imports, figures, the test of the champion."""
LIMITED = frozenset({"screen", "train", "stopping", "averaging", "promote"})
"""Kinds of stages that can end early. The others run to their end."""
_MUST_HAVE_RESULT = frozenset({"stopping", "averaging", "promote"})
"""Kinds of stages that always get one result, so that the study has a champion."""


def share_of_time(kind: str, later: Sequence[str], left_s: float) -> float:
    """The time that a stage may use.

    Args:
        kind: Its kind.
        later: Kinds of the stages after it.
        left_s: What is left of the study's time.
    """
    overhead_s = sum(OVERHEAD_S[one] for one in (kind, *later))
    return max(left_s - overhead_s, left_s / 2) * SHARES[kind] / sum(SHARES[one] for one in (kind, *later))


@dataclass(kw_only=True)
class StageBudget:
    """Counts what a stage spends in this execution.

    Training is counted by its reports. A training whose next epoch would exceed the budget of multiply-accumulates ends
    before it.
    """

    time_s: float | None = None
    """Time left, from now on."""
    macs: float | None = None
    """Multiply-accumulates of all trainings of the stage."""
    trials: int | None = None
    """Number of trials of the stage."""
    described: str = ""
    """The budget in words, such as `budget of 2h`."""
    needs_result: bool = False
    """Whether the stage continues until it has one result."""
    later_trainings: int = 0
    """Number of trainings of later stages. The stage leaves as much time for each as its own trainings have taken."""
    clock: Callable[[], float] = time.monotonic
    _has_result: bool = False
    _num_trained: int = 0
    _macs: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @classmethod
    def for_kind(
        cls,
        kind: str,
        *,
        time_s: float | None,
        macs: float | None,
        trials: int | None,
        described: str,
        later_trainings: int = 0,
    ) -> "StageBudget":
        """The budget of a stage of a kind."""
        return cls(
            time_s=time_s,
            macs=macs,
            trials=trials,
            described=described,
            needs_result=kind in _MUST_HAVE_RESULT,
            later_trainings=later_trainings,
        )

    def note_report(self, trial: int, report: EpochReport) -> None:
        """Count an epoch. One that is reported again, after a resume, counts once."""
        self._macs[trial, report.epoch] = report.training_macs

    def note_result(self) -> None:
        """Note that a trial has a result."""
        self._has_result = True

    def note_training(self) -> None:
        """Note that a training of this execution is complete."""
        self._num_trained += 1

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; `None` if time is not limited."""
        if self.time_s is None:
            return None
        return max(self.time_s * self._own_share() - (self.clock() - self._began), 0.0)

    def is_over(self, trial: int | None = None) -> bool:
        """Whether the stage must end, or a training before its next epoch."""
        if self.needs_result and not self._has_result:
            return False
        if self.left_s == 0.0:
            return True
        if self.macs is None:
            return False
        return sum(self._macs.values()) + self._next_macs(trial) > self.macs

    def _own_share(self) -> float:
        """The part of the time that is not needed for trainings of later stages."""
        if self._num_trained == 0:
            return 1.0
        return self._num_trained / (self._num_trained + self.later_trainings)

    def _next_macs(self, trial: int | None) -> float:
        """Multiply-accumulates of the next epoch of a training, or of the cheapest one so far for a new training."""
        known = [macs for (number, _), macs in self._macs.items() if trial in (None, number)]
        if not known:
            return 0.0
        return known[-1] if trial is not None else min(known)
