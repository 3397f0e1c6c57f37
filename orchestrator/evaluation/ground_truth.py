"""Accuracies that scores are compared with, from trained trials or from a table, through one interface."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import TruthError, file_digest, read_truth_table
from search_spaces.base import ImageTask
from trainers.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What some topologies reached, and the images that their scores are to be computed on."""

    kind: Literal["trials", "table"]
    name: str
    """Of the study or of the table's file."""
    source: str
    """The study's name, or the table's path."""
    target: str
    """Such as `val_accuracy` or `c100_kd_acc`."""
    unit: Literal["fraction", "table"]
    """Of the accuracies: `fraction` between 0 and 1, or the table's own."""
    topologies: tuple[str, ...]
    """`space:text`, all different."""
    accuracies: tuple[float, ...]
    """One per topology."""
    data: DataConfig
    task: ImageTask
    """What the networks are built for; it may have more classes than the data."""
    digest: str
    """Of what it was read from, in hex."""
    curves: tuple[tuple[float, ...], ...] = ()
    """Validation accuracy after each epoch, of every trial that ran to its end; empty for a table."""

    @property
    def title(self) -> str:
        """For people: `c100_kd_acc of pit-cifar100`."""
        return f"{self.target} of {self.name}"


def load_table_truth(source: TruthSource, *, data: DataConfig) -> GroundTruth:
    """The accuracies of a table.

    Args:
        source: The table.
        data: The images that its topologies are scored on.

    Raises:
        TruthError: It cannot be read, or does not fit the images.
        trainers.data.sources.DataError: The images cannot be read.
    """
    if source.table is None or source.space is None or source.target is None:
        raise TruthError("must have a `table` with `space` and `target`, but lacks one of them. Add it.")
    from trainers.data.images import load_images  # imports torch

    path, images = Path(source.table), load_images(data)
    table = read_truth_table(path, space=source.space, target=source.target)
    num_classes = source.num_classes or images.task.num_classes
    if num_classes < images.task.num_classes:
        raise TruthError(
            f"networks must have at least the {images.task.num_classes} classes of the images, but num_classes is "
            f"{num_classes}. Raise it, or use other images.",
            key="num_classes",
        )
    task = images.task.model_copy(update={"num_classes": num_classes})
    table.check(task)
    return GroundTruth(
        kind="table",
        name=path.stem,
        source=str(path),
        target=source.target,
        unit="table",
        topologies=tuple(row.topology.id for row in table.rows),
        accuracies=tuple(row.value for row in table.rows),
        data=data,
        task=task,
        digest=file_digest(path),
    )
