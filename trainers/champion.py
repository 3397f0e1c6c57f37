"""Trained models as self-contained folders: training, saving, loading and prediction."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from plugins.metrics.deciding import DecidingMetric
from plugins.metrics.names import RECORDED_METRICS
from plugins.protocols import Averager, StateDict
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration, TaskOutcome, TrainTask
from trainers.data.fitting import load_for_training
from trainers.data.given_images import GivenImages, name_images
from trainers.data.images import (
    ImageData,
    ImageSplit,
    load_test_images,
)
from trainers.data.labelled import LabelledImages, ModelInput, Part, load_labelled, names_of_test_images
from trainers.data.listing import DataError, Item, UnreadableError
from trainers.data.pixels import (
    FORMAT_SCALES,
    BrokenImageError,
    DeepImageError,
    decode,
    large_images,
    resize_decoded,
)
from trainers.hardware.devices import pick_device
from trainers.models.building import build_model, topology_costs
from trainers.results.calibration import fit_temperature
from trainers.results.measuring import report_on
from trainers.results.model_report import ModelReport
from trainers.storage.artifacts import fetched
from trainers.tasks.averaging import ValidationJudge, average_checkpoints
from trainers.training.checkpoints import WEIGHTS, CheckpointError, pack_tensors, read_tensors, sha256_of, write_folder
from trainers.training.evaluation import Evaluation, Normalizer, class_probabilities, evaluate, judge, logits_of
from trainers.training.loop import train
from trainers.training.reporting import Reporter
from trainers.weights.tensor_checks import expected_tensors, largest_file, tensor_problem
from trainers.yaml_source import OF_MODEL_CARDS, SpecError, read_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MODEL_FILE = "model.yaml"
_SHOWN_MISTAKES = 3


class ModelError(ValueError):
    """A folder does not contain a saved model, or the model is damaged."""


class ModelCard(BaseModel):
    """Description of the weights in a model folder: everything needed to use them or to train them again."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = 1
    configuration: Configuration
    task: ImageTask
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scales: dict[str, float] = {}
    """Values that mean white in images with more than 8 bits per channel; see `trainers.data.pixels`."""
    data_name: str
    data_digest: str
    metrics: dict[str, float]
    weights_sha256: str
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The logits are divided by it for probabilities; see `trainers.results.calibration`."""

    @model_validator(mode="after")
    def _values_fit_together(self) -> "ModelCard":
        channels, classes = self.task.in_channels, self.task.num_classes
        if channels not in (1, 3):
            raise ValueError(f"`task.in_channels` must be 1 (grey) or 3 (RGB), but is {channels}.")
        if len(self.class_names) != classes:
            raise ValueError(f"`class_names` must have {classes} names, but has {len(self.class_names)}.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(map(math.isfinite, values)):
                raise ValueError(f"`{name}` must have a finite number per channel ({channels}), but is {list(values)}.")
        for name, values in (("std", self.std), ("scales", tuple(self.scales.values()))):
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"`{name}` must have finite numbers above 0, but has {list(values)}.")
        return self


class Prediction(NamedTuple):
    """Prediction of a model for one image."""

    path: Path | None
    """The image's file; `None` if the image was not given as one."""
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    """The most probable classes, best first, with their probabilities."""


