"""Exported models compute what `Predictor` computes, in each format and search space."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from plugins.registry import available
from search_spaces.base import ImageTask
from search_spaces.options import NO_OPTIONS, BlockOptions
from tests.contracts.test_models import build, small
from tests.unit.training import CPU, configuration
from trainers.champion import ModelCard, Predictor
from trainers.config import DataConfig
from trainers.data.pixels import resize_image
from trainers.export_formats import ExportFormat
from trainers.exporting import FACTS_FILE, ExportError, describe_export, export_model
from trainers.serving import resize_pixels

TOLERANCE = 1e-4
CLASSES = ("ant", "bee & co", "çicada", "d", "e")


def predictor_of(
    space: str, *, channels: int = 3, resize: str = "crop", options: BlockOptions = NO_OPTIONS
) -> Predictor:
    """A model with random weights that are large enough for its predictions to differ between images."""
    task = ImageTask(image_size=32, in_channels=channels, num_classes=len(CLASSES))
    topology = small(space).model_copy(update={"options": options})
    model = build(topology, task)
    for weight in model.parameters():
        weight.data.mul_(3)
    data = DataConfig(source="somewhere", image_size=32, resize=resize)
    card = ModelCard(
        configuration=configuration().model_copy(update={"topology": topology.id, "data": data}),
        task=task,
        class_names=CLASSES,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        data_name="somewhere",
        data_digest="0" * 64,
        metrics={"val_accuracy": 0.5},
        temperature=1.7,
        weights_sha256="0" * 64,
    )
    return Predictor(card, model.eval(), CPU)


def photos(count: int, height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    """Smooth pictures with noise, (N, H, W, C), uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 3, 3, channels), dtype=np.uint8)
    smooth = [
        np.stack(
            [np.asarray(Image.fromarray(one[:, :, c]).resize((width, height), Image.BICUBIC)) for c in range(channels)],
            -1,
        )
        for one in coarse
    ]
    return (np.stack(smooth) // 2 + rng.integers(0, 128, (count, height, width, channels), dtype=np.uint8)).astype(
        np.uint8
    )


def probabilities_of(predictor: Predictor, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities (N, classes) as `Predictor` computes them."""
    found = [dict(one.top) for one in predictor.predict(images, top=len(CLASSES))]
    return np.array([[row[name] for name in CLASSES] for row in found])


def run_torch_export(file: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    probabilities, _ = torch.export.load(file).module()(torch.from_numpy(images))
    return probabilities.detach().numpy()


def run_onnx(file: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install onnxruntime)")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probabilities, logits = session.run(["probabilities", "logits"], {"images": images})
    assert logits.shape == probabilities.shape
    return probabilities


RUN = {ExportFormat.torch_export: run_torch_export, ExportFormat.onnx: run_onnx}


MANY = BlockOptions(qk_norm=True, layer_scale=True, grn=True)
GRAPHS = [
    (ExportFormat.torch_export, "as-vit", MANY),
    # A file in ONNX is made from the graph of torch.export.
    (ExportFormat.onnx, "as-vit", MANY),
    (ExportFormat.onnx, "autoformer", MANY.model_copy(update={"sigmoid_attention": True, "merged_tokens": 1})),
    (ExportFormat.onnx, "pit", NO_OPTIONS),
]


Export = Callable[[ExportFormat, str, BlockOptions], tuple[Predictor, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a model, once for all tests."""

    @cache
    def export(export_format: ExportFormat, space: str, options: BlockOptions) -> tuple[Predictor, Path]:
        predictor = predictor_of(space, options=options)
        file = tmp_path_factory.mktemp("exported") / f"model{export_format.suffix}"
        return predictor, export_model(predictor, file, export_format)[0]

    return export


def test_every_space_is_exported() -> None:
    assert {space for _, space, _ in GRAPHS} == set(available("spaces"))


@pytest.mark.parametrize(
    ("export_format", "space", "options"),
    [
        pytest.param(
            made,
            space,
            options,
            id=f"{made.value} {space}",
            marks=pytest.mark.slow if made is ExportFormat.onnx and space != "pit" else (),
        )
        for made, space, options in GRAPHS
    ],
)
def test_an_exported_graph_predicts_images_of_any_number_and_size(
    export_format: ExportFormat, space: str, options: BlockOptions, exported: Export
) -> None:
    predictor, file = exported(export_format, space, options)
    for count, height, width in [(3, 32, 32), (1, 32, 32), (2, 90, 50), (1, 20, 41)]:
        images = photos(count, height, width)
        expected = probabilities_of(predictor, images)
        assert expected.std(0).max() > 10 * TOLERANCE or count == 1
        assert np.abs(RUN[export_format](file, images) - expected).max() < TOLERANCE


def test_a_grey_model_that_stretches_images_is_exported_alike(tmp_path: Path) -> None:
    predictor = predictor_of("pit", channels=1, resize="stretch")
    file, _ = export_model(predictor, tmp_path / "model.pt2", ExportFormat.torch_export)
    for height, width in [(40, 70), (120, 50)]:
        images = photos(2, height, width, channels=1)
        assert np.abs(run_torch_export(file, images) - probabilities_of(predictor, images)).max() < TOLERANCE


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (64, 64), (33, 31), (7, 5), (300, 200), (300, 90), (1, 1), (1000, 37)]
)
def test_resizing_gives_the_pixels_of_pillow(height: int, width: int, crop: bool) -> None:
    (image,) = photos(1, height, width)
    expected = resize_image(Image.fromarray(image), 32, crop=crop)
    given = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    found = resize_pixels(given, 32, crop=crop)[0].numpy()
    assert np.array_equal(found, expected)


