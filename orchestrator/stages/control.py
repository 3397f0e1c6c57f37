"""Reasons for a stage to end early. A stop request interrupts it; a deadline completes it with its finished trials, and
a budget also with its running trainings."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.engines.interfaces import Control
from orchestrator.stages.budget import StageBudget

Deadline = Callable[[str], bool]
"""Maps the name of a stage to whether its deadline has passed."""


def no_deadline(_stage: str) -> bool:
    """A `Deadline` that never passes."""
    return False


@dataclass(frozen=True, kw_only=True)
class StageControl:
    """The `Control` of one stage, which distinguishes the reasons."""

    stage: str
    """Name of the stage."""
    request: Control
    """The user's request to stop."""
    deadline: Deadline = no_deadline
    budget: StageBudget | None = None

    def should_stop(self) -> bool:
        """Whether to end early, for any reason. Engines and pools call this."""
        return self.stop_requested() or self.deadline_reached() or self.budget_is_over()

    def stop_requested(self) -> bool:
        """Whether the study should end now and be resumed later."""
        return self.request.should_stop()

    def deadline_reached(self) -> bool:
        """Whether the deadline has passed. The stage is then complete if at least one trial has a result."""
        return self.deadline(self.stage)

    def budget_is_over(self, trial: int | None = None) -> bool:
        """Whether the budget is used up, or too small for the next epoch of a training."""
        return self.budget is not None and self.budget.is_over(trial)
