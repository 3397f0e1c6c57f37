"""The optimizer step, for a single model and for several models of one topology together.

Legend: `K` models of `P` numbers, `B` images of shape (C, S, S), `L` blocks.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from plugins.protocols import AttentionMixing, LossInput
from trainers.hardware.devices import at_least_float32, autocast
from trainers.models.auxiliary_heads import auxiliary_heads
from trainers.models.blocks import unfused_attention
from trainers.models.dropout import Dropout, DropoutOfPart
from trainers.training.batch import Batch, images_of, micro_batches_of, peer_batch, stack_padded, with_drawn_classes
from trainers.training.batch_loss import loss_of, observe_loss, stacked_losses
from trainers.training.companions import watched_attention, watched_layers
from trainers.training.created import created
from trainers.training.failures import free_memory
from trainers.training.memory import can_be_halved, draw_again, halve, state_of_draws
from trainers.training.row import Row

# On a CPU, torch's fused attention processes stacked models one by one, which is as fast as without stacking.
warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product_flash_attention_for_cpu")


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
        drawn = [with_drawn_classes(batches[number]) for number in due]
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
            observe_loss(batch, logits[number])
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
        second = peer_batch(batch, peer)
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
    own = batch if ranks.count == 1 else images_of(batch, ranks.part_of(size))
    reads_layers = LossInput.LAYERS in created("losses", row.recipe.loss).inputs
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
    plugin: AttentionMixing = created("augmentations", batch.step.settings.mixing).plugin
    first = logits if logits.ndim == 2 else logits[:, 0]  # without auxiliary heads
    shares = plugin.shares(batch.mixture, attention[-1], first)
    return replace(batch, targets=batch.mixture.targets(shares))


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
    images = stack_padded([batch.images for batch in batches], 0)
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
    losses = stacked_losses(batches, logits, sizes)
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
    return stack_padded([keep if isinstance(keep, Tensor) else whole for keep in found], -1)


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
