"""Reads the weights of a model from a model folder, a safetensors file or a torch checkpoint. Nothing is executed."""

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from plugins.regular_files import read_regular_file
from search_spaces.base import ImageTask
from trainers.storage.artifacts import fetched
from trainers.weights.errors import WeightsError
from trainers.weights.foreign_names import from_plain_transformer, is_plain_transformer, state_dict_in
from trainers.weights.tensor_checks import MAX_WEIGHT_BYTES, not_finite
from trainers.yaml_source import OF_MODEL_CARDS, SpecError, read_yaml

MODEL_FILE = "model.yaml"
WEIGHTS_FILE = "model.safetensors"
_SHOWN = 5
_TORCH_SUFFIXES = (".pth", ".pt", ".bin")


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """Weights to start from, under our names, and what is known of their model."""

    source: str
    """What the user named."""
    sha256: str
    """sha256 of the file that contains the weights."""
    tensors: dict[str, Tensor]
    topology: str | None = None
    """`space:text`; `None` if unknown."""
    task: ImageTask | None = None
    class_names: tuple[str, ...] = ()
    """Classes of the last layer, in order; empty if unknown."""
    mean: tuple[float, ...] = ()
    """Mean per channel of the pixels that it was trained on, on a scale of 0 to 1; empty if unknown."""
    std: tuple[float, ...] = ()
    """Their standard deviation."""
    ignored: tuple[str, ...] = field(default=())
    """Names of tensors that our models do not have."""

    @property
    def ignored_text(self) -> str:
        """The first of `ignored`, and the number of others."""
        shown = ", ".join(self.ignored[:_SHOWN])
        return shown if len(self.ignored) <= _SHOWN else f"{shown} and {len(self.ignored) - _SHOWN} more"


class _Known(NamedTuple):
    """What is known of the model."""

    topology: str
    task: ImageTask
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Configuration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    topology: str


class _Card(BaseModel):
    """The part of a model's description that matters here; see `trainers.champion.ModelCard`."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    configuration: _Configuration
    task: ImageTask
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights_sha256: str


def read_weights(path: Path, *, source: str) -> SourceWeights:
    """Read the weights of a model.

    Args:
        path: A model folder, as `vitsearch train` and `promote` write it; a `.safetensors` file with our names or those
            of timm and DeiT; or a checkpoint of torch (`.pth`, `.pt`, `.bin`) with the latter.
        source: What the user named, for messages.

    Raises:
        WeightsError: The weights cannot be used; the message names the file, the reason and what to do.
    """
    file = path / WEIGHTS_FILE if fetched(path).is_dir() else path
    data = _bytes_of(file, path, source)
    sha256 = hashlib.sha256(data).hexdigest()
    card = _card_beside(file, sha256, must_fit=path.is_dir())
    found = _tensors_in(file, data)
    left = tuple(name for name, value in found.items() if not value.is_floating_point())
    tensors = {name: value.float() for name, value in found.items() if value.is_floating_point()}
    problem = not_finite(tensors) if tensors else f"all of its tensors are whole numbers ({', '.join(left[:_SHOWN])})"
    if problem is not None:
        raise WeightsError(f"weights {file}: must be the weights of a trained model, but {problem}. Use another model.")
    if is_plain_transformer(tensors):
        tensors, foreign = from_plain_transformer(tensors)
        left += foreign
    known = _known_of_export(file)
    if card is not None:
        known = _Known(card.configuration.topology, card.task, card.class_names, card.mean, card.std)
    return SourceWeights(
        source=source,
        sha256=sha256,
        tensors=tensors,
        topology=None if known is None else known.topology,
        task=None if known is None else known.task,
        class_names=() if known is None else known.class_names,
        mean=() if known is None else known.mean,
        std=() if known is None else known.std,
        ignored=left,
    )


def _bytes_of(file: Path, path: Path, source: str) -> bytes:
    suffixes = (".safetensors", *_TORCH_SUFFIXES)
    if path.is_file() and path.suffix.lower() not in suffixes:
        raise WeightsError(
            f"weights {source}: must be a model folder or a file ending in {', '.join(suffixes)}, but got {path.name}. "
            "Name the folder that contains the model, or convert the file."
        )
    try:
        return read_regular_file(file, max_bytes=MAX_WEIGHT_BYTES)
    except OSError as error:
        what = (
            f"a folder with {MODEL_FILE} and {WEIGHTS_FILE}" if path.is_dir() else "a readable file or a model folder"
        )
        raise WeightsError(
            f"weights {source}: must be {what}, but {file}: {error.strerror}. Check the path. The champion of a study "
            "is written NAME@champion."
        ) from error


def _card_beside(file: Path, sha256: str, *, must_fit: bool) -> _Card | None:
    """The description of the model beside its weights; `None` if there is none, or it describes other weights."""
    place = file.with_name(MODEL_FILE)
    try:
        card = _Card.model_validate(read_yaml(place, limits=OF_MODEL_CARDS, version="1.1").data)
    except (SpecError, ValidationError) as error:
        if must_fit:
            reason = error.message.rstrip(".") if isinstance(error, SpecError) else "it does not describe a model"
            raise WeightsError(
                f"weights {file.parent}: a model folder must have an intact {MODEL_FILE}, but {place.name} cannot be "
                f"read ({reason}). Name its {WEIGHTS_FILE} instead, or save the model again."
            ) from error
        return None
    if card.weights_sha256 == sha256:
        return card
    if must_fit:
        raise WeightsError(
            f"weights {file}: must have the sha256 {card.weights_sha256} of its {MODEL_FILE}, but has {sha256}: it is "
            "damaged or was replaced. Restore it, or move it out of the folder and name the file."
        )
    return None


def _known_of_export(file: Path) -> _Known | None:
    """What a file of `vitsearch export --format safetensors` tells of its model; `None` for other files."""
    if file.suffix.lower() != ".safetensors":
        return None
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata() or {}
    try:
        names = tuple(map(str, json.loads(metadata["class_names"])))
        _, channels, size, _ = json.loads(metadata["input"])["shape"]
        task = ImageTask(image_size=size, in_channels=channels, num_classes=len(names))
        pixels = json.loads(metadata.get("preprocessing", "{}"))
        mean, std = tuple(pixels.get("mean", ())), tuple(pixels.get("std", ()))
        return _Known(metadata["topology"], task, names, mean, std)
    except (KeyError, ValueError, TypeError):  # metadata of another program
        return None


def _tensors_in(file: Path, data: bytes) -> dict[str, Tensor]:
    if file.suffix.lower() == ".safetensors":
        try:
            return state_dict_in(load_tensors(data)) or {}
        except SafetensorError as error:
            raise WeightsError(f"weights {file}: must be a safetensors file, but: {error}. Save it again.") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(
            f"weights {file}: must be a checkpoint that torch reads without executing code (weights_only), but: "
            f"{str(error).splitlines()[0][:160]}. Save the state dict alone, best as .safetensors."
        ) from error
    found = state_dict_in(content)
    if found is None:
        raise WeightsError(
            f"weights {file}: must contain a state dict (tensors by name), but contains "
            f"{type(content).__name__}. Save the model's state dict."
        )
    return found
