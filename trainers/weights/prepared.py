"""Weights to start from, or of a teacher, kept with a training in one file: it can resume without their source."""

import json
import os
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from search_spaces.base import ImageTask
from trainers.config import InitialWeights
from trainers.storage.artifacts import fetched, published
from trainers.weights.errors import WeightsError
from trainers.weights.reading import SourceWeights

_TOPOLOGY, _TASK, _CLASSES, _SHA256, _IGNORED = "topology", "task", "class_names", "sha256", "ignored"
_MEAN, _STD = "mean", "std"
"""Not in files of earlier versions."""


def write_prepared(folder: Path, weights: SourceWeights) -> InitialWeights:
    """Write weights into a file in a folder, atomically, and return how a configuration names them."""
    file = folder / f"initial-{weights.sha256[:16]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        _TOPOLOGY: weights.topology,
        _TASK: None if weights.task is None else weights.task.model_dump(),
        _CLASSES: list(weights.class_names),
        _SHA256: weights.sha256,
        _IGNORED: list(weights.ignored),
        _MEAN: list(weights.mean),
        _STD: list(weights.std),
    }
    content = save_tensors(
        {name: value.contiguous() for name, value in weights.tensors.items()},
        metadata={"vitsearch": json.dumps(known), "source": weights.source},
    )
    temporary = folder / f".{file.name}.{os.getpid()}"
    temporary.write_bytes(content)
    temporary.replace(file)
    published(file)
    return InitialWeights(source=weights.source, sha256=weights.sha256, file=file)


def read_prepared(weights: InitialWeights) -> SourceWeights:
    """The weights that a configuration names.

    Raises:
        WeightsError: They are not prepared, or the file is missing, damaged, or contains other weights.
    """
    if weights.file is None or weights.sha256 is None:
        raise WeightsError(
            f"weights {weights.source}: must be read before the training begins, but the configuration names no file. "
            "Call trainers.weights.prepared.write_prepared, or use `vitsearch train`."
        )
    return _read(weights.file, weights.sha256, weights.source)


@lru_cache(maxsize=2)
def _read(file: Path, sha256: str, source: str) -> SourceWeights:
    try:
        with safe_open(fetched(file), framework="pt") as content:
            known = json.loads((content.metadata() or {})["vitsearch"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError) as error:
        raise WeightsError(
            f"weights {source}: {file} must contain them, but cannot be read ({error}). Restore the file."
        ) from error
    if known[_SHA256] != sha256:
        raise WeightsError(
            f"weights {source}: {file} must contain the weights with sha256 {sha256}, but contains {known[_SHA256]}. "
            "Restore the file."
        )
    return SourceWeights(
        source=source,
        sha256=sha256,
        tensors=tensors,
        topology=known[_TOPOLOGY],
        task=None if known[_TASK] is None else ImageTask.model_validate(known[_TASK]),
        class_names=tuple(known[_CLASSES]),
        ignored=tuple(known[_IGNORED]),
        mean=tuple(known.get(_MEAN, ())),
        std=tuple(known.get(_STD, ())),
    )
