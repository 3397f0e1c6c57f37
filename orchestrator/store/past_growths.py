"""How a study grew. Each growth is stored in the setup of the execution that began it."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.store.records import ExecutionRecord

KEY = "grown"
"""Key of a growth in the setup of an execution."""


class PastGrowth(BaseModel):
    """One growth. Later versions may add keys."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    changes: tuple[str, ...] = ()
    """What the study file changed, one line each."""
    stages: tuple[str, ...] = ()
    """Stages that continued or ran again."""
    repeated: tuple[str, ...] = ()
    """Those of them that ran again from the start."""
    rerun: dict[str, tuple[int, ...]] = {}
    """Numbers of the trials that ran again, by stage."""
    longer: dict[str, int] = {}
    """The earlier number of epochs of each stage that got more."""


class Growths:
    """The growths of a study, oldest first.

    Args:
        growths: The growths.
    """

    def __init__(self, growths: Iterable[PastGrowth] = ()) -> None:
        self._growths = tuple(growths)

    @classmethod
    def of(cls, executions: Iterable[ExecutionRecord]) -> "Growths":
        """The growths that the executions of a study began."""
        setups: list[dict[str, Any]] = [execution.setup or {} for execution in executions]
        return cls(PastGrowth.model_validate(setup[KEY]) for setup in setups if KEY in setup)

    def followed_by(self, growth: PastGrowth) -> "Growths":
        """These growths and one more."""
        return Growths((*self._growths, growth))

    def latest_of_stage(self, stage: str) -> int:
        """Number of the latest growth in which a stage continued or ran again, starting at 1; 0 if there was none."""
        return max((number for number, one in enumerate(self._growths, 1) if stage in one.stages), default=0)

    def latest_of_trial(self, stage: str, number: int) -> int:
        """Number of the latest growth in which a trial, or its whole stage, ran again; 0 if there was none."""
        found = (
            place
            for place, one in enumerate(self._growths, 1)
            if stage in one.repeated or number in one.rerun.get(stage, ())
        )
        return max(found, default=0)

    def earlier_epochs(self, stage: str) -> tuple[int, ...]:
        """Numbers of epochs that a stage had before, oldest first."""
        return tuple(dict.fromkeys(one.longer[stage] for one in self._growths if stage in one.longer))