class Predictor:
    """A loaded model."""

    def __init__(self, card: ModelCard, model: nn.Module, device: torch.device) -> None:
        self.card = card
        self.model = model
        self._normalizer = Normalizer(card.mean, card.std, device)

    def predict(
        self, images: GivenImages, *, top: int = 3, problems: list[DataError] | None = None
    ) -> list[Prediction]:
        """The most probable classes of images, one prediction for each image, in their order.

        Every image is converted to the size and the number of channels that the model was trained on. If it is not
        square, it is cropped, or stretched if the training data were. Probabilities are calibrated: the model's logits
        are divided by the temperature that fits the validation part best, which changes no class.

        Args:
            images: One image, or several in a list or another iterable. An image is the path or the bytes of a file, a
                Pillow image, or an array of shape (H, W) or (H, W, C) and type uint8, whose 1, 3 or 4 channels are
                grey, RGB or RGBA. An array of shape (N, H, W, C) contains several images.
            top: How many classes each prediction lists.
            problems: Receives the problems of images that cannot be read. They have no prediction then.

        Raises:
            DataError: A file is missing, or something is not an image, and `problems` is not given; the message names
                it.
        """
        named, planes = [], []
        for one in name_images(images):
            try:
                planes.append(self._pixels(one.item))
            except DataError as error:
                if problems is None:
                    raise
                problems.append(error)
            else:
                named.append(one)
        if not named:
            return []
        pixels = torch.from_numpy(np.stack(planes))
        batches, temperature = logits_of(self.model, pixels, self._normalizer), self.card.temperature
        probabilities = [row for logits in batches for row in class_probabilities(logits, temperature)]
        return [self._prediction(one.path, row, top) for one, row in zip(named, probabilities, strict=True)]

    def evaluate(self, split: ImageSplit) -> Evaluation:
        """Loss and accuracy on labelled images."""
        return evaluate(self.model, split, self._normalizer)

    def evaluate_on(
        self, source: str | os.PathLike[str] | None = None, *, part: Part | None = None, skip_broken: bool = False
    ) -> ModelReport:
        """Metrics with intervals, classes, calibration and mistakes on labelled images.

        Args:
            source: A folder, parquet file or table of labels, in any form that `vitsearch data` reads. Default: the
                source that the model was trained on. Classes are matched by name.
            part: `test`, `validation`, `train` or `all`. Default: the test part, if the source has one or is that of
                the training; otherwise all images.
            skip_broken: Whether images that cannot be read are left out, and counted in the report's `notes`.

        Raises:
            DataError: The images cannot be used, or the model knows none of their classes.
        """
        return self.report_on(self.load_labelled(source, part=part, skip_broken=skip_broken))

    def load_labelled(
        self, source: str | os.PathLike[str] | None = None, *, part: Part | None = None, skip_broken: bool = False
    ) -> LabelledImages:
        """Labelled images as the model sees them. Arguments and errors are those of `evaluate_on`."""
        card = self.card
        data = card.configuration.data
        known = ModelInput(
            data=data.model_copy(update={"skip_broken": data.skip_broken or skip_broken}),
            data_digest=card.data_digest,
            task=card.task,
            class_names=card.class_names,
            scales=card.scales,
            trained_on=tuple(card.configuration.train_on.split("+")),
        )
        return load_labelled(None if source is None else os.fspath(source), known, part=part)

    def report_on(self, images: LabelledImages) -> ModelReport:
        """The report on labelled images."""
        report = _report(
            self.model,
            images.split,
            self._normalizer,
            part=images.part,
            class_names=self.card.class_names,
            temperature=self.card.temperature,
            metric=self.card.configuration.metric,
            names_of=None if images.names is None else images.names.of,
        )
        return report.model_copy(update={"source": images.source, "notes": images.notes})

    def _pixels(self, item: Item) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        data, size = self.card.configuration.data, self.card.task.image_size
        scales = {**FORMAT_SCALES, **self.card.scales}
        try:
            with large_images():
                decoded = decode(item, scales=scales, background=data.background, side=size)
        except BrokenImageError as error:
            raise UnreadableError({item.name: str(error)}, remedy=None) from error
        except DeepImageError as error:
            raise DataError(
                f"{item.name} must have 8 or 16 bits per channel, because the training images had, but its mode is "
                f"{error.extent.mode}. Convert it."
            ) from error
        image = decoded.image.convert("L" if self.card.task.in_channels == 1 else "RGB")
        return resize_decoded(decoded._replace(image=image), size, crop=data.resize != "stretch")

    def _prediction(self, path: Path | None, probabilities: Tensor, top: int) -> Prediction:
        best = probabilities.cpu().topk(min(top, len(self.card.class_names)))
        ranked = tuple(
            (self.card.class_names[index], probability)
            for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        return Prediction(path, *ranked[0], ranked)


def train_configuration(
    configuration: Configuration, folder: Path, reporter: Reporter, *, data: ImageData | None = None
) -> tuple[TaskOutcome, dict[str, Tensor] | None]:
    """Train a configuration and average its checkpoints. The same configuration gives the same weights.

    Args:
        configuration: The configuration to train.
        folder: Folder of its checkpoints; training continues from the newest one.
        reporter: Called after each epoch.
        data: Data of the configuration, if already loaded.

    Returns:
        The outcome of the training, and the weights (`None` if it failed or was interrupted).

    Raises:
        DataError: The data cannot be used.
        ValueError: Training stopped with fewer checkpoints than the averaging method needs.
    """
    averager: Averager = create("averaging", configuration.averaging.name, configuration.averaging.settings)
    task = TrainTask(configuration=configuration, folder=folder, keep_checkpoints=averager.num_needed)
    images, device = data or load_for_training(configuration), pick_device()
    outcome = train(task, images, reporter, device)
    if outcome.state not in ("complete", "stopped"):
        return outcome, None
    judge = ValidationJudge(configuration, images, device)
    weights, _ = average_checkpoints(configuration.averaging, [record.path for record in outcome.checkpoints], judge)
    return outcome, weights


def save_model(
    folder: Path,
    weights: StateDict,
    *,
    configuration: Configuration,
    data: ImageData,
    metrics: Mapping[str, float],
    temperature: float = 1.0,
) -> ModelCard:
    """Write a model folder with `model.safetensors` and `model.yaml` atomically. An older model is replaced.

    Raises:
        ModelError: The folder exists and does not contain a model.
    """
    if folder.exists() and not (fetched(folder) / MODEL_FILE).is_file():
        raise ModelError(
            f"a model folder must be new or contain an older model, but {folder} exists and has no {MODEL_FILE}. "
            "Choose another name."
        )
    content = pack_tensors(weights)
    named = {"weights": configuration.weights, "teacher": configuration.teacher}
    # The copies of their files belong to the training, not to the model.
    without_files = {name: one and one.model_copy(update={"file": None}) for name, one in named.items()}
    card = ModelCard(
        configuration=configuration.model_copy(update=without_files),
        task=data.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        scales=dict(data.scales),
        data_name=data.name,
        data_digest=data.digest,
        metrics=dict(metrics),
        weights_sha256=sha256_of(content),
        temperature=temperature,
    )
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_folder(folder, {WEIGHTS: content, MODEL_FILE: text.encode()})
    return card


class FinishedModel(NamedTuple):
    """A model that was tested and saved."""

    metrics: dict[str, float]
    """`test_accuracy`, `test_loss`, `val_accuracy`, `val_loss`, `parameters` and `macs`; also in the model's card. The
    validation metrics are missing if the model was trained on the validation part."""
    report: ModelReport
    """What the model does on the test part."""
    test: ImageSplit
    """The test part."""


def finish_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    configuration: Configuration,
    data: ImageData,
    *,
    temperature: float | None = None,
) -> FinishedModel:
    """Test trained weights once, and save them as a model folder.

    Args:
        folder: The model's folder.
        weights: State dict.
        configuration: How they were trained.
        data: Data of the configuration.
        temperature: The model's temperature. Default: fitted on the validation part, or 1 if the model was trained on
            it.
    """
    device = pick_device()
    model = build_model(configuration.topology, data.task, seed=0, device=device)
    model.load_state_dict(weights)
    normalizer = Normalizer(data.mean, data.std, device)
    measured: dict[str, float] = {}
    if configuration.train_on == "train":
        logits = _all_logits(model, data.validation, normalizer)
        validation = judge(logits, data.validation.labels)
        measured = {"val_accuracy": validation.accuracy, "val_loss": validation.loss}
        temperature = temperature or fit_temperature(logits, data.validation.labels)
    temperature = temperature or 1.0
    test = load_test_images(configuration.data)
    names = names_of_test_images(configuration.data, test)
    report = _report(
        model,
        test,
        normalizer,
        part="test",
        class_names=data.class_names,
        temperature=temperature,
        metric=configuration.metric,
        names_of=None if names is None else names.of,
    )
    costs = topology_costs(configuration.topology, data.task)
    metrics = {
        "test_accuracy": report.metrics["accuracy"].value,
        "test_loss": report.metrics["loss"].value,
        **measured,
        "parameters": float(costs.parameters),
        "macs": float(costs.macs),
    }
    save_model(folder, weights, configuration=configuration, data=data, metrics=metrics, temperature=temperature)
    return FinishedModel(metrics, report, test)


