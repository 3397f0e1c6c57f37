"""Frozen networks beside a model in training, whose outputs its loss reads: a teacher, its first weights, a guide.

Legend: `B` images of the step, `N` training images.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import LossInput, attends_to_image, is_block
from plugins.registry import load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from trainers.config import Configuration, InitialWeights
from trainers.data.images import ImageData
from trainers.data.mapping import batches
from trainers.hardware.devices import autocast
from trainers.models.auxiliary_heads import AUXILIARY, auxiliary_heads
from trainers.models.building import build_model, space_of, topology_costs
from trainers.training.evaluation import Normalizer
from trainers.training.loss_needs import guide_of, inputs_of, missing_teacher
from trainers.training.methods import Methods
from trainers.weights.errors import WeightsError
from trainers.weights.prepared import read_prepared

logger = logging.getLogger(__name__)

_PIXELS_PER_BATCH = 1 << 19
_CHANGING_FIELDS = frozenset({"augmentation", "augmentation_strength", "mixing", "mixing_strength", "image_size"})
"""Settings of a step that change the pixels of its images."""


class Outputs(NamedTuple):
    """Outputs of the companions for the images of a step, without gradient."""

    teacher: Tensor | None = None
    """Shape (B, classes)."""
    start: Tensor | None = None
    """Shape (B, classes)."""
    guide_layers: tuple[Tensor, ...] = ()
    """One per block of the guide, shape (B, width)."""
    peer: Tensor | None = None
    """Logits of the second model in training, shape (B, classes)."""


NO_OUTPUTS = Outputs()


def has_fixed_images(recipe: Recipe) -> bool:
    """Whether each visit of a training image shows the same pixels, so that a teacher need see it only once."""
    changed = Methods.of(recipe.curriculum).changes & _CHANGING_FIELDS
    return (
        recipe.augmentation.name == "none"
        and recipe.mixing.name == "none"
        and recipe.image_size is None
        and not changed
    )


# --- the teacher ---


class Teacher:
    """A trained model whose predictions another one learns.

    Args:
        model: The model, in evaluation mode.
        normalizer: That of its training data.
        order: Columns of its logits, in the order of the classes to learn.
        image_size: Height and width of its input; other images are resized.
    """

    def __init__(self, model: nn.Module, normalizer: Normalizer, order: Tensor, image_size: int) -> None:
        self._model = model
        self._normalizer = normalizer
        self._order = order
        self._image_size = image_size
        self._tables: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes), float32, of pixels (B, C, S, S) on a scale of 0 to 1."""
        images = self._normalizer.normalize(at_size(pixels, self._image_size))
        with autocast(images.device):
            logits: Tensor = self._model(images)
        return logits.float()[:, self._order]

    def table(self, images: Tensor, digest: str) -> Tensor:
        """Logits (N, classes) of all training images, computed once for each data set.

        Args:
            images: uint8, shape (N, C, S, S), on any device.
            digest: Identifies the images.
        """
        key = (digest, len(images))
        if key not in self._tables:
            size = max(1, _PIXELS_PER_BATCH // images.shape[-1] ** 2)
            scaled = (self._normalizer.scale(batch.to(self._order.device)) for batch in batches(images, size))
            self._tables = {key: torch.cat([self.logits(pixels) for pixels in scaled])}
        return self._tables[key]


@lru_cache(maxsize=2)
def load_teacher(
    weights: InitialWeights, class_names: tuple[str, ...], in_channels: int, device: torch.device
) -> Teacher:
    """The teacher that a configuration names; the two most recent ones are cached.

    Args:
        weights: Its weights, prepared (`trainers.weights.prepared`).
        class_names: The classes to learn.
        in_channels: Channels of the images.
        device: Device of the model.

    Raises:
        WeightsError: They cannot be read, belong to no known model, or the model does not know the classes or channels.
    """
    source = read_prepared(weights)
    problem = teacher_problem(source.topology, source.task, source.class_names, source.mean, class_names, in_channels)
    if problem is not None:
        raise WeightsError(f"teacher {weights.source}: {problem}")
    assert source.topology is not None
    assert source.task is not None
    model = build_model(source.topology, source.task, seed=0, device=device)
    if auxiliary_heads(model) is not None:  # only training computes them, and exported files lack them
        delattr(model, AUXILIARY)
    used = {name: value for name, value in source.tensors.items() if not name.startswith(f"{AUXILIARY}.")}
    model.load_state_dict(used)
    order = torch.tensor([source.class_names.index(name) for name in class_names], device=device)
    normalizer = Normalizer(source.mean, source.std, device)
    return Teacher(model.eval().requires_grad_(requires_grad=False), normalizer, order, source.task.image_size)


def teacher_problem(
    topology: str | None,
    task: ImageTask | None,
    known: Sequence[str],
    mean: Sequence[float],
    class_names: Sequence[str],
    in_channels: int,
) -> str | None:
    """Why a model cannot teach these classes, or `None` if it can.

    Args:
        topology: Its topology; `None` if unknown.
        task: Its task; `None` if unknown.
        known: Its classes.
        mean: Mean of its training pixels; empty if unknown.
        class_names: The classes to learn.
        in_channels: Channels of the images.
    """
    if topology is None or task is None or not mean:
        return (
            "must be a whole model, but only weights were found: topology, classes or normalisation are unknown. Name "
            "a model folder or STUDY@champion."
        )
    missing = [name for name in class_names if name not in known]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        return (
            f"must know all {len(class_names)} classes of the data, but lacks {shown}. Name a model that was trained "
            "on these classes."
        )
    if task.in_channels != in_channels:
        return (
            f"must see images with {in_channels} channels, as the data have, but sees {task.in_channels}. Name a model "
            "that was trained on such images."
        )
    return None


# --- all companions of a training ---


class Companions:
    """The frozen networks of one training.

    Args:
        teacher: The teacher.
        start: A copy of the model with its first weights.
        guide: The untrained network.
        has_fixed_images: See `has_fixed_images`.
    """

    def __init__(
        self, *, teacher: Teacher | None, start: nn.Module | None, guide: nn.Module | None, has_fixed_images: bool
    ) -> None:
        self._teacher = teacher
        self._start = start
        self._guide = guide
        self._has_fixed_images = has_fixed_images

    @torch.no_grad()
    def outputs(self, pixels: Tensor, images: Tensor, indices: Tensor, training: Tensor, digest: str) -> Outputs:
        """What the loss reads of a step.

        Args:
            pixels: The images of the step on a scale of 0 to 1, shape (B, C, S, S).
            images: The same, normalised for the model.
            indices: Their positions in the training part, shape (B,).
            training: All training images, uint8, shape (N, C, S, S).
            digest: Identifies the training images.
        """
        teacher = start = None
        layers: tuple[Tensor, ...] = ()
        if self._teacher is not None and self._has_fixed_images:
            teacher = self._teacher.table(training, digest)[indices]
        elif self._teacher is not None:
            teacher = self._teacher.logits(pixels)
        with autocast(images.device):
            if self._start is not None:
                start = self._start(images).float()
            if self._guide is not None:
                with watched_layers(self._guide) as seen:
                    self._guide(images)
                layers = tuple(layer.float() for layer in seen)
        return Outputs(teacher, start, layers)


def make_companions(
    configuration: Configuration, data: ImageData, model: nn.Module, device: torch.device
) -> Companions | None:
    """The networks that the loss of a configuration reads; `None` if it reads none.

    Args:
        configuration: The configuration to train.
        data: Its images.
        model: The model with its first weights, which is not changed.
        device: Device of the training.

    Raises:
        ValueError: The loss needs a teacher, blocks or a guide, and there is none that fits.
    """
    inputs = inputs_of(configuration.recipe.loss)
    if not inputs - {LossInput.PEER, LossInput.MATE}:
        return None
    teacher = start = guide = None
    if LossInput.TEACHER in inputs:
        if configuration.teacher is None:
            raise ValueError(missing_teacher(configuration.recipe.loss))
        teacher = load_teacher(configuration.teacher, data.class_names, data.task.in_channels, device)
    if LossInput.START in inputs:
        start = build_model(configuration.topology, data.task, seed=configuration.seed, device=device)
        start.load_state_dict(model.state_dict())
        start.eval().requires_grad_(requires_grad=False)
    if LossInput.LAYERS in inputs:
        guide = _make_guide(configuration, data.task, model, device)
    return Companions(
        teacher=teacher, start=start, guide=guide, has_fixed_images=has_fixed_images(configuration.recipe)
    )


def _make_guide(configuration: Configuration, task: ImageTask, model: nn.Module, device: torch.device) -> nn.Module:
    loss = configuration.recipe.loss
    topology, seed = guide_of(configuration)
    try:
        parsed = parse_topology(topology)
    except ValueError as error:
        raise ValueError(
            f"the guide {topology} of recipe.loss `{loss.name}` must be a topology, but: {error}"
        ) from error
    problem = load("spaces", space_of(topology)).problem(parsed, task)
    if problem is not None:
        raise ValueError(
            f"the guide {topology} of recipe.loss `{loss.name}` must fit the images of the data, but {problem}. Name "
            "another topology in `guide`."
        )
    guide = build_model(topology, task, seed=seed, device=device).eval().requires_grad_(requires_grad=False)
    for network in (model, guide):
        if not any(is_block(module) for module in network.modules()):
            raise ValueError(
                f"recipe.loss `{loss.name}` needs models with blocks (`plugins.protocols.TransformerBlock`), but "
                f"{type(network).__name__} has none. Choose another loss or another guide."
            )
    return guide


# --- costs ---


def macs_per_visit(configuration: Configuration, task: ImageTask, image_size: int) -> int:
    """Multiply-accumulates of the companions for one image of a step."""
    inputs = inputs_of(configuration.recipe.loss)
    resized = task.model_copy(update={"image_size": image_size})
    total = 0
    if LossInput.TEACHER in inputs and not has_fixed_images(configuration.recipe):
        total += _teacher_macs(configuration)
    if LossInput.START in inputs:
        total += topology_costs(configuration.topology, resized).macs
    if LossInput.LAYERS in inputs:
        total += topology_costs(guide_of(configuration)[0], resized).macs
    if LossInput.PEER in inputs:  # each of the two models is evaluated for the other
        total += 2 * topology_costs(configuration.topology, resized).macs
    return total


def macs_of_table(configuration: Configuration, num_images: int) -> int:
    """Multiply-accumulates of the teacher for its table of all training images; 0 if it has none.

    Each training counts them, although the trainings of a process share the table.
    """
    has_table = LossInput.TEACHER in inputs_of(configuration.recipe.loss) and has_fixed_images(configuration.recipe)
    return num_images * _teacher_macs(configuration) if has_table else 0


def _teacher_macs(configuration: Configuration) -> int:
    if configuration.teacher is None:
        return 0
    source = read_prepared(configuration.teacher)
    if source.topology is None or source.task is None:
        return 0
    return topology_costs(source.topology, source.task).macs


# --- images and layers ---


def at_size(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, C, S, S), resized if `S` differs from `size`."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


@contextmanager
def watched_layers(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the output of each block, averaged over its tokens, shape (B, width), in forward passes inside."""
    seen: list[Tensor] = []
    blocks = [cast("nn.Module", module) for module in model.modules() if is_block(module)]
    handles = [block.register_forward_hook(partial(_keep_mean, seen)) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention of the last block to parts of the image, (B, rows, columns), in forward passes inside."""
    seen: list[Tensor] = []
    last = [module for module in model.modules() if is_block(module)][-1]
    assert attends_to_image(model), "checked when the training began"
    read = model.image_attention

    @torch.no_grad()
    def keep(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        seen.append(read(*inputs))
        if seen[-1][0].numel() == 1:
            say_there_is_one_part()

    handle = last.attn.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@cache
def say_there_is_one_part() -> None:
    """Log, once per process, that attention to parts of an image says nothing."""
    logger.warning(
        "The last block of the model sees each image as one token, so that labels by attention are those by the area. "
        "Larger images have more tokens."
    )


def _keep_mean(seen: list[Tensor], _module: nn.Module, _inputs: object, output: Tensor) -> None:
    seen.append(output.flatten(1, -2).mean(1))
