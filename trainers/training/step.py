"""The optimizer step, for a single model and for several models of one topology together.

Legend: `K` models of `P` numbers, `B` images of shape (C, S, S), `L` blocks.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from plugins.protocols import (
    AttentionMixing,
    Augmentation,
    JointAugmentation,
    LabelLoss,
    Loss,
    LossContext,
    LossInput,
    Mixing,
    Mixture,
    Now,
    StackedLabelLoss,
    StatefulLoss,
    loss_inputs,
)
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from search_spaces.step_settings import StepSettings
from trainers.data.mapping import gather
from trainers.hardware.devices import autocast
from trainers.models.auxiliary_heads import auxiliary_heads
from trainers.models.blocks import draw_keep_factors, unfused_attention
from trainers.models.dropout import Dropout, DropoutOfPart
from trainers.training.companions import NO_OUTPUTS, Outputs, at_size, watched_attention, watched_layers
from trainers.training.drawn_classes import cross_entropy_of_drawn, draw_numbers
from trainers.training.evaluation import Normalizer
from trainers.training.failures import free_memory
from trainers.training.memory import DrawnMasks, can_be_halved, draw_again, halve, state_of_draws
from trainers.training.row import Row

AUXILIARY_WEIGHT = 0.3
"""Weight of the loss of each auxiliary head of a model with deep supervision.

