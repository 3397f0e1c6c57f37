"""The data that a step learns from: images, labels, random masks, and outputs of other networks.

Legend: `B` images of shape (C, S, S), `L` blocks.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.protocols import AttentionMixing, JointAugmentation, LossInput, Mixture, Now
from search_spaces.step_settings import StepSettings
from trainers.data.mapping import gather
from trainers.hardware.devices import at_least_float32, autocast
from trainers.models.blocks import draw_keep_factors
from trainers.training.companions import NO_OUTPUTS, Outputs, at_size
from trainers.training.created import created
from trainers.training.drawn_classes import draw_numbers
from trainers.training.evaluation import Normalizer
from trainers.training.memory import DrawnMasks
from trainers.training.row import Row

Item = TypeVar("Item")


class Step(NamedTuple):
    """Requests one optimizer step. The answer is its loss, a scalar tensor."""

    indices: Tensor
    """Indices into the training images, shape (B,), int64, on the device."""
    weights: Tensor | None
    """Weight of each image in the loss, shape (B,), on the device; `None` weights all equally."""
    settings: StepSettings
    now: Now
    augmentation_seed: int
    mixing: torch.Generator | None
    """CPU generator for mixing; `None` disables mixing."""
    drop_path: torch.Generator
    """CPU generator for the drop-path masks, shared by all steps of an epoch."""
    dropout_seed: int


class TrainingImages(NamedTuple):
    """The training part."""

    images: Tensor
    """uint8, shape (N, C, S, S); on the device, or on the CPU if it does not fit there."""
    labels: Tensor
    """Shape (N,), int64."""
    num_classes: int
    normalizer: Normalizer
    class_counts: Tensor
    """Number of images of each class, shape (classes,), float32."""
    digest: str
    """Identifies the images together with their number."""
    true_labels: Tensor | None = None
    """Labels before `data.label_noise`, shape (N,); `None` if there is none."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The data that one row learns from in one step."""

    row: Row
    step: Step
    images: Tensor
    """Normalised, shape (B, C, S, S)."""
    labels: Tensor
    """Shape (B,), int64."""
    targets: Tensor | None
    """Soft targets before label smoothing, shape (B, classes); `None` uses the labels."""
    weights: Tensor | None
    """Weight of each image, shape (B,)."""
    keep: DrawnMasks
    """Drop-path factors, shape (L, 2, B), or a generator if the model has no known blocks and draws them itself; `None`
    drops nothing."""
    class_counts: Tensor
    """Number of training images of each class, shape (classes,), float32."""
    outputs: Outputs = NO_OUTPUTS
    """Outputs of the networks beside the model that its loss reads."""
    member: int = 0
    """1 if the row is the second model of a training, otherwise 0."""
    mate: "Batch | None" = None
    """The batch of the second model, if both models of the training are computed together."""
    draws: Tensor | None = None
    """Uniform random numbers, shape (B,). If given, the loss is the cross-entropy with classes that they draw from the
    model's own predictions."""
    first: int = 0
    """Number of images of the step before these, if its gradient is computed in parts."""
    mixture: Mixture | None = None
    """What the images are made of, if their targets follow the attention of the model; `targets` are by the area."""


def step_key(row: Row, step: Step) -> Hashable:
    """Key of a step. Steps with equal keys can be computed together, with stacked weights."""
    settings = step.settings
    return (
        frozenset(settings.model_options.items()),
        settings.image_size,
        settings.dropout > 0,
        row.two_gradients is not None,
    )


