"""Weights of several models of one topology, trained together: one forward and backward pass over stacked weights.

Legend: `K` models of `P` parameters, `B` images of (C, S, S), `L` blocks.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adamw import adamw

from plugins.protocols import TransformerBlock
from search_spaces.recipes import Recipe
from trainers.hardware.devices import autocast
from trainers.models.blocks import draw_keep_factors
from trainers.training.checkpoints import Checkpoint
from trainers.training.loop import at_least_float32, build_optimizer

Item = TypeVar("Item")

# torch's fused attention of a CPU then takes the models of a stack one by one, which costs what it costs unpacked.
warnings.filterwarnings("ignore", message=".*batching rule for aten::_scaled_dot_product_flash_attention_for_cpu")


class Row:
    """One model of a stack. Weights and optimizer state are each in one piece; the parameters are views of it.

    The optimizer is that of `build_optimizer`: its groups, its settings and the form of its state.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        """Take a model over.

        Raises:
            ValueError: It has a running state that a step changes besides the weights, such as that of a batch norm, or
                no blocks to drop.
        """
        self.model = model
        self.recipe = recipe
        self.num_blocks = sum(isinstance(module, TransformerBlock) for module in model.modules())
        _check(model, recipe, self.num_blocks)
        groups = build_optimizer(model, recipe).param_groups
        self._settings = groups[0]
        parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = tuple(names[id(parameter)] for parameter in parameters)
        self.shapes = tuple(parameter.shape for parameter in parameters)
        self.sizes = [parameter.numel() for parameter in parameters]
        self.values = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self._means, self._squares = torch.zeros_like(self.values), torch.zeros_like(self.values)
        for parameter, view in zip(parameters, self.split(self.values), strict=True):
            parameter.data = view
        self._parts: list[tuple[slice, float, Tensor]] = []
        start = 0
        for group in groups:
            stop = start + sum(parameter.numel() for parameter in group["params"])
            steps = torch.zeros((), dtype=torch.float32, device=self.values.device)
            self._parts.append((slice(start, stop), group["weight_decay"], steps))
            start = stop

    def split(self, values: Tensor) -> list[Tensor]:
        """Views (..., *shape) of each parameter in values (..., P)."""
        parts = torch.split(values, self.sizes, -1)
        return [part.view(*values.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        """In the order of `names`."""
        return [self.model.get_parameter(name) for name in self.names]

    @torch.no_grad()
    def update(self, gradient: Tensor, rate: float) -> None:
        """One step of AdamW with a gradient (P,)."""
        for part, decay, steps in self._parts:
            adamw(
                [self.values[part]],
                [gradient[part]],
                [self._means[part]],
                [self._squares[part]],
                [],
                [steps],
                fused=True,
                amsgrad=False,
                beta1=self._settings["betas"][0],
                beta2=self._settings["betas"][1],
                lr=rate,
                weight_decay=decay,
                eps=self._settings["eps"],
                maximize=False,
            )

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights and optimizer state of a checkpoint, of a training alone or in a pack."""
        self.model.load_state_dict(checkpoint.weights)
        state = checkpoint.optimizer
        for index, (mean, square) in enumerate(zip(self.split(self._means), self.split(self._squares), strict=True)):
            mean.copy_(state[f"{index}.exp_avg"])
            square.copy_(state[f"{index}.exp_avg_sq"])
        for _, _, steps in self._parts:
            steps.copy_(state["0.step"])

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict; what is in the row comes to the CPU in one piece."""
        ours = dict(zip(self.names, self.split(self.values.cpu()), strict=True))
        return {name: ours.get(name, value) for name, value in self.model.state_dict().items()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The state of `build_optimizer`'s optimizer after as many steps."""
        steps = self._parts[0][2].cpu()
        tensors: dict[str, Tensor] = {}
        means, squares = self.split(self._means.cpu()), self.split(self._squares.cpu())
        for index, (mean, square) in enumerate(zip(means, squares, strict=True)):
            tensors |= {f"{index}.step": steps.clone(), f"{index}.exp_avg": mean, f"{index}.exp_avg_sq": square}
        return tensors


def _check(model: nn.Module, recipe: Recipe, num_blocks: int) -> None:
    running = [name for name, module in model.named_modules() if getattr(module, "track_running_stats", False)]
    if running:
        raise ValueError(
            f"models of a pack must have no state besides their weights, but {running[0]} of {type(model).__name__} "
            "keeps running statistics. Train it unpacked."
        )
    if recipe.drop_path > 0 and num_blocks == 0:
        raise ValueError(
            f"drop_path={recipe.drop_path} needs a model with blocks (`plugins.protocols.TransformerBlock`) to be "
            f"trained in a pack, but {type(model).__name__} has none. Train it unpacked."
        )


class Batch(NamedTuple):
    """What one row learns from in one step."""

    row: Row
    images: Tensor
    """Normalised, shape (B, C, S, S)."""
    labels: Tensor
    """Shape (B,), int64."""
    keep: Tensor | None
    """Drop-path factors, shape (L, 2, B); `None` drops nothing."""
    options: Mapping[str, int]
    """Of the model's `forward`; all batches of a call of `learn` have the same."""
    rate: float


def drop_path_factors(row: Row, num_images: int, generator: torch.Generator, images: Tensor) -> Tensor | None:
    """What the row's model would draw for `num_images`, on the device and in the dtype of `images`."""
    if row.recipe.drop_path == 0.0:
        return None
    factors = draw_keep_factors(row.num_blocks, num_images, rate=row.recipe.drop_path, generator=generator)
    return factors.to(images.device, images.dtype, non_blocking=True)


def learn(batches: Sequence[Batch]) -> Sequence[Tensor]:
    """One optimizer step of each row, and its loss, a tensor without dimensions."""
    losses, gradients = _alone(batches[0]) if len(batches) == 1 else _stacked(batches)
    gradients = _clip(gradients, [batch.row.recipe.gradient_clip for batch in batches])
    for batch, gradient in zip(batches, gradients.unbind(0), strict=True):
        batch.row.update(gradient, batch.rate)
    return losses.detach().unbind(0)


def _alone(batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss (1,) and gradient (1, P) of one model."""
    row = batch.row
    if not row.model.training:
        row.model.train()
    with autocast(batch.images.device):
        logits = row.model(batch.images, generator=batch.keep, **batch.options)
    loss = F.cross_entropy(at_least_float32(logits), batch.labels, label_smoothing=row.recipe.label_smoothing)
    gradients = torch.autograd.grad(loss, row.parameters())
    return loss[None], torch.cat([gradient.flatten() for gradient in gradients])[None]


def _stacked(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Losses (K,) and gradients (K, P). Smaller batches are filled up with images that count nothing."""
    row = batches[0].row
    if not row.model.training:
        row.model.train()
    sizes = [len(batch.labels) for batch in batches]
    images = _fill([batch.images for batch in batches], 0)
    labels = _fill([batch.labels for batch in batches], 0)
    keep = _keep_together(batches, max(sizes), images)
    values = torch.stack([batch.row.values for batch in batches]).requires_grad_()
    options = dict(batches[0].options)

    def forward(parameters: list[Tensor], images: Tensor, keep: Tensor | None) -> Any:
        named = dict(zip(row.names, parameters, strict=True))
        return functional_call(row.model, named, (images,), {"generator": keep, **options})

    with autocast(images.device):
        logits = vmap(forward, in_dims=(0, 0, None if keep is None else 0))(row.split(values), images, keep)
    smoothing = [batch.row.recipe.label_smoothing for batch in batches]
    losses = stacked_loss(at_least_float32(logits), labels, sizes, smoothing)
    (gradients,) = torch.autograd.grad(losses.sum(), values)
    return losses, gradients


def _keep_together(batches: Sequence[Batch], size: int, images: Tensor) -> Tensor | None:
    """Factors (K, L, 2, B) of all rows; `None` if no row drops anything."""
    found = [batch.keep for batch in batches]
    if all(keep is None for keep in found):
        return None
    whole = images.new_ones(batches[0].row.num_blocks, 2, size)
    return _fill([whole if keep is None else keep for keep in found], -1)


def _fill(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Stack tensors after each was lengthened to the longest along `dim`, by repeating its last slice."""
    longest = max(tensor.shape[dim] for tensor in tensors)
    filled = []
    for tensor in tensors:
        missing = longest - tensor.shape[dim]
        if missing:
            last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
            tensor = torch.cat([tensor, *[last] * missing], dim)
        filled.append(tensor)
    return torch.stack(filled)


def stacked_loss(logits: Tensor, labels: Tensor, sizes: Sequence[int], smoothing: Sequence[float]) -> Tensor:
    """Mean cross-entropy of each model, shape (K,).

    Args:
        logits: Shape (K, B, classes).
        labels: Shape (K, B), int64.
        sizes: How many of the `B` images count, the first ones, for each model.
        smoothing: Label smoothing of each model.
    """
    device, dtype = logits.device, logits.dtype
    log_probabilities = logits.log_softmax(-1)
    losses = -log_probabilities.gather(-1, labels[..., None])[..., 0]
    if any(smoothing):
        share = torch.tensor(smoothing, dtype=dtype).to(device, non_blocking=True)[:, None]
        losses = (1 - share) * losses - share * log_probabilities.mean(-1)
    if len(set(sizes)) == 1:
        return losses.mean(1)
    counts = torch.tensor(sizes).to(device, non_blocking=True)[:, None]
    counted = torch.arange(labels.shape[1], device=device) < counts
    return torch.where(counted, losses, 0.0).sum(1) / counts[:, 0]


def _clip(gradients: Tensor, limits: Sequence[float | None]) -> Tensor:
    """Gradients (K, P), each scaled down to its largest norm as `torch.nn.utils.clip_grad_norm_` does."""
    if all(limit is None for limit in limits):
        return gradients
    bounds = torch.tensor([math.inf if limit is None else limit for limit in limits], dtype=gradients.dtype)
    bounds = bounds.to(gradients.device, non_blocking=True)
    scales = (bounds / (torch.linalg.vector_norm(gradients, dim=1) + 1e-6)).clamp(max=1.0)
    return gradients.mul_(torch.where(bounds.isinf(), 1.0, scales)[:, None])


class StackedModel(nn.Module):
    """Several models as one: images (B, C, S, S) to logits (B, K, classes), in evaluation mode."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self._row = rows[0]
        self.inner = rows[0].model
        self._parameters_of_all = self._row.split(torch.stack([row.values for row in rows]))

    def forward(self, images: Tensor) -> Any:
        def one(parameters: list[Tensor]) -> Any:
            return functional_call(self.inner, dict(zip(self._row.names, parameters, strict=True)), (images,))

        return vmap(one, out_dims=1)(self._parameters_of_all)


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Pieces of up to `size` items, about equally long."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]
