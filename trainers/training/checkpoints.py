"""Checkpoints on disk: one folder per epoch, written at once or not at all, verified by content hash.

    epoch-0012/model.safetensors        the weights
    epoch-0012/optimizer.safetensors    the optimizer's tensors; only in the newest two
    epoch-0012/ema.safetensors          averages that training maintains, if the recipe asks for them (also swa)
    epoch-0012/manifest.json            epoch, reports so far, configuration digest, sha256 of each file

A folder takes its name only when it is whole, so a killed process leaves the checkpoint before. Files are not flushed
to the disk one by one: what a power cut tears is found by its hash, and the checkpoint before is used.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from trainers.config import CheckpointRecord, Configuration, EpochReport

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
AVERAGES = ("ema", "swa")
"""Names of the averages that training maintains; each has a file `NAME.safetensors`."""
MANIFEST = "manifest.json"
_KEEP_RESUMABLE = 2
_TEMPORARY = ".part-"

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is not of the training that asks for it."""


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written; the message says where and why."""


class Manifest(BaseModel):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    configuration: str
    """Digest of the configuration that is trained."""
    history: tuple[EpochReport, ...]
    files: dict[str, str]
    """sha256 of each file."""
    damaged: tuple[str, ...] = ()
    """What was wrong with checkpoints that this training could not go on from."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that training can go on from."""

    epoch: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: tuple[EpochReport, ...]
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State dicts of the averages that training maintains, by name."""
    damaged: tuple[str, ...] = ()
    """What was wrong with newer checkpoints, and with others earlier in this training."""


def configuration_digest(configuration: Configuration) -> str:
    """sha256 of the configuration as JSON with sorted keys, without fields at their default value.

    A field that is added later therefore leaves the digest of every earlier configuration as it is, provided that its
    default means what was done before. The default of a field must never change.
    """
    return _json_digest(configuration.model_dump(mode="json", exclude_defaults=True))


def accepted_digests(configuration: Configuration) -> frozenset[str]:
    """Digests of checkpoints that a training of this configuration may continue from, from whichever version.

    Version 0.1.0 hashed every field that it had. Its digest is accepted if all fields added since have their default.
    """
    dump = configuration.model_dump(mode="json")
    changed = configuration.model_dump(mode="json", exclude_defaults=True)
    accepted = {configuration_digest(configuration)}
    if _without(changed, _FIELDS_0_1_0) == changed:
        accepted.add(_json_digest(_without(dump, _FIELDS_0_1_0)))
    return frozenset(accepted)


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
"""The fields of a configuration in version 0.1.0, with those of its blocks."""


def _without(dump: Mapping[str, Any], known: Mapping[str, frozenset[str] | None]) -> dict[str, Any]:
    """The dump of a configuration without fields that are not among the known ones."""
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
    averages: Mapping[str, Mapping[str, Tensor]] | None = None,
    damaged: Sequence[str] = (),
) -> CheckpointRecord:
    """Write the checkpoint of the newest epoch in `history`, then remove what retention does not ask for.

    Args:
        folder: Where the trial's checkpoints are; made if missing.
        weights: State dict.
        optimizer: The optimizer's state by index of the parameter.
        history: Reports of all epochs so far, oldest first, at least one.
        configuration: Digest of what is trained.
        keep: Weights of this many newest epochs are kept, and never fewer than the two that training can resume from.
        averages: State dicts of the averages that training maintains, by name.
        damaged: What was wrong with earlier checkpoints of this training.

    Raises:
        CheckpointWriteError: The file system takes no more; what was there before is still there.
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
    )
    target = folder / f"epoch-{epoch:04d}"
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        write_folder(target, {**content, MANIFEST: manifest.model_dump_json(indent=1).encode()})
        prune(folder, keep=max(keep, _KEEP_RESUMABLE))
    return _record(target, manifest)