Source: Szegedy et al. 2015, arXiv:1409.4842, section 5.
"""

Item = TypeVar("Item")

# On a CPU, torch's fused attention processes stacked models one by one, which is as fast as without stacking.
warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product_flash_attention_for_cpu")


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


# --- batches ---


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
        replace(batch, mate=_batch_of_second(batch, row.peer)) if row.peer is not None and _has_mate(row) else batch
        for batch, row in zip(batches, rows, strict=True)
    ]


def _has_mate(row: Row) -> bool:
    """Whether the loss reads the logits of the second model in the same forward pass."""
    return LossInput.MATE in loss_inputs(_plugin("losses", row.recipe.loss).plugin)


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
        key = _plugin("augmentations", settings.augmentation).key
        members.setdefault((key, settings.augmentation_strength), []).append(number)
    for (_, strength), numbers in members.items():
        choice = steps[numbers[0]].settings.augmentation
        plugin: Augmentation = _plugin("augmentations", choice).plugin
        seeds = [steps[number].augmentation_seed for number in numbers]
        if len(numbers) > 1 and isinstance(plugin, JointAugmentation):
            results = plugin.augment_together([batches[number] for number in numbers], strength=strength, seeds=seeds)
        else:
            results = [
                plugin.augment(batches[number], strength=strength, seed=seed)
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
    plugin: Mixing = _plugin("augmentations", step.settings.mixing).plugin
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    if isinstance(plugin, AttentionMixing) and plugin.reads_attention:
        mixed, mixture = plugin.mix_two(images, targets, generator=step.mixing)
        return _Mixed(mixed, mixture.targets(mixture.areas), mixture)
    return _Mixed(*plugin.mix(images, targets, generator=step.mixing))


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


class _Created(NamedTuple):
    choice: PluginChoice
    key: str
    """Equal for equal choices."""
    plugin: Any


_plugins: dict[int, _Created] = {}


def _plugin(kind: str, choice: PluginChoice) -> _Created:
    """The plug-in of a choice, created once. All steps of a training share the choice object."""
    known = _plugins.get(id(choice))
    if known is None or known.choice is not choice:
        if len(_plugins) >= 1024:
            _plugins.clear()
        known = _plugins[id(choice)] = _Created(choice, repr(choice), create(kind, choice.name, choice.settings))
    return known


# --- gradients and updates ---


def learn(batches: Sequence[Batch], watch: Callable[[int, Tensor], None] | None = None) -> list[Tensor | Exception]:
    """Take one optimizer step of each row. The batches must have equal keys.

    Args:
        batches: One batch per row.
        watch: Called with the number of each batch and its gradient (P,) before clipping.

    Returns:
        The loss of each row, a scalar, or the exception that its optimizer raised. The other rows took their step.

    Raises:
        Exception: A gradient could not be computed. No row took a step.
    """
    asked = batches
    batches = [one for batch in asked for one in (batch, batch.mate) if one is not None]
    rows = [batch.row for batch in batches]
    values = [row.values for row in rows]
    losses, gradients, logits = _gradients(batches, values)
    if rows[0].two_gradients is not None:
        points = [_probe(batch, gradient) for batch, gradient in zip(batches, gradients.unbind(0), strict=True)]
        _, gradients, _ = _gradients(batches, points)
    norms = _norms(gradients, rows)
    due = [number for number, row in enumerate(rows) if row.is_observation_due]
    sampled: dict[int, Tensor] = {}
    if due:
        gradients = gradients.clone()  # a single gradient lies in a row that the next computation overwrites
        drawn = [_with_drawn_classes(batches[number]) for number in due]
        sampled = dict(zip(due, _gradients(drawn, [values[number] for number in due])[1].unbind(0), strict=True))
    if watch is not None:
        of_first = [gradient for batch, gradient in zip(batches, gradients.unbind(0), strict=True) if not batch.member]
        for number, gradient in enumerate(of_first):
            watch(number, gradient)
    gradients = _clip(gradients, norms, [batch.step.settings.gradient_clip for batch in batches])
    batches = _with_mates(batches, logits)
    answers: list[Tensor | Exception] = list(losses.detach().unbind(0))
    for number, (batch, gradient) in enumerate(zip(batches, gradients.unbind(0), strict=True)):
        try:
            if number in sampled:
                batch.row.observe(sampled[number], len(batch.labels))
            batch.row.update(gradient, batch.step.settings)
            _observe(batch, logits[number])
        except Exception as error:  # becomes the answer of its row; the others take their step
            answers[number] = error
            continue
        if batch.row.peer is not None and batch.mate is None:
            of_peer = _learn_second(batch, batch.row.peer)
            answers[number] = of_peer if isinstance(of_peer, Exception) else answers[number]
    return _of_trainings(asked, answers)


def _of_trainings(batches: Sequence[Batch], answers: Sequence[Tensor | Exception]) -> list[Tensor | Exception]:
    """The answer of each training, from those of its models: of the first one, unless the second one failed."""
    left, found = iter(answers), []
    for batch in batches:
        first = next(left)
        second = None if batch.mate is None else next(left)
        found.append(second if isinstance(second, Exception) and not isinstance(first, Exception) else first)
    return found


def _learn_second(batch: Batch, peer: Row) -> Tensor | Exception:
    """The step of the second model of a training, in halves if it does not fit into memory.

    The first model has taken its step, so nothing is raised: the caller would repeat both steps.
    """
    try:
        second = _peer_batch(batch, peer)
        drawn = state_of_draws(second.keep)
        try:
            return learn([second])[0]
        except Exception as error:  # becomes the answer unless it can be helped
            if not can_be_halved(peer, len(second.labels), error):
                return error
        free_memory()
        halve(peer, len(second.labels))
        draw_again(second.keep, drawn)
        return learn([second])[0]
    except Exception as error:  # becomes the answer, too
        return error


def _with_drawn_classes(batch: Batch) -> Batch:
    draws = draw_numbers(batch.step.augmentation_seed, len(batch.labels))
    # A plain mean, also in parts.
    return replace(batch, draws=draws.to(batch.images.device), weights=None, mixture=None, mate=None)


def _peer_batch(batch: Batch, peer: Row) -> Batch:
    """The batch of the second model of a training, which learns from the first one after its step."""
    second = _batch_of_second(batch, peer)
    return replace(second, outputs=batch.outputs._replace(peer=_evaluated_logits(batch.row, batch.images)))


def _batch_of_second(batch: Batch, peer: Row) -> Batch:
    """The batch of the second model of a training: the same images, with other masks of dropout and drop path."""
    step = batch.step._replace(dropout_seed=batch.step.dropout_seed + 1)
    return replace(batch, row=peer, step=step, keep=drop_path_factors(peer, step, batch.images), member=1)


@torch.no_grad()
def _probe(batch: Batch, gradient: Tensor) -> Tensor:
    row = batch.row
    assert row.two_gradients is not None
    return row.two_gradients.probe(row.layout, row.values, gradient, row.state, batch.step.settings)


class _Computed(NamedTuple):
    """Results of `K` models for one batch each."""

    losses: Tensor
    """Shape (K,)."""
    gradients: Tensor
    """Shape (K, P)."""
    logits: Sequence[Tensor]
    """Logits of each model, shape (B, classes), or (B, 1 + heads, classes) with auxiliary heads, without gradient."""


def _gradients(batches: Sequence[Batch], values: Sequence[Tensor]) -> _Computed:
    """Losses and gradients of the rows' models at the given values, one (P,) per row."""
    row = batches[0].row
    if not row.model.training:
        row.model.train()
    if len(batches) > 1:
        return _stacked_gradients(batches, values)
    computed = row.computed(values[0])
    if computed is row.values:
        return _plain_gradient(batches[0])
    kept = row.values.clone()
    with torch.no_grad():
        row.values.copy_(computed)
    try:
        found = _plain_gradient(batches[0])
        return found._replace(gradients=row.pull_back(found.gradients[0])[None])
    finally:
        with torch.no_grad():
            row.values.copy_(kept)