def prepare(rows: Sequence[Row], steps: Sequence[Step], source: TrainingImages) -> list[Batch]:
    """The batches of steps with the same key. Their random numbers are drawn here, in one thread."""
    sizes = [len(step.indices) for step in steps]
    indices = torch.cat([step.indices for step in steps])
    pixels = at_size(source.normalizer.scale(gather(source.images, indices)), steps[0].settings.image_size)
    changed = _augment(torch.split(pixels, sizes), steps)
    labels = torch.split(source.labels[indices], sizes)
    mixed = [
        _mix(images, own, step, source.num_classes) for images, own, step in zip(changed, labels, steps, strict=True)
    ]
    images = torch.split(source.normalizer.normalize(torch.cat([one.images for one in mixed])), sizes)
    batches = [
        Batch(
            row=row,
            step=step,
            images=images[number],
            labels=labels[number],
            targets=mixed[number].targets,
            mixture=mixed[number].mixture,
            weights=_image_weights(step, labels[number]),
            keep=drop_path_factors(row, step, images[number]),
            class_counts=source.class_counts,
            outputs=_outputs(row, step, mixed[number].images, images[number], source),
        )
        for number, (row, step) in enumerate(zip(rows, steps, strict=True))
    ]
    return [
        replace(batch, mate=batch_of_second(batch, row.peer)) if row.peer is not None and _has_mate(row) else batch
        for batch, row in zip(batches, rows, strict=True)
    ]


def _has_mate(row: Row) -> bool:
    """Whether the loss reads the logits of the second model in the same forward pass."""
    return LossInput.MATE in created("losses", row.recipe.loss).inputs


def _outputs(row: Row, step: Step, pixels: Tensor, images: Tensor, source: TrainingImages) -> Outputs:
    """Outputs of the networks beside the row's model, from pixels on a scale of 0 to 1 and from normalised images."""
    found = NO_OUTPUTS
    if row.companions is not None:
        compute, digest = row.companions.outputs, source.digest

        def of_part(pixels: Tensor, images: Tensor, indices: Tensor) -> Outputs:
            return compute(pixels, images, indices, source.images, digest)

        found = row.ranks.spread(of_part, pixels, images, step.indices)
    if row.peer is None or _has_mate(row):
        return found
    return found._replace(peer=_evaluated_logits(row.peer, images))


@torch.no_grad()
def _evaluated_logits(row: Row, images: Tensor) -> Tensor:
    """Logits (B, classes) of a model as it is evaluated."""
    with row.evaluated() as model, autocast(images.device):
        logits: Tensor = row.ranks.spread(lambda part: at_least_float32(model.eval()(part)), images)
    return logits


def _augment(batches: Sequence[Tensor], steps: Sequence[Step]) -> list[Tensor]:
    """Augmented batches. Batches with the same augmentation are processed together."""
    changed = list(batches)
    members: dict[tuple[str, float], list[int]] = {}
    for number, step in enumerate(steps):
        settings = step.settings
        key = created("augmentations", settings.augmentation).key
        members.setdefault((key, settings.augmentation_strength), []).append(number)
    for (_, strength), numbers in members.items():
        choice = steps[numbers[0]].settings.augmentation
        chosen = created("augmentations", choice)
        seeds = [steps[number].augmentation_seed for number in numbers]
        if len(numbers) > 1 and chosen.offers(JointAugmentation):
            own = [batches[number] for number in numbers]
            results = chosen.plugin.augment_together(own, strength=strength, seeds=seeds)
        else:
            results = [
                chosen.plugin.augment(batches[number], strength=strength, seed=seed)
                for number, seed in zip(numbers, seeds, strict=True)
            ]
        for number, result in zip(numbers, results, strict=True):
            changed[number] = result
    return changed


class _Mixed(NamedTuple):
    images: Tensor
    targets: Tensor | None = None
    """Soft targets; `None` if the images were not mixed."""
    mixture: Mixture | None = None


def _mix(images: Tensor, labels: Tensor, step: Step, num_classes: int) -> _Mixed:
    """Mixed images and their targets."""
    if step.mixing is None or float(torch.rand((), generator=step.mixing)) >= step.settings.mixing_strength:
        return _Mixed(images)
    chosen = created("augmentations", step.settings.mixing)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    if chosen.offers(AttentionMixing) and chosen.plugin.reads_attention:
        mixed, mixture = chosen.plugin.mix_two(images, targets, generator=step.mixing)
        return _Mixed(mixed, mixture.targets(mixture.areas), mixture)
    return _Mixed(*chosen.plugin.mix(images, targets, generator=step.mixing))