def test_weights_are_exported_with_all_that_is_needed_to_use_them(tmp_path: Path) -> None:
    predictor = predictor_of("pit")
    file, described = export_model(predictor, tmp_path / "model.safetensors", ExportFormat.safetensors)
    facts = json.loads(described.read_text())
    assert facts == describe_export(predictor, ExportFormat.safetensors)
    state = predictor.model.state_dict()
    with safe_open(file, "pt") as content:
        assert json.loads(content.metadata()["class_names"]) == list(CLASSES)
        assert content.metadata()["topology"] == predictor.card.configuration.topology
        weights: dict[str, Tensor] = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert facts["input"]["shape"] == ["N", 3, 32, 32]
    assert facts["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert not facts["preprocessing"]["inside"]


def test_classes_are_in_the_file_and_beside_it(exported: Export) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install onnx onnxscript)")
    _, file = exported(ExportFormat.onnx, "pit", NO_OPTIONS)
    described = file.with_name("model.onnx.json")
    assert json.loads(described.read_text())["class_names"] == list(CLASSES)
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(metadata["class_names"]) == list(CLASSES)
    _, file = exported(ExportFormat.torch_export, "as-vit", MANY)
    assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()
    extra = {FACTS_FILE: ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra[FACTS_FILE])["class_names"] == list(CLASSES)


def test_existing_files_are_kept_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    predictor, file = predictor_of("as-vit"), tmp_path / "model.safetensors"
    export_model(predictor, file, ExportFormat.safetensors)
    file.with_name("model.safetensors.json").write_text("mine")
    with pytest.raises(ExportError, match=r"must be new, but .*model\.safetensors exists.*--overwrite"):
        export_model(predictor, file, ExportFormat.safetensors)
    file.unlink()
    with pytest.raises(ExportError, match=r"model\.safetensors\.json exists"):
        export_model(predictor, file, ExportFormat.safetensors)
    assert not file.exists()
    export_model(predictor, file, ExportFormat.safetensors, overwrite=True)
    assert json.loads(file.with_name("model.safetensors.json").read_text())["class_names"] == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "model.safetensors.json"]


@pytest.mark.parametrize("folder", [".", "/"])
def test_a_folder_is_no_file_to_export_to(folder: str) -> None:
    with pytest.raises(ExportError, match=r"is a folder\. Name a file with --out"):
        export_model(predictor_of("as-vit"), Path(folder), ExportFormat.safetensors, overwrite=True)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.exporting.importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ExportError, match=r"onnx cannot be imported.*pip install onnx onnxscript"):
        export_model(predictor_of("as-vit"), tmp_path / "model.onnx", ExportFormat.onnx)
    assert list(tmp_path.iterdir()) == []