def _plain_gradient(batch: Batch) -> _Computed:
    """The results of one model."""
    row = batch.row
    first, *others = [(batch, 1.0)] if row.num_parts == 1 else micro_batches_of(batch, row.num_parts)
    loss, gradients, logits = _gradient_of_part(*first)
    for part, share in others:
        more, added, further = _gradient_of_part(part, share)
        loss, logits = loss + more, torch.cat([logits, further])
        gradients = list(torch._foreach_add(gradients, added))
    gradient = row.gather(gradients)
    row.ranks.add(gradient)
    return _Computed(loss[None], gradient[None], [logits])


def _gradient_of_part(batch: Batch, share: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, a scalar, and gradient of each parameter, both times `share`; and the logits (B, classes).

    With several ranks, each computes the logits of its images, and then the loss of all images. Its gradients are those
    of the loss by its own logits, so their sum over the ranks is the gradient, also for a loss that compares images.
    """
    row, ranks, size = batch.row, batch.row.ranks, len(batch.labels)
    own = batch if ranks.count == 1 else _images_of(batch, ranks.part_of(size))
    reads_layers = LossInput.LAYERS in loss_inputs(_plugin("losses", row.recipe.loss).plugin)
    layers: list[Tensor] = []
    attention: list[Tensor] = []
    with ranks.together(), autocast(own.images.device), ExitStack() as watching:
        if reads_layers:
            layers = watching.enter_context(watched_layers(row.model))
        if batch.mixture is not None:
            attention = watching.enter_context(watched_attention(row.model))
        logits = at_least_float32(row.forward(own.images, **_forward_options(own)))
    logits = ranks.gather(logits, size)
    layers, attention = ([ranks.gather(one, size) for one in seen] for seen in (layers, attention))
    batch = _with_attended_targets(batch, attention, logits)
    with ranks.together():
        loss = loss_of(batch, logits, layers) if share > 0 else logits.sum()
        if share != 1.0:
            loss = share * loss
        gradients = torch.autograd.grad(loss, row.parameters(), materialize_grads=True)
    return loss.detach(), list(gradients), logits.detach()


@torch.no_grad()
def _with_attended_targets(batch: Batch, attention: Sequence[Tensor], logits: Tensor) -> Batch:
    """The batch with targets that follow the attention (B, rows, columns) of its model, if it was read."""
    if batch.mixture is None:
        return batch
    plugin: AttentionMixing = _plugin("augmentations", batch.step.settings.mixing).plugin
    first = logits if logits.ndim == 2 else logits[:, 0]  # without auxiliary heads
    shares = plugin.shares(batch.mixture, attention[-1], first)
    return replace(batch, targets=batch.mixture.targets(shares))


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
        part = _images_of(batch, slice(places[0], places[-1] + 1))
        share = len(places) / size if part.weights is None or total is None else float(part.weights.sum() / total)
        found.append((part, share))
    return found


def _images_of(batch: Batch, cut: slice) -> Batch:
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


def _forward_options(batch: Batch) -> dict[str, Any]:
    options: dict[str, Any] = {"generator": batch.keep, **_model_options(batch)}
    rate = batch.step.settings.dropout
    if rate > 0:
        seed = torch.tensor(batch.step.dropout_seed, device=batch.images.device)
        options["dropout"] = (
            DropoutOfPart.after(batch.first, rate=rate, seed=seed) if batch.first else Dropout(rate, seed)
        )
    return options


def _model_options(batch: Batch) -> dict[str, Any]:
    """Options of the model's `forward` for all images. Auxiliary heads are computed if there are any."""
    auxiliary = {"auxiliary": True} if auxiliary_heads(batch.row.model) else {}
    return {**batch.step.settings.model_options, **auxiliary}


def _stacked_gradients(batches: Sequence[Batch], values: Sequence[Tensor]) -> _Computed:
    """The results of several models. Smaller batches are padded with images that do not count in the loss."""
    row = batches[0].row
    sizes = [len(batch.labels) for batch in batches]
    images = _fill([batch.images for batch in batches], 0)
    keep = _keep_together(batches, max(sizes), images)
    together = torch.stack(list(values)).requires_grad_()
    options = _model_options(batches[0])
    dropout = _dropout_together(batches, images.device)

    reads_attention = any(batch.mixture is not None for batch in batches)

    def forward(parameters: list[Tensor], images: Tensor, keep: Tensor | None, dropout: Dropout | None) -> Any:
        given = options if dropout is None else {**options, "dropout": dropout}
        if not reads_attention:
            return row.call(parameters, images, generator=keep, **given), ()
        with watched_attention(row.model) as attention:
            found = row.call(parameters, images, generator=keep, **given)
        return found, tuple(attention)

    in_dims = (0, 0, None if keep is None else 0, None if dropout is None else 0)
    with autocast(images.device), unfused_attention():
        found, attention = vmap(forward, in_dims=in_dims)(row.layout.views(together), images, keep, dropout)
    logits = at_least_float32(found)
    batches = [
        _with_attended_targets(batch, [one[number, :size] for one in attention], logits[number, :size])
        for number, (batch, size) in enumerate(zip(batches, sizes, strict=True))
    ]
    batches = _with_mates(batches, logits.detach())
    losses = _stacked_losses(batches, logits, sizes)
    (gradients,) = torch.autograd.grad(losses.sum(), together)
    own = [one[:size] for one, size in zip(logits.detach().unbind(0), sizes, strict=True)]
    return _Computed(losses, gradients, own)


def _with_mates(batches: Sequence[Batch], logits: Sequence[Tensor] | Tensor) -> list[Batch]:
    """The batches with the logits of the other model of the same training, from `K` logits (B, [heads,] classes)."""
    found = list(batches)
    for number, batch in enumerate(batches):
        if batch.mate is not None:
            for one, other in ((number, number + 1), (number + 1, number)):
                seen = logits[other][: len(batch.labels)]
                peer = seen if seen.ndim == 2 else seen[:, 0]  # without auxiliary heads
                found[one] = replace(found[one], outputs=found[one].outputs._replace(peer=peer))
    return found


def _dropout_together(batches: Sequence[Batch], device: torch.device) -> Dropout | None:
    """Rates (K,) and seeds (K,); `None` if nothing is dropped."""
    rates = [batch.step.settings.dropout for batch in batches]
    if not any(rates):
        return None
    seeds = torch.tensor([batch.step.dropout_seed for batch in batches])
    return Dropout(torch.tensor(rates).to(device), seeds.to(device))


def _keep_together(batches: Sequence[Batch], size: int, images: Tensor) -> Tensor | None:
    """Factors (K, L, 2, B) of all rows; `None` if no row drops anything."""
    found = [batch.keep for batch in batches]
    if all(keep is None for keep in found):
        return None
    whole = images.new_ones(batches[0].row.num_blocks, 2, size)
    return _fill([keep if isinstance(keep, Tensor) else whole for keep in found], -1)


def _fill(tensors: Sequence[Tensor], dim: int) -> Tensor:
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


# --- losses ---


def loss_of(batch: Batch, logits: Tensor, layers: Sequence[Tensor] = ()) -> Tensor:
    """The loss of a batch from its logits (B, classes), a scalar; `layers` are the activations that it may read.

    With auxiliary heads, the logits have shape (B, 1 + heads, classes), and the weighted losses of the heads are added.
    """
    if logits.ndim == 3:
        first, *others = logits.unbind(1)
        of_heads = torch.stack([loss_of(batch, one) for one in others]).sum()
        return loss_of(batch, first, layers) + AUXILIARY_WEIGHT * of_heads
    if batch.draws is not None:
        return cross_entropy_of_drawn(logits, batch.draws)
    plugin: Loss = _plugin("losses", batch.row.recipe.loss).plugin
    smoothing = batch.step.settings.label_smoothing
    if batch.targets is None and batch.weights is None and isinstance(plugin, LabelLoss):
        of_labels: Tensor = plugin.mean_of_labels(logits, batch.labels, label_smoothing=smoothing)
        return of_labels
    losses = plugin.loss(logits, _soft_targets(batch, logits, smoothing), _context(batch, layers))
    mean: Tensor = losses.mean() if batch.weights is None else (losses * batch.weights).sum() / batch.weights.sum()
    return mean


def _context(batch: Batch, layers: Sequence[Tensor] = ()) -> LossContext:
    return LossContext(
        labels=batch.labels,
        now=batch.step.now,
        indices=batch.step.indices,
        class_counts=batch.class_counts,
        state=batch.row.loss_state,
        teacher=batch.outputs.teacher,
        start=batch.outputs.start,
        layers=layers,
        guide_layers=batch.outputs.guide_layers,
        peer=batch.outputs.peer,
        member=batch.member,
    )


@torch.no_grad()
def _observe(batch: Batch, logits: Tensor) -> None:
    """Update the state of the batch's loss, if it has one, with the logits (B, classes) of the step."""
    plugin = _plugin("losses", batch.row.recipe.loss).plugin
    if isinstance(plugin, StatefulLoss):
        plugin.observe(logits if logits.ndim == 2 else logits[:, 0], _context(batch))  # without auxiliary heads


def _soft_targets(batch: Batch, logits: Tensor, smoothing: float) -> Tensor:
    """Targets (B, classes) with label smoothing, in the dtype of the logits."""
    num_classes = logits.shape[-1]
    targets = F.one_hot(batch.labels, num_classes) if batch.targets is None else batch.targets
    targets = targets.to(logits.dtype)
    return targets if smoothing == 0.0 else (1 - smoothing) * targets + smoothing / num_classes


def _stacked_losses(batches: Sequence[Batch], logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The loss of each row, shape (K,), from the first `sizes` images of each row's logits (K, B, [heads,] classes)."""
    losses = [_plugin("losses", batch.row.recipe.loss) for batch in batches]
    plugin: Loss = losses[0].plugin
    is_plain = logits.ndim == 3 and all(batch.targets is batch.weights is batch.draws is None for batch in batches)
    if is_plain and len({loss.key for loss in losses}) == 1 and isinstance(plugin, StackedLabelLoss):
        labels = _fill([batch.labels for batch in batches], 0)
        smoothing = [batch.step.settings.label_smoothing for batch in batches]
        means: Tensor = plugin.means_of_labels(logits, labels, sizes, label_smoothing=smoothing)
        return means
    return torch.stack(
        [loss_of(batch, own[:size]) for batch, own, size in zip(batches, logits.unbind(0), sizes, strict=True)]
    )


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in the dtype for losses: float64 stays, all others become float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


# --- clipping ---


def _norms(gradients: Tensor, rows: Sequence[Row]) -> Tensor:
    """Euclidean norms (K,) of gradients (K, P).

    A single gradient is summed parameter by parameter, to equal `torch.nn.utils.clip_grad_norm_` to the last bit.
    """
    if len(gradients) > 1:
        each: Tensor = torch.linalg.vector_norm(gradients, dim=1)
        return each
    norms = torch._foreach_norm(rows[0].gradient_views)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total[None]


def _clip(gradients: Tensor, norms: Tensor, limits: Sequence[float | None]) -> Tensor:
    """Gradients (K, P), each clipped to its maximum norm as in `torch.nn.utils.clip_grad_norm_`."""
    if all(limit is None for limit in limits):
        return gradients
    bounds = torch.tensor([math.inf if limit is None else limit for limit in limits], dtype=gradients.dtype)
    bounds = bounds.to(gradients.device, non_blocking=True)
    scales = (bounds / (norms + 1e-6)).clamp(max=1.0)
    return gradients.mul_(torch.where(bounds.isinf(), 1.0, scales)[:, None])


# --- evaluation of several models at once ---


class StackedModel(nn.Module):
    """Evaluates several models as one: from images (B, C, S, S) to logits (B, K, classes)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self._row = rows[0]
        self.inner = rows[0].model
        self._parameters_of_all = self._row.layout.views(torch.stack([row.values_to_evaluate() for row in rows]))

    def forward(self, images: Tensor) -> Any:
        with unfused_attention():
            return vmap(self._row.call, in_dims=(0, None), out_dims=1)(self._parameters_of_all, images)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Split items into pieces of about equal length, at most `size`."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