def _image_weights(step: Step, labels: Tensor) -> Tensor | None:
    by_class = step.settings.class_weights
    if by_class is None:
        return step.weights
    weights = torch.tensor(by_class, device=labels.device)[labels]
    return weights if step.weights is None else weights * step.weights


def drop_path_factors(row: Row, step: Step, images: Tensor) -> Tensor | torch.Generator | None:
    """Drop-path factors of a step, with the device and dtype of the images."""
    rate = step.settings.drop_path
    if rate == 0.0:
        return None
    if row.num_blocks == 0:
        return step.drop_path
    factors = draw_keep_factors(row.num_blocks, len(images), rate=rate, generator=step.drop_path)
    return factors.to(images.device, images.dtype, non_blocking=True)


def peer_batch(batch: Batch, peer: Row) -> Batch:
    """The batch of the second model of a training, which learns from the first one after its step."""
    second = batch_of_second(batch, peer)
    return replace(second, outputs=batch.outputs._replace(peer=_evaluated_logits(batch.row, batch.images)))


def batch_of_second(batch: Batch, peer: Row) -> Batch:
    """The batch of the second model of a training: the same images, with other masks of dropout and drop path."""
    step = batch.step._replace(dropout_seed=batch.step.dropout_seed + 1)
    return replace(batch, row=peer, step=step, keep=drop_path_factors(peer, step, batch.images), member=1)


def with_drawn_classes(batch: Batch) -> Batch:
    draws = draw_numbers(batch.step.augmentation_seed, len(batch.labels))
    # A plain mean, also in parts.
    return replace(batch, draws=draws.to(batch.images.device), weights=None, mixture=None, mate=None)


def micro_batches_of(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """Cut a batch into at most `count` parts of about equal size.

    Returns:
        The parts, each with its share of the batch's loss: the batch's loss is the sum of theirs times these shares. A
        loss that compares images of a batch sees those of a part.
    """
    size = len(batch.labels)
    total = None if batch.weights is None else batch.weights.sum()
    found = []
    for places in chunks(range(size), -(-size // count)):
        part = images_of(batch, slice(places[0], places[-1] + 1))
        share = len(places) / size if part.weights is None or total is None else float(part.weights.sum() / total)
        found.append((part, share))
    return found


def images_of(batch: Batch, cut: slice) -> Batch:
    """The batch of some images of a batch, with the random numbers that they have in it."""
    changed = {name: _cut(getattr(batch, name), cut, len(batch.labels)) for name in _OF_IMAGES}
    keep = batch.keep[..., cut] if isinstance(batch.keep, Tensor) else batch.keep
    weights = None if batch.step.weights is None else batch.step.weights[cut]
    step = batch.step._replace(indices=batch.step.indices[cut], weights=weights)
    return replace(batch, **changed, keep=keep, step=step, first=batch.first + cut.start)


_OF_IMAGES = ("images", "labels", "targets", "weights", "draws", "outputs", "mixture")
"""Fields of a batch with an entry for each image: tensors, or tuples of tensors."""


def _cut(value: Any, cut: slice, size: int) -> Any:
    """The entries of some images; `size` is the number of all images."""
    if isinstance(value, Tensor):
        return value[cut] if value.ndim and len(value) == size else value
    if isinstance(value, tuple):
        parts = [_cut(one, cut, size) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return [_cut(one, cut, size) for one in value] if isinstance(value, list) else value


def stack_padded(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Stack tensors after padding each to the longest along `dim` with copies of its last slice."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    filled = []
    for tensor in tensors:
        missing = longest - tensor.shape[dim]
        if missing:
            last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
            tensor = torch.cat([tensor, *[last] * missing], dim)
        filled.append(tensor)
    return torch.stack(filled)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Split items into pieces of about equal length, at most `size`."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