def temperature_of(weights: Mapping[str, Tensor], configuration: Configuration, data: ImageData) -> float:
    """The temperature of trained weights, fitted on the validation part."""
    device = pick_device()
    model = build_model(configuration.topology, data.task, seed=0, device=device)
    model.load_state_dict(weights)
    logits = _all_logits(model, data.validation, Normalizer(data.mean, data.std, device))
    return fit_temperature(logits, data.validation.labels)


def _all_logits(model: nn.Module, split: ImageSplit, normalizer: Normalizer) -> Tensor:
    """Logits (N, C) on the CPU."""
    return torch.cat([logits.cpu() for logits in logits_of(model, split.images, normalizer)])


def _report(
    model: nn.Module,
    split: ImageSplit,
    normalizer: Normalizer,
    *,
    part: str,
    class_names: Sequence[str],
    temperature: float,
    metric: PluginChoice,
    names_of: Callable[[Sequence[int]], Sequence[str]] | None = None,
) -> ModelReport:
    measures = {name: create("metrics", name).measure for name in RECORDED_METRICS}
    measures[metric.name] = create("metrics", metric.name, metric.settings).measure
    return report_on(
        _all_logits(model, split, normalizer),
        split.labels,
        part=part,
        class_names=class_names,
        measures=measures,
        temperature=temperature,
        metric=DecidingMetric.of(metric),
        names_of=names_of,
    )


