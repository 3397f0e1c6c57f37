"""Accuracies to compare scores with, from trained trials or from a table."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.evaluation.verdict import Ceiling
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import file_digest, read_truth_table
from search_spaces.base import ImageTask
from trainers.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The accuracies of some topologies, and the images for computing their scores."""

    kind: Literal["trials", "table"]
    name: str
    """Name of the study or of the table's file; with recipe and epoch for a table of trainings."""
    source: str
    """Name of the study, or path of the table."""
    target: str
    """Name of the accuracy, such as `val_accuracy` or `c100_kd_acc`."""
    unit: Literal["fraction", "table"]
    """Unit of the accuracies: `fraction` means between 0 and 1, `table` the unit of the table."""
    topologies: tuple[str, ...]
    """Distinct topologies, as `space:text`."""
    accuracies: tuple[float, ...]
    """Accuracy of each topology."""
    data: DataConfig
    task: ImageTask
    """The task for which networks are built. It may have more classes than the data."""
    digest: str
    """Hex digest of the source."""
    curves: tuple[tuple[float, ...], ...] = ()
    """Validation accuracies after each epoch, for every completed trial; empty for a table."""
    seeds: tuple[tuple[float, ...], ...] = ()
    """Accuracies of each topology, one per training; their means are `accuracies`. Empty for published ones."""
    num_images: int | None = None
    """Number of images that measured each accuracy, if they are shares of correct answers; `None` if unknown. Published
    accuracies are in percent if one is above 1."""
    epoch: int | None = None
    """The epoch at which trainings that ended at different epochs are compared; `None` for their results."""
    num_epochs: int | None = None
    """Epochs of a whole training; `None` for a table."""
    num_left_out: int = 0
    """Trained topologies that did not reach the epoch of the comparison."""

    def only(self, topologies: Collection[str]) -> "GroundTruth":
        """The ground truth restricted to some of its topologies."""
        kept = [place for place, topology in enumerate(self.topologies) if topology in topologies]
        return replace(
            self,
            topologies=tuple(self.topologies[place] for place in kept),
            accuracies=tuple(self.accuracies[place] for place in kept),
            seeds=tuple(self.seeds[place] for place in kept) if self.seeds else (),
        )

    def ceiling(self, confidence: float) -> Ceiling | None:
        """The tau that a perfect score could reach; `None` if the noise of the accuracies is unknown."""
        from orchestrator.evaluation.ceiling import ceiling_of_images, ceiling_of_seeds  # imports SciPy

        found = ceiling_of_seeds(self.seeds, confidence=confidence)
        if found is not None or self.num_images is None:
            return found
        highest = max(self.accuracies)
        scale = 1.0 if self.unit == "fraction" or highest <= 1 else 100.0
        return ceiling_of_images([value / scale for value in self.accuracies], self.num_images, confidence=confidence)

    @property
    def by_topology(self) -> dict[str, float]:
        """The accuracy of each topology."""
        return dict(zip(self.topologies, self.accuracies, strict=True))

    @property
    def title(self) -> str:
        """Title for display: `c100_kd_acc of pit-cifar100`."""
        return f"{self.target} of {self.name}"


def load_table_truth(source: TruthSource, *, data: DataConfig) -> GroundTruth:
    """Load the accuracies of a table.

    Args:
        source: The table.
        data: The images for scoring its topologies.

    Raises:
        TruthError: The table cannot be read, or does not fit the images.
        trainers.data.listing.DataError: The images cannot be read.
    """
    if source.table is None or source.space is None or source.target is None:
        raise TruthError("must have a `table` with `space` and `target`, but lacks at least one of them. Add it.")
    from trainers.data.images import load_images  # imports torch

    path, images = Path(source.table), load_images(data)
    table = read_truth_table(path, space=source.space, target=source.target, recipe=source.recipe, epoch=source.epoch)
    num_classes = source.num_classes or images.task.num_classes
    if num_classes < images.task.num_classes:
        raise TruthError(
            f"networks must have at least the {images.task.num_classes} classes of the images, but num_classes is "
            f"{num_classes}. Raise it, or use other images.",
            key="num_classes",
        )
    task = images.task.model_copy(update={"num_classes": num_classes})
    table.check(task)
    if source.num_images is not None and not all(0 <= row.value <= 100 for row in table.rows):
        raise TruthError(
            f"with num_images, the accuracies of {path} must be fractions or percent, but {source.target} has values "
            "outside of 0 to 100. Remove num_images.",
            key="num_images",
        )
    return GroundTruth(
        kind="table",
        name=table.name,
        source=str(path),
        target=source.target,
        unit="table" if table.recipe is None else "fraction",
        topologies=tuple(row.topology.id for row in table.rows),
        accuracies=tuple(row.value for row in table.rows),
        data=data,
        task=task,
        digest=file_digest(path),
        seeds=tuple(row.seeds for row in table.rows if row.seeds),
        num_images=source.num_images or table.num_images,
        num_left_out=table.num_left_out,
    )