def load_newest(folder: Path, *, accepted: Collection[str], damaged: list[str] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, or `None`. Damaged ones and leftovers of a torn write are removed.

    Args:
        folder: Where the trial's checkpoints are.
        accepted: Digests of what is trained; see `accepted_digests`.
        damaged: What was wrong with newer checkpoints is added here, also where no whole one is left.

    Raises:
        CheckpointError: The newest whole checkpoint is of another configuration.
        CheckpointWriteError: A damaged one cannot be removed.
    """
    if not folder.is_dir():
        return None
    with writing(folder):
        _remove_leftovers(folder)
    found: list[str] = [] if damaged is None else damaged
    for path in reversed(_epoch_folders(folder)):
        try:
            manifest = read_manifest(path)
            weights = read_tensors(path / WEIGHTS, manifest.files.get(WEIGHTS))
            optimizer = read_tensors(path / OPTIMIZER, manifest.files.get(OPTIMIZER))
            averages = {
                name: read_tensors(path / average_file(name), manifest.files[average_file(name)])
                for name in AVERAGES
                if average_file(name) in manifest.files
            }
        except CheckpointError as error:
            logger.warning("%s Going back to the checkpoint before it.", error)
            found.append(f"{path.name}: {error}")
            with writing(path):
                _remove(path)
            continue
        if manifest.configuration not in accepted:
            raise CheckpointError(
                f"{folder} must be empty or hold checkpoints of the configuration to train, but {path.name} is of "
                "another one. Choose another folder, or delete it."
            )
        return Checkpoint(
            epoch=manifest.epoch,
            weights=weights,
            optimizer=optimizer,
            history=manifest.history,
            averages=averages,
            damaged=(*manifest.damaged, *found),
        )
    return None


def load_weights(path: Path, *, average: str | None = None) -> dict[str, Tensor]:
    """The weights of one checkpoint's folder, or an average of them that training maintained.

    Args:
        path: The checkpoint's folder.
        average: One of `AVERAGES`; `None` for the weights.

    Raises:
        CheckpointError: It is missing, or its content does not have the hash in its manifest.
    """
    manifest = read_manifest(path)
    if average is None:
        return read_tensors(path / WEIGHTS, manifest.files.get(WEIGHTS))
    file = average_file(average)
    if file not in manifest.files:
        raise CheckpointError(
            f"the checkpoint {path} must have the average {average!r}, but training did not maintain it. Set "
            f"recipe.{average} in the recipe, and train again."
        )
    return read_tensors(path / file, manifest.files[file])


def average_file(name: str) -> str:
    """File of an average that training maintains."""
    return f"{name}.safetensors"


def saved(folder: Path) -> tuple[CheckpointRecord, ...]:
    """Records of the checkpoints in a folder, oldest first; one without readable weights or manifest is left out."""
    records = []
    for path in _epoch_folders(folder):
        try:
            records.append(_record(path, read_manifest(path)))
        except CheckpointError as error:
            logger.warning("%s It is left out.", error)
    return tuple(records)


def prune(folder: Path, *, keep: int) -> None:
    """Keep the weights of the newest `keep` epochs, and optimizer state of no more than the newest two."""
    newest_first = _epoch_folders(folder)[::-1]
    with writing(folder):
        for path in newest_first[keep:]:
            _remove(path)
        for path in newest_first[_KEEP_RESUMABLE:keep]:
            (path / OPTIMIZER).unlink(missing_ok=True)


def retire(folder: Path, *, keep: Collection[Path]) -> None:
    """Remove all checkpoints of a training that has ended but a few, and the optimizer state of those too.

    Args:
        folder: The training's; checkpoints in folders below it count.
        keep: Folders of the checkpoints to keep.

    Raises:
        CheckpointWriteError: Something cannot be removed.
    """
    with writing(folder):
        for manifest in sorted(folder.rglob(f"epoch-*/{MANIFEST}")):
            if manifest.parent in keep:
                (manifest.parent / OPTIMIZER).unlink(missing_ok=True)
            else:
                _remove(manifest.parent)


def read_manifest(path: Path) -> Manifest:
    """The manifest of one checkpoint's folder.

    Raises:
        CheckpointError: It is missing or not readable.
    """
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its content is damaged"
        raise CheckpointError(f"the checkpoint {path} must have a whole {MANIFEST}, but: {reason}.") from error


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder that appears under its name only when it is whole; an older one is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
    whole, older = temporary / "new", temporary / "old"
    try:
        whole.mkdir()
        for name, data in files.items():
            (whole / name).write_bytes(data)
        if target.exists():
            target.replace(older)
        whole.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # `_remove_leftovers` finds what cannot be removed now


def sha256_of(data: bytes) -> str:
    """The content hash, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in the safetensors format."""
    return save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def read_tensors(file: Path, sha256: str | None) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose content has the hash `sha256`.

    Raises:
        CheckpointError: It is missing or has another content.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} must be readable, but: {error.strerror}.") from error
    found = sha256_of(data)
    if found != sha256:
        raise CheckpointError(f"{file} must have the sha256 {sha256}, but has {found}: it is damaged.")
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{file} must be a safetensors file, but: {error}.") from error


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the file system refuses in here is an error that names the target.

    Raises:
        CheckpointWriteError: It did.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointWriteError(
            f"the checkpoint {target} must be written, but: {error.strerror}. Make room there, or mend what is in the "
            "way, then run the same command again."
        ) from error


def _record(path: Path, manifest: Manifest) -> CheckpointRecord:
    try:
        size = (path / WEIGHTS).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path / WEIGHTS} must be readable, but: {error.strerror}.") from error
    return CheckpointRecord(epoch=manifest.epoch, path=path, sha256=manifest.files[WEIGHTS], num_bytes=size)


def _epoch_folders(folder: Path) -> list[Path]:
    """Oldest first."""
    found = [path for path in folder.glob("epoch-*") if path.name.removeprefix("epoch-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")))


def _remove(path: Path) -> None:
    """Take the name away first, so that a half-deleted folder is never taken for a checkpoint."""
    grave = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
    path.replace(grave / path.name)
    shutil.rmtree(grave)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):  # whose it is has just removed it, or something in it
            shutil.rmtree(path)
