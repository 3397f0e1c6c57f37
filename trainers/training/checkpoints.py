"""Checkpoints: one folder per epoch, written atomically and verified by content hash.

    epoch-0012/model.safetensors        the weights
    epoch-0012/optimizer.safetensors    the optimizer's tensors; only in the newest two
    epoch-0012/ema.safetensors          averages that training maintains, if the recipe asks for them: ema, or
                                        ema-0.99 and ema-0.999, and swa
    epoch-0012/manifest.json            epoch, reports so far, configuration digest, sha256 of each file

A folder gets its final name only when it is complete, and in an object store its manifest (`trainers.storage`), so a
killed process leaves the previous checkpoint. Files are not flushed to disk one by one: a file damaged by a power
failure is detected by its hash, and the previous checkpoint is used.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from trainers.config import CheckpointRecord, Configuration, EpochReport
from trainers.storage.addresses import place_text
from trainers.storage.artifacts import artifacts_at
from trainers.storage.interface import MANIFEST as MANIFEST
from trainers.storage.interface import always
from trainers.weights.tensor_checks import MAX_WEIGHT_BYTES

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
_SUFFIX = ".safetensors"
_EPOCH = "epoch-"
_KEEP_RESUMABLE = 2
_MAX_MANIFEST_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another training."""


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written. The message names the place and the reason."""


class Manifest(BaseModel):
    """Description of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    configuration: str
    """Digest of the configuration."""
    history: tuple[EpochReport, ...]
    files: dict[str, str]
    """sha256 of each file."""
    damaged: tuple[str, ...] = ()
    """Problems of damaged checkpoints that this training could not resume from."""
    spikes: tuple[str, ...] = ()
    """Loss spikes after which this training went back (`trainers.training.spikes`)."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that training can resume from."""

    epoch: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: tuple[EpochReport, ...]
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State dicts of the averages that training maintains, by name."""
    damaged: tuple[str, ...] = ()
    """Problems of newer checkpoints, and of others earlier in this training."""
    spikes: tuple[str, ...] = ()
    """Loss spikes after which this training went back."""


def configuration_digest(configuration: Configuration) -> str:
    """sha256 of the configuration as JSON with sorted keys, without fields at their default value.

    Adding a field therefore does not change the digests of earlier configurations, provided that its default preserves
    the earlier behaviour. The default of a field must never change. Weights to start from are identified by their
    content, not by their place.
    """
    return _json_digest(configuration.model_dump(mode="json", exclude_defaults=True, exclude=_PLACES))


def accepted_digests(configuration: Configuration) -> frozenset[str]:
    """Digests of checkpoints, of any version, from which a training of this configuration may resume.

    Version 0.1.0 hashed all its fields. Its digest is accepted if all fields added since have their default value.
    """
    dump = configuration.model_dump(mode="json")
    changed = configuration.model_dump(mode="json", exclude_defaults=True, exclude=_PLACES)
    accepted = {configuration_digest(configuration)}
    if _without(changed, _FIELDS_0_1_0) == changed:
        accepted.add(_json_digest(_without(dump, _FIELDS_0_1_0)))
    return frozenset(accepted)


_PLACES = {"weights": {"source", "file"}, "teacher": {"source", "file"}}
"""Fields that say where something is stored, which a training does not depend on."""
_FIELDS_0_1_0: Mapping[str, frozenset[str] | None] = {
    "data": frozenset(
        [
            "source",
            "image_size",
            "resize",
            "validation",
            "test",
            "max_images",
            "max_test_images",
            "split_seed",
            "num_classes",
        ]
    ),
    "topology": None,
    "recipe": frozenset(
        [
            "learning_rate",
            "weight_decay",
            "batch_size",
            "schedule",
            "warmup",
            "label_smoothing",
            "drop_path",
            "augmentation",
            "curriculum",
            "gradient_clip",
        ]
    ),
    "epochs": None,
    "seed": None,
    "stopping": None,
    "averaging": None,
}
"""The fields of a configuration in version 0.1.0, including those of nested blocks."""


def _without(dump: Mapping[str, Any], known: Mapping[str, frozenset[str] | None]) -> dict[str, Any]:
    """The dump of a configuration, reduced to known fields."""
    kept: dict[str, Any] = {}
    for name, value in dump.items():
        if name in known:
            inner = known[name]
            kept[name] = value if inner is None else {key: part for key, part in value.items() if key in inner}
    return kept


def _json_digest(content: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(content, sort_keys=True).encode())


def save(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    history: Sequence[EpochReport],
    configuration: str,
    keep: int,
    best: int | None = None,
    averages: Mapping[str, Mapping[str, Tensor]] | None = None,
    damaged: Sequence[str] = (),
    spikes: Sequence[str] = (),
    check: Callable[[], None] = always,
) -> CheckpointRecord:
    """Write the checkpoint of the newest epoch in `history`, then remove files that are no longer retained.

    Args:
        folder: Folder of the trial's checkpoints; created if missing.
        weights: State dict.
        optimizer: The optimizer state by parameter index.
        history: Reports of all epochs so far, oldest first, at least one.
        configuration: Digest of the configuration.
        keep: Number of newest epochs whose weights are kept; at least the two that training can resume from are kept.
        best: An epoch whose weights are kept, too.
        averages: State dicts of the averages that training maintains, by name.
        damaged: Problems of earlier checkpoints of this training.
        spikes: Loss spikes after which this training went back.
        check: Raises an error if a newer attempt at the training has begun. Called before files are removed, too; see
            `prune`.

    Raises:
        CheckpointWriteError: A file cannot be written. Earlier checkpoints are intact.
    """
    epoch = history[-1].epoch
    content = {WEIGHTS: pack_tensors(weights), OPTIMIZER: pack_tensors(optimizer)}
    content |= {average_file(name): pack_tensors(state) for name, state in (averages or {}).items()}
    manifest = Manifest(
        epoch=epoch,
        configuration=configuration,
        history=tuple(history),
        files={name: sha256_of(data) for name, data in content.items()},
        damaged=tuple(damaged),
        spikes=tuple(spikes),
    )
    target = _epoch_folder(folder, epoch)
    with writing(target):
        files = {**content, MANIFEST: manifest.model_dump_json(indent=1).encode()}
        write_folder(target, files, check=check)
        prune(folder, keep=max(keep, _KEEP_RESUMABLE), best=best, check=check)
    return _record(target, manifest)


def load_newest(folder: Path, *, accepted: Collection[str], damaged: list[str] | None = None) -> Checkpoint | None:
    """Load the newest intact checkpoint, or return `None`. Damaged checkpoints and incomplete writes are removed.

    Args:
        folder: Folder of the trial's checkpoints.
        accepted: Digests of the configuration; see `accepted_digests`.
        damaged: A list that receives the problems of newer checkpoints, even if none is intact.

    Raises:
        CheckpointError: The newest intact checkpoint belongs to another configuration.
        CheckpointWriteError: A damaged checkpoint cannot be removed.
    """
    with writing(folder):
        _remove_leftovers(folder)
    found: list[str] = [] if damaged is None else damaged
    for path in reversed(epoch_folders(folder)):
        try:
            manifest, checkpoint = _read_whole(path)
        except CheckpointError as error:
            logger.warning("%s Using the previous checkpoint.", error)
            found.append(f"{path.name}: {error}")
            with writing(path):
                _remove(path)
            continue
        if manifest.configuration not in accepted:
            raise CheckpointError(
                f"{place_text(folder)} must be empty or contain checkpoints of the configuration to train, but "
                f"{path.name} belongs to another configuration. Choose another folder, or delete it."
            )
        return replace(checkpoint, damaged=(*manifest.damaged, *found))
    return None


def load_epoch(folder: Path, epoch: int) -> Checkpoint:
    """The checkpoint of an epoch, which another process has found to be the newest. Nothing is removed.

    Raises:
        CheckpointError: It cannot be read.
    """
    return _read_whole(_epoch_folder(folder, epoch))[1]


def _read_whole(path: Path) -> tuple[Manifest, Checkpoint]:
    manifest = read_manifest(path)
    checkpoint = Checkpoint(
        epoch=manifest.epoch,
        weights=read_tensors(path / WEIGHTS, manifest.files.get(WEIGHTS)),
        optimizer=read_tensors(path / OPTIMIZER, manifest.files.get(OPTIMIZER)),
        history=manifest.history,
        averages={
            file.removesuffix(_SUFFIX): read_tensors(path / file, sha256)
            for file, sha256 in manifest.files.items()
            if file not in (WEIGHTS, OPTIMIZER)
        },
        damaged=manifest.damaged,
        spikes=manifest.spikes,
    )
    return manifest, checkpoint


def load_weights(path: Path, *, average: str | None = None) -> dict[str, Tensor]:
    """Load the weights of a checkpoint, or an average that training maintained.

    Args:
        path: Folder of the checkpoint.
        average: Its name, such as `ema`; `None` for the weights.

    Raises:
        CheckpointError: The checkpoint or the average is missing, or its content does not match the manifest.
    """
    manifest = read_manifest(path)
    if average is None:
        return read_tensors(path / WEIGHTS, manifest.files.get(WEIGHTS))
    file = average_file(average)
    if file not in manifest.files:
        raise CheckpointError(
            f"the checkpoint {place_text(path)} must have the average {average!r}, but training did not maintain it. "
            f"Set recipe.{average.partition('-')[0]} and train again."
        )
    return read_tensors(path / file, manifest.files[file])


def average_file(name: str) -> str:
    """File name of an average that training maintains."""
    return f"{name}{_SUFFIX}"


def saved(folder: Path) -> tuple[CheckpointRecord, ...]:
    """Records of the checkpoints in a folder, oldest first, without those whose weights or manifest are unreadable."""
    records = []
    for path in epoch_folders(folder):
        try:
            records.append(_record(path, read_manifest(path)))
        except CheckpointError as error:
            logger.warning("%s Skipping this checkpoint.", error)
    return tuple(records)


def prune(folder: Path, *, keep: int, best: int | None = None, check: Callable[[], None] = always) -> None:
    """Keep the weights of the newest `keep` epochs and of `best`, and the optimizer state of at most the newest two.

    Args:
        folder: Folder of the training.
        keep: Number of newest epochs.
        best: Another epoch to keep.
        check: Raises an error if a newer attempt at the training has begun. It is called once, after the checkpoints
            were listed and before any is removed. An attempt that begins while they are removed may lose those of the
            same epochs, if it has written them anew by then.

    Raises:
        CheckpointWriteError: A file cannot be removed.
    """
    newest_first = epoch_folders(folder)[::-1]
    kept = [path for place, path in enumerate(newest_first) if place < keep or epoch_of(path) == best]
    removed = [path for path in newest_first if path not in kept]
    finished = [path for path in kept if path not in newest_first[:_KEEP_RESUMABLE]]
    if not removed and not finished:
        return
    check()
    with writing(folder):
        for path in removed:
            _remove(path)
        _without_optimizer(finished)


def retire(folder: Path, *, keep: Collection[Path], resumable: Collection[Path] = ()) -> None:
    """Remove the checkpoints of a finished training except a few, and the optimizer state of those.

    Args:
        folder: Folder of the training, searched recursively.
        keep: Folders of the checkpoints to keep.
        resumable: Folders of the checkpoints that keep their optimizer state.

    Raises:
        CheckpointWriteError: A file cannot be removed.
    """
    with writing(folder):
        found = checkpoints_below(folder)
        for path in found:
            if path not in keep:
                _remove(path)
        _without_optimizer([path for path in found if path in keep and path not in resumable])


def discard(folder: Path) -> None:
    """Remove all checkpoints in a folder.

    Raises:
        CheckpointWriteError: A file cannot be removed.
    """
    with writing(folder):
        for path in reversed(epoch_folders(folder)):
            _remove(path)


def notes_of_newest(folder: Path) -> dict[str, list[str]]:
    """What the newest checkpoint of a training tells about it, as details of an outcome; empty if there is none."""
    folders = epoch_folders(folder)
    if not folders:
        return {}
    manifest = read_manifest(folders[-1])
    notes = {"damaged_checkpoints": list(manifest.damaged), "loss_spikes": list(manifest.spikes)}
    return {name: found for name, found in notes.items() if found}


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: The manifest is missing or unreadable.
    """
    try:
        content = artifacts_at(path).read(path / MANIFEST, max_bytes=_MAX_MANIFEST_BYTES)
        return Manifest.model_validate_json(content)
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its content is damaged"
        raise CheckpointError(
            f"the checkpoint {place_text(path)} must have an intact {MANIFEST}, but: {reason}."
        ) from error


