"""Why a stage ends early. A stop request interrupts it; a deadline completes it with the trials that it has."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.engines.interfaces import Control

Deadline = Callable[[str], bool]
"""Whether the stage of a name has run out of time."""


def no_deadline(_stage: str) -> bool:
    """No stage ever runs out of time."""
    return False


@dataclass(frozen=True, kw_only=True)
class StageControl:
    """The `Control` of one stage, which tells both reasons apart."""

    stage: str
    """Name of the stage."""
    request: Control
    """A user's wish to stop."""
    deadline: Deadline = no_deadline

    def should_stop(self) -> bool:
        """Whether to end early, for either reason. Engines and pools ask this."""
        return self.stop_requested() or self.deadline_reached()

    def stop_requested(self) -> bool:
        """Whether the study is to end now and to be resumed later."""
        return self.request.should_stop()

    def deadline_reached(self) -> bool:
        """Whether the stage has run out of time: if a trial has a result, the stage is complete without the others."""
        return self.deadline(self.stage)
