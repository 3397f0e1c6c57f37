"""Workers of trainings on two ranks, of which rank 1 fails alone in the training with seed 0.

Workers import this module for its `run_task`, and so start the ranks of this module.
"""

import os
from typing import Any
from unittest.mock import patch

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.ray import ranks
from trainers.config import TaskOutcome, TrainTask
from trainers.training.ranks import RankPlace
from trainers.worker import run_task

__all__ = ["run_task"]

_lead = ranks._lead


class FailingRankWorker(ranks.RankWorker):
    """A rank that fails at the end of its first epoch."""

    def run(self, task: TrainTask, place: RankPlace) -> TaskOutcome | Lost | None:
        if task.configuration.seed != 0:
            return super().run(task, place)
        with patch("trainers.training.loop.evaluate", side_effect=ValueError("this rank alone has a problem")):
            return super().run(task, place)


def lead_and_tell(task: TrainTask, *arguments: Any) -> ranks.RanksResult:
    """Lead a training, and write the id of this process next to its folder."""
    (task.folder.parent / f"leader-{task.configuration.seed}").write_text(str(os.getpid()))
    return _lead(task, *arguments)


ranks._lead = lead_and_tell
ranks.RankWorker = FailingRankWorker  # type: ignore[misc]
