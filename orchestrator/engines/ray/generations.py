"""The files of population-based training: a trial's checkpoints since it last copied another trial.

    trial-0003/generation-02/epoch-0006/...     the copied checkpoints, and those of later epochs
    trial-0003/generation-02/lineage.json       the trials copied, the epochs of the copies, and the current point

A generation gets its name when it is complete, and then replaces all earlier generations. The weights of a trial
therefore always match its current settings, even if a process is killed.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from search_spaces.dimensions import Point, Scalar
from trainers.config import Configuration

COPY_STEPS = "lineage"
"""Key of the copy steps in a trial's details. It and the file's name are stored with studies of earlier versions."""
COPY_STEPS_FILE = "lineage.json"
_NAME = "generation-"
_TRIES = 5
_PAUSE_S = 0.2


class CopyStep(BaseModel):
    """A copy of another trial's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    copied_from: int
    """Number of the other trial."""
    own_epoch: int
    """Epochs that the trial itself had trained by then."""
    epoch: int
    """Epochs that the copied weights had been trained."""
    changed: dict[str, tuple[Scalar, Scalar]]
    """Changed values by dimension: before and after."""


class Generation(BaseModel):
    """A trial after all its copies."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    point: Point
    """The point that it continues with."""
    steps: tuple[CopyStep, ...] = ()


def newest_generation(folder: Path) -> tuple[Path, Generation] | None:
    """The newest generation in a trial's folder; `None` if the trial never copied."""
    found = sorted(folder.glob(f"{_NAME}*/{COPY_STEPS_FILE}"))
    if not found:
        return None
    return found[-1].parent, Generation.model_validate_json(found[-1].read_bytes())


def begin_generation(
    folder: Path, generation: Generation, *, source: Path, epoch: int, configuration: Configuration
) -> Path:
    """Copy the checkpoints of another trial up to an epoch, and remove the trial's earlier ones.

    Args:
        folder: Folder of the trial.
        generation: The trial after this copy.
        source: Folder with the other trial's checkpoints; that trial may be training.
        epoch: Newest epoch to copy.
        configuration: The trial's new configuration; the copies are marked as its own.

    Returns:
        The generation's folder.

    Raises:
        trainers.training.checkpoints.CheckpointError: The other trial has no complete checkpoint up to that epoch.
    """
    from trainers.training.checkpoints import CheckpointError, configuration_digest  # imports torch

    target = folder / f"{_NAME}{len(generation.steps):02d}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    digest = configuration_digest(configuration)
    temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        for attempt in range(_TRIES):
            if _copy_checkpoints(source, temporary / "new", epoch, digest):
                break
            shutil.rmtree(temporary / "new", ignore_errors=True)
            if attempt == _TRIES - 1:
                raise CheckpointError(
                    f"{source} must contain a complete checkpoint of epoch {epoch} or earlier to be copied, but has "
                    "none. Run the same command again."
                )
            time.sleep(_PAUSE_S)  # the other trial was removing an old one
        (temporary / "new" / COPY_STEPS_FILE).write_text(generation.model_dump_json(indent=1), encoding="utf-8")
        (temporary / "new").replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in folder.iterdir():
        if path != target and path.name.startswith((_NAME, "epoch-")):
            shutil.rmtree(path, ignore_errors=True)
    return target


def _copy_checkpoints(source: Path, target: Path, epoch: int, digest: str) -> int:
    """Copy checkpoints and return their number. Files are hard links if possible, since they never change."""
    from trainers.training.checkpoints import MANIFEST, CheckpointError, read_manifest

    target.mkdir()
    count = 0
    for path in sorted(source.glob("epoch-*")):
        if int(path.name.removeprefix("epoch-")) > epoch:
            continue
        try:
            manifest = read_manifest(path).model_copy(update={"configuration": digest})
            (target / path.name).mkdir()
            for name in manifest.files:
                if (path / name).exists():  # older checkpoints have no optimizer state
                    _link_or_copy(path / name, target / path.name / name, manifest.files[name])
        except (OSError, CheckpointError):
            shutil.rmtree(target / path.name, ignore_errors=True)
            continue
        (target / path.name / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        count += 1
    return count


def _link_or_copy(source: Path, target: Path, sha256: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        from trainers.training.checkpoints import CheckpointError, sha256_of

        shutil.copyfile(source, target)
        if sha256_of(target.read_bytes()) != sha256:
            raise CheckpointError(f"{source} changed while it was copied.") from None