def load_model(folder: Path, *, device: torch.device | None = None) -> Predictor:
    """Load a model that `save_model` wrote.

    Args:
        folder: The model's folder.
        device: Device of the model; by default the result of `pick_device`.

    Raises:
        ModelError: The folder is missing or does not contain a model, or its files are damaged.
        ValueError: The plug-in of the search space is not installed.
    """
    device = device or pick_device()
    card = read_card(folder)
    topology = card.configuration.topology
    try:
        expected = expected_tensors(topology, card.task)
    except ValueError as error:
        raise ModelError(f"{folder / MODEL_FILE} must describe a model, but: {error} Save the model again.") from error
    try:
        weights = read_tensors(folder / WEIGHTS, card.weights_sha256, max_bytes=largest_file(expected))
    except CheckpointError as error:
        raise ModelError(f"{error} Use the folder that the model was saved to, or save it again.") from error
    problem = tensor_problem(weights, expected)
    if problem is not None:
        raise ModelError(
            f"{folder / WEIGHTS} must have the weights of the model in {MODEL_FILE}, but: {problem}. Save the model "
            "again."
        )
    model = build_model(topology, card.task, seed=0, device=device)
    model.load_state_dict(weights)
    return Predictor(card, model.eval(), device)


def read_card(folder: Path) -> ModelCard:
    """Read the description in a model's folder. Its values are checked, its weights are not.

    Raises:
        ModelError: The folder does not contain a description, or it is damaged.
    """
    file = fetched(folder) / MODEL_FILE
    if not folder.is_dir() or not file.exists():
        raise ModelError(
            f"{folder} must be a model's folder with {MODEL_FILE} and {WEIGHTS}, but "
            f"{f'{MODEL_FILE} does not exist' if folder.is_dir() else 'it does not exist'}. "
            "Use the folder that the champion was saved to."
        )
    try:
        return ModelCard.model_validate(read_yaml(file, limits=OF_MODEL_CARDS, version="1.1").data)
    except SpecError as error:
        where = "" if error.line is None else f"line {error.line}: "
        raise ModelError(
            f"{file} must describe a model, but: {where}{f'{error.path}: ' if error.path else ''}{error.message} Use "
            "another model, or save it again."
        ) from error
    except ValidationError as error:
        found = "; ".join(_mistake(one) for one in error.errors()[:_SHOWN_MISTAKES])
        raise ModelError(f"{file} must describe a model, but: {found}. Save the model again.") from error


def _mistake(error: "ErrorDetails") -> str:
    where = ".".join(map(str, error["loc"]))
    what = error["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {what}" if where else what
