"""The loss of a batch, from the logits of its model or of several models together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.protocols import LabelLoss, LossContext, StackedLabelLoss, StatefulLoss
from trainers.training.batch import Batch, stack_padded
from trainers.training.created import created
from trainers.training.drawn_classes import cross_entropy_of_drawn

AUXILIARY_WEIGHT = 0.3
"""Weight of the loss of each auxiliary head of a model with deep supervision.

Source: Szegedy et al. 2015, arXiv:1409.4842, section 5.
"""


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
    chosen = created("losses", batch.row.recipe.loss)
    plugin = chosen.plugin
    smoothing = batch.step.settings.label_smoothing
    if batch.targets is None and batch.weights is None and chosen.offers(LabelLoss):
        of_labels: Tensor = plugin.mean_of_labels(logits, batch.labels, label_smoothing=smoothing)
        return of_labels
    losses: Tensor = plugin.loss(logits, _soft_targets(batch, logits, smoothing), _context(batch, layers))
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
def observe_loss(batch: Batch, logits: Tensor) -> None:
    """Update the state of the batch's loss, if it has one, with the logits (B, classes) of the step."""
    chosen = created("losses", batch.row.recipe.loss)
    if chosen.offers(StatefulLoss):
        chosen.plugin.observe(logits if logits.ndim == 2 else logits[:, 0], _context(batch))  # without auxiliary heads


def _soft_targets(batch: Batch, logits: Tensor, smoothing: float) -> Tensor:
    """Targets (B, classes) with label smoothing, in the dtype of the logits."""
    num_classes = logits.shape[-1]
    targets = F.one_hot(batch.labels, num_classes) if batch.targets is None else batch.targets
    targets = targets.to(logits.dtype)
    return targets if smoothing == 0.0 else (1 - smoothing) * targets + smoothing / num_classes


def stacked_losses(batches: Sequence[Batch], logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The loss of each row, shape (K,), from the first `sizes` images of each row's logits (K, B, [heads,] classes)."""
    losses = [created("losses", batch.row.recipe.loss) for batch in batches]
    is_plain = logits.ndim == 3 and all(batch.targets is batch.weights is batch.draws is None for batch in batches)
    if is_plain and len({loss.key for loss in losses}) == 1 and losses[0].offers(StackedLabelLoss):
        labels = stack_padded([batch.labels for batch in batches], 0)
        smoothing = [batch.step.settings.label_smoothing for batch in batches]
        means: Tensor = losses[0].plugin.means_of_labels(logits, labels, sizes, label_smoothing=smoothing)
        return means
    return torch.stack(
        [loss_of(batch, own[:size]) for batch, own, size in zip(batches, logits.unbind(0), sizes, strict=True)]
    )
