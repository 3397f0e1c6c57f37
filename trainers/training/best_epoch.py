"""The epoch of a training with the best validation metric, and its checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from plugins.metrics.deciding import DecidingMetric
from trainers.config import EpochReport
from trainers.training.checkpoints import read_manifest


def best_report(history: Sequence[EpochReport], metric: DecidingMetric) -> EpochReport:
    """The report with the best value of a metric; ties go to the lower validation loss, then to the later epoch.

    Args:
        history: Reports of a training, at least one, each with the metric.
        metric: The metric.
    """
    return max(history, key=lambda report: (metric.score(report.value(metric)), -report.val_loss, report.epoch))


def best_checkpoint(folders: Sequence[Path], metric: DecidingMetric) -> Path:
    """The checkpoint of the best epoch among those that are saved.

    Args:
        folders: Folders of checkpoints of one training, oldest first, at least one.
        metric: The metric.

    Raises:
        CheckpointError: The manifest of a checkpoint is missing or unreadable.
    """
    manifests = {manifest.epoch: (manifest, folder) for folder in folders for manifest in [read_manifest(folder)]}
    return manifests[best_report([one.history[-1] for one, _ in manifests.values()], metric).epoch][1]
