"""Weights that the trials of a train stage start from: kept in the stage's folder, and what each topology takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageResult
from trainers.config import InitialWeights
from trainers.storage.artifacts import published

if TYPE_CHECKING:
    from trainers.weights.fitting import Fit
    from trainers.weights.reading import SourceWeights

_INDEX = "initial-weights.json"
TEACHER_INDEX = "teacher.json"
"""Names the file with the weights of the teacher."""


class StartingWeights(StageResult):
    """The weights that the trials of a stage started from."""

    source: str
    sha256: str
    topologies: Mapping[str, str]
    """What each topology takes from them, in words."""
    ignored: tuple[str, ...] = ()
    """Tensors that our models do not have."""

    @property
    def lineage(self) -> str:
        """The weights and the beginning of their sha256, for MLflow."""
        return f"{self.source} (sha256 {self.sha256[:12]})"


def has_stored_weights(folder: Path, index: str = _INDEX) -> bool:
    """Whether weights are kept in the folder of a stage."""
    return (folder / index).is_file()


def store_weights(folder: Path, weights: "SourceWeights", index: str = _INDEX) -> None:
    """Keep weights in the folder of a stage.

    Args:
        folder: The folder.
        weights: Weights to start from, or those of a teacher.
        index: Name of the file that names them: `TEACHER_INDEX` for a teacher.
    """
    from trainers.weights.prepared import write_prepared

    prepared = write_prepared(folder, weights)
    assert prepared.file is not None
    relative = prepared.model_copy(update={"file": Path(prepared.file.name)})  # a home can be moved
    temporary = folder / f".{index}"
    temporary.write_text(relative.model_dump_json(), encoding="utf-8")
    temporary.replace(folder / index)
    published(folder / index)


def stored_weights(folder: Path, index: str = _INDEX) -> InitialWeights:
    """The weights that are kept in the folder of a stage; see `store_weights`.

    Raises:
        StageFailedError: There are none.
    """
    try:
        found = InitialWeights.model_validate_json((folder / index).read_bytes())
    except (OSError, ValueError) as error:
        what = "of the teacher" if index == TEACHER_INDEX else "that the trials start from"
        raise StageFailedError(
            f"{folder / index} must name the weights {what}, but cannot be read ({error}). "
            "Restore the folder, or run the study again under another name."
        ) from error
    assert found.file is not None
    return found.model_copy(update={"file": folder / found.file})


def plan_start(context: StageContext, weights: InitialWeights, topologies: Sequence[str]) -> StartingWeights:
    """Find what each topology takes from the weights, and say it when the stage begins.

    Raises:
        StageFailedError: No topology can use the weights.
    """
    from trainers.data.images import load_images
    from trainers.weights.fitting import plan_weights
    from trainers.weights.prepared import read_prepared

    source, data = read_prepared(weights), load_images(context.spec.data)
    fits = {topology: plan_weights(source, topology, data.task, data.class_names) for topology in topologies}
    reasons = [fit.reason for fit in fits.values() if fit.reason is not None]
    if len(reasons) == len(fits):
        raise StageFailedError(
            f"weights {weights.source}: must fit at least one topology of stage {context.stage.name!r}, but fit none: "
            f"{reasons[0]}. Train smaller topologies of the same space, or name other weights."
        )
    if not context.store.trials(context.stage.id):
        for line in _lines(weights.source, fits):
            context.progress.note(line)
        if source.ignored:
            context.progress.note(f"weights {weights.source}: ignored {source.ignored_text}")
    return StartingWeights(
        source=weights.source,
        sha256=source.sha256,
        topologies={topology: fit.text for topology, fit in fits.items()},
        ignored=source.ignored,
    )


def _lines(source: str, fits: "Mapping[str, Fit]") -> list[str]:
    """One line per different start."""
    by_text: dict[str, list[str]] = {}
    for topology, fit in fits.items():
        by_text.setdefault(fit.text, []).append(topology)
    if len(by_text) == 1:
        return [f"weights {source}: every topology {text}" for text in by_text]
    shown = [
        f"weights {source}: {found[0] if len(found) == 1 else f'{len(found)} topologies'} "
        f"{text if len(found) == 1 else text.replace('starts', 'start', 1)}"
        for text, found in by_text.items()
    ]
    return shown if len(shown) <= 4 else [*shown[:3], f"weights {source}: {len(shown) - 3} more in the result"]
