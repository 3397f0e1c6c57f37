"""Writes trained models in formats that other programs read: safetensors, torch.export and ONNX."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn
from torch.export import Dim, ExportedProgram

from trainers.champion import Predictor
from trainers.export_formats import ExportFormat
from trainers.models.auxiliary_heads import AUXILIARY, auxiliary_heads
from trainers.models.blocks import unfused_attention
from trainers.serving import ServingGraph

INPUT_NAME = "images"
OUTPUT_NAMES = ("probabilities", "logits")
FACTS_FILE = "vitsearch.json"
"""Name of the description within a torch-export archive."""
_OPSET = 18


class ExportError(ValueError):
    """A model cannot be exported; the message says what to change."""


def export_model(
    predictor: Predictor, file: Path, export_format: ExportFormat, *, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write a model, and beside it a JSON file that describes inputs, outputs and classes.

    The formats torch-export and onnx contain `ServingGraph`: their input is `images`, uint8, (N, H, W, C), of any
    number and size; their outputs are `probabilities` and `logits`, float32, (N, classes). A safetensors file contains
    the weights only. The same description is in the file's metadata.

    Args:
        predictor: The model, on the CPU.
        file: The file to write.
        export_format: Its format.
        overwrite: Whether existing files are replaced.

    Returns:
        The model's file, and the JSON file.

    Raises:
        ExportError: One of the files exists, or packages that the format needs are not installed.
        OSError: A file cannot be written.
    """
    if file.is_dir():
        raise ExportError(f"the exported model is a file, but {file} is a folder. Name a file with --out.")
    described = file.with_name(f"{file.name}.json")
    _check_packages(export_format)
    for path in (file, described):
        if path.exists() and not overwrite:
            raise ExportError(
                f"the exported file must be new, but {path} exists. Name another with --out, or add --overwrite."
            )
    facts = describe_export(predictor, export_format)
    write = {
        ExportFormat.safetensors: _write_safetensors,
        ExportFormat.torch_export: _write_torch_export,
        ExportFormat.onnx: _write_onnx,
    }[export_format]
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(file, lambda part: write(predictor, part, facts))
    _write_whole(described, lambda part: part.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n"))
    return file, described


def describe_export(predictor: Predictor, export_format: ExportFormat) -> dict[str, Any]:
    """All that a program needs to know to use an exported model, as JSON values."""
    card = predictor.card
    task, size = card.task, card.task.image_size
    is_graph = export_format is not ExportFormat.safetensors
    channels = "grey" if task.in_channels == 1 else "RGB"
    given = {"name": INPUT_NAME, "dtype": "uint8", "shape": ["N", "H", "W", task.in_channels], "channels": channels}
    normalised = {"name": INPUT_NAME, "dtype": "float32", "shape": ["N", task.in_channels, size, size]}
    outputs = OUTPUT_NAMES if is_graph else OUTPUT_NAMES[1:]
    return {
        "format": export_format.value,
        "class_names": list(card.class_names),
        "input": given if is_graph else normalised | {"channels": channels},
        "outputs": [{"name": name, "dtype": "float32", "shape": ["N", task.num_classes]} for name in outputs],
        "preprocessing": {
            "inside": is_graph,
            "crop": is_cropped(predictor),
            "image_size": size,
            "resampling": "bilinear, antialiased",
            "scale": 1 / 255,
            "mean": list(card.mean),
            "std": list(card.std),
        },
        "temperature": card.temperature,
        "topology": card.configuration.topology,
        "metrics": card.metrics,
        "data": {"name": card.data_name, "digest": card.data_digest},
        "weights_sha256": card.weights_sha256,
    }


def is_cropped(predictor: Predictor) -> bool:
    """Whether the model sees the centre square of an image; otherwise images are stretched."""
    return predictor.card.configuration.data.resize != "stretch"


def exported_program(predictor: Predictor) -> ExportedProgram:
    """The model as a `torch.export` program from uint8 images of any number and size; see `export_model`."""
    card = predictor.card
    graph = ServingGraph(
        predictor.model,
        image_size=card.task.image_size,
        mean=card.mean,
        std=card.std,
        crop=is_cropped(predictor),
        temperature=card.temperature,
    ).eval()
    # Sizes of the example must differ from one another, or torch.export would take them to be equal.
    example = torch.zeros(
        2, card.task.image_size + 3, card.task.image_size + 5, card.task.in_channels, dtype=torch.uint8
    )
    sizes = {0: Dim("N", min=1), 1: Dim("H", min=1), 2: Dim("W", min=1)}
    # Fused attention depends on the device.
    with torch.no_grad(), unfused_attention(), _without_auxiliary_heads(predictor.model):
        program = torch.export.export(graph, (example,), dynamic_shapes={INPUT_NAME: sizes})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_safetensors(predictor: Predictor, file: Path, facts: dict[str, Any]) -> None:
    with _without_auxiliary_heads(predictor.model) as model:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    file.write_bytes(save_tensors(weights, metadata=_as_text(facts)))


def _write_torch_export(predictor: Predictor, file: Path, facts: dict[str, Any]) -> None:
    torch.export.save(exported_program(predictor), file, extra_files={FACTS_FILE: json.dumps(facts)})


def _write_onnx(predictor: Predictor, file: Path, facts: dict[str, Any]) -> None:
    with _quiet_exporter():
        program = torch.onnx.export(
            exported_program(predictor),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # names in torch's graph, for debugging
    program.model.metadata_props.update(_as_text(facts))
    program.model.producer_name = "vitsearch"
    program.save(file, external_data=False)


@contextmanager
def _without_auxiliary_heads(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model lacks the classifiers of inner features, which only training computes."""
    heads = auxiliary_heads(model)
    if heads is not None:
        delattr(model, AUXILIARY)
    try:
        yield model
    finally:
        if heads is not None:
            model.add_module(AUXILIARY, heads)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide what torch's exporter says about itself: packages that it can do without, and calls that it will replace."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _as_text(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as metadata, whose values are text: JSON if they are not."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, and rename it once it is complete."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=file.parent) as folder:
        part = Path(folder) / file.name
        write(part)
        part.replace(file)


def _check_packages(export_format: ExportFormat) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if export_format is ExportFormat.onnx and missing:
        raise ExportError(
            f"the format onnx needs the packages onnx and onnxscript, but {' and '.join(missing)} cannot be imported. "
            "Install them with: pip install onnx onnxscript"
        )