def write_folder(target: Path, files: Mapping[str, bytes], *, check: Callable[[], None] = always) -> None:
    """Write a folder of files atomically; an older folder of the same name is replaced.

    Args:
        target: The folder.
        files: The content of each file. In an object store, the last one is written last and completes the folder.
        check: Raises an error if this process may no longer write.
    """
    *_, last = files
    artifacts_at(target).commit(target, files, manifest=last, check=check)


def sha256_of(data: bytes) -> str:
    """The sha256 of data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in the safetensors format. Numbers may be the same tensor under several names."""
    return save_tensors({name: _apart(value.detach().cpu().contiguous()) for name, value in tensors.items()})


def _apart(tensor: Tensor) -> Tensor:
    """safetensors rejects names that share memory."""
    return tensor.clone() if tensor.ndim == 0 else tensor


def read_tensors(file: Path, sha256: str | None, *, max_bytes: int = MAX_WEIGHT_BYTES) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file and verify its sha256.

    Args:
        file: The file.
        sha256: Expected sha256 of its content.
        max_bytes: Largest size, in bytes.

    Raises:
        CheckpointError: The file is missing, not a regular file or too large, or its content does not match.
    """
    try:
        data = artifacts_at(file).read(file, max_bytes=max_bytes, sha256=sha256)
    except OSError as error:
        raise CheckpointError(f"{place_text(file)} must be readable, but: {error.strerror}.") from error
    found = sha256_of(data)
    if found != sha256:
        raise CheckpointError(f"{place_text(file)} must have the sha256 {sha256}, but has {found}: it is damaged.")
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{place_text(file)} must be a safetensors file, but: {error}.") from error


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Convert file system errors inside the context into errors that name the target.

    Raises:
        CheckpointWriteError: A file system operation failed.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointWriteError(
            f"the checkpoint {place_text(target)} must be written, but: {error.strerror}. Free disk space or fix the "
            "problem, then run the same command again."
        ) from error


def _record(path: Path, manifest: Manifest) -> CheckpointRecord:
    try:
        size = artifacts_at(path).size(path / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"{place_text(path / WEIGHTS)} must be readable, but: {error.strerror}.") from error
    return CheckpointRecord(epoch=manifest.epoch, path=path, sha256=manifest.files[WEIGHTS], num_bytes=size)


def epoch_folders(folder: Path) -> list[Path]:
    """Folders of the checkpoints in a training's folder, oldest first."""
    found = artifacts_at(folder).committed(folder, prefix=_EPOCH, manifest=MANIFEST)
    return sorted((path for path in found if path.name.removeprefix(_EPOCH).isdigit()), key=epoch_of)


def checkpoints_below(folder: Path) -> list[Path]:
    """Folders of all checkpoints in a folder, at any depth."""
    return artifacts_at(folder).committed_below(folder, prefix=_EPOCH, manifest=MANIFEST)


def _epoch_folder(folder: Path, epoch: int) -> Path:
    return folder / f"{_EPOCH}{epoch:04d}"


def epoch_of(path: Path) -> int:
    """The epoch of a checkpoint, from the name of its folder."""
    return int(path.name.removeprefix(_EPOCH))


def has_optimizer(path: Path) -> bool:
    """Whether a checkpoint still has the state of the optimizer."""
    return artifacts_at(path).has(path / OPTIMIZER)


def _without_optimizer(paths: Sequence[Path]) -> None:
    if paths:
        artifacts_at(paths[0]).remove_files([path / OPTIMIZER for path in paths])


def _remove(path: Path) -> None:
    artifacts_at(path).remove_folder(path, manifest=MANIFEST)


def _remove_leftovers(folder: Path) -> None:
    artifacts_at(folder).clear(folder, prefix=_EPOCH, manifest=MANIFEST)
