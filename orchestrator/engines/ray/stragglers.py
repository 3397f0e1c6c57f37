"""Remembers on which nodes of a cluster trainings were slow, so that they are restarted elsewhere."""

import logging
from collections import defaultdict
from collections.abc import Hashable, Set
from typing import NamedTuple

from trainers.config import EpochReport, TrainTask
from trainers.hardware.stragglers import SpeedTable

_logger = logging.getLogger(__name__)


class _Progress(NamedTuple):
    """What a training has done on its present node since its first epoch there."""

    node: str
    epoch: int
    """The newest epoch."""
    images: int = 0
    seconds: float = 0.0


class Stragglers:
    """The speeds of the trainings of a pool, and the nodes that each training should avoid if it is restarted."""

    def __init__(self) -> None:
        self._speeds = SpeedTable()
        self._progress: dict[int, _Progress] = {}
        self._nodes: defaultdict[int, set[str]] = defaultdict(set)

    def note(self, key: int, task: TrainTask, report: EpochReport, *, kind: Hashable, node: str) -> None:
        """Note an epoch of a training.

        The first epoch on a node does not count, because it includes the time to get ready. Epochs that a restarted
        training reports again do not count either.

        Args:
            key: Key of the training in the pool.
            task: The training.
            report: The epoch.
            kind: What the speed depends on besides the task: the device, the share of it, the size of the pack.
            node: Id of its node.
        """
        before = self._progress.get(key)
        if before is not None and report.epoch <= before.epoch:
            return
        if before is None or before.node != node:
            self._progress[key] = _Progress(node, report.epoch)
            return
        images, seconds = before.images + report.num_images, before.seconds + report.wall_time_s
        self._progress[key] = _Progress(node, report.epoch, images, seconds)
        configuration, cost = task.configuration, report.training_macs / max(report.num_images, 1)
        alike = (configuration.topology, repr(configuration.recipe.batch_size), f"{cost:.2g}", kind)
        slow = self._speeds.note(alike, key, images / seconds, wall_time_s=seconds)
        if slow is not None and node not in self._nodes[key]:
            self._nodes[key].add(node)
            _logger.warning("Trial %d is slow: %s. If it is restarted, it runs on another node.", key, slow)

    def nodes_of(self, key: int) -> Set[str]:
        """Ids of the nodes on which a training was slow."""
        return self._nodes.get(key, set())

    def forget(self, key: int) -> None:
        """Forget a training, which has ended."""
        self._nodes.pop(key, None)
        self._progress.pop(key, None)
