"""Signals of gradients on a fixed sample of the training images, in evaluation mode and in full precision."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from plugins.protocols import Signal
from trainers.data.mapping import gather
from trainers.hardware.devices import at_least_float32, full_precision, make_generator
from trainers.models.blocks import unfused_attention
from trainers.training.batch import TrainingImages
from trainers.training.row import Row
from trainers.training.signal_arithmetic import evidence, largest_eigenvalue, mean_distance

NUM_IMAGES = 128
"""Number of images of a sample, if there are as many."""
NUM_BATCHES = 5
"""Number of batches whose gradients are compared."""
NUM_PRODUCTS = 10
"""Number of products of the Hessian and a vector."""
GRADIENT_SIGNALS = frozenset({Signal.EVIDENCE, Signal.GRADIENT_DISPARITY, Signal.SHARPNESS})
_NUMBERS_AT_ONCE = 1 << 25
"""Limits the gradients of single images in memory: 128 MiB."""


class GradientSample:
    """A fixed sample of training images, and the gradients of the cross-entropy on it.

    The images are drawn by the seed and are not augmented. Neither dropout, drop path nor label smoothing applies.

    Args:
        row: The model in training.
        training: The training part.
        seed: Draws the images, and the first vector of the power iteration.
    """

    def __init__(self, row: Row, training: TrainingImages, *, seed: int) -> None:
        self._row = row
        self._training = training
        self._seed = seed
        order = torch.randperm(len(training.labels), generator=make_generator(seed, "signal-images"))
        self._indices = order.to(training.labels.device)

    def measure(self, model: nn.Module, wanted: frozenset[Signal]) -> dict[Signal, float]:
        """The wanted signals of gradients. Leaves the model in evaluation mode.

        Raises:
            ValueError: The model has no second derivatives, which the sharpness needs.
        """
        model.eval()
        found: dict[Signal, float] = {}
        with full_precision():
            if Signal.EVIDENCE in wanted:
                found[Signal.EVIDENCE] = self._evidence()
            if Signal.GRADIENT_DISPARITY in wanted:
                found[Signal.GRADIENT_DISPARITY] = self._disparity(model)
            if Signal.SHARPNESS in wanted:
                found[Signal.SHARPNESS] = self._sharpness(model)
        return found

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and labels, on the device."""
        images = self._training.normalizer(gather(self._training.images, indices))
        return images.to(self._row.values.dtype), self._training.labels[indices]

    def _evidence(self) -> float:
        images, labels = self._batch(self._indices[:NUM_IMAGES])
        row = self._row
        total, squares = torch.zeros_like(row.values), torch.zeros_like(row.values)
        parameters = [view.detach() for view in row.layout.views(row.values)]

        def loss_of_one(parameters: list[Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = at_least_float32(row.call(parameters, image[None]))
            return F.cross_entropy(logits, label[None])

        each = vmap(grad(loss_of_one), in_dims=(None, 0, 0))
        size = max(1, _NUMBERS_AT_ONCE // row.layout.num_numbers)
        for some, own in zip(images.split(size), labels.split(size), strict=True):  # type: ignore[no-untyped-call]
            with unfused_attention():
                gradients = each(parameters, some, own)
            targets = zip(row.layout.views(total), row.layout.views(squares), gradients, strict=True)
            for sum_view, square_view, gradient in targets:
                sum_view += gradient.sum(0)
                square_view += gradient.square().sum(0)
        return evidence(total, squares, len(labels))

    def _disparity(self, model: nn.Module) -> float:
        size = min(NUM_IMAGES, len(self._indices) // NUM_BATCHES)
        gradients = []
        for number in range(NUM_BATCHES):
            images, labels = self._batch(self._indices[number * size : (number + 1) * size])
            losses = F.cross_entropy(at_least_float32(model(images)), labels, reduction="none")
            scaled = losses.mean() / losses.std()  # so that the size of the loss does not matter
            parts = torch.autograd.grad(scaled, self._row.parameters(), materialize_grads=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        return mean_distance(gradients)

    def _sharpness(self, model: nn.Module) -> float:
        images, labels = self._batch(self._indices[:NUM_IMAGES])
        parameters = self._row.parameters()
        with unfused_attention():
            loss = F.cross_entropy(at_least_float32(model(images)), labels)
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        try:
            return largest_eigenvalue(self._product(gradients), self._start(), num_products=NUM_PRODUCTS)
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise ValueError(
                f"the signal {Signal.SHARPNESS.value} needs a model with second derivatives, but "
                f"{type(model).__name__} has none: {error}. Do not record it."
            ) from error

    def _product(self, gradients: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        """Multiplies the Hessian with a vector (P,); `gradients` have a graph."""
        layout, parameters = self._row.layout, self._row.parameters()

        def multiply(vector: Tensor) -> Tensor:
            pairs = [
                (gradient, part)
                for gradient, part in zip(gradients, layout.views(vector), strict=True)
                if gradient.requires_grad
            ]
            found = torch.autograd.grad(
                [gradient for gradient, _ in pairs],
                parameters,
                [part for _, part in pairs],
                retain_graph=True,
                materialize_grads=True,
            )
            result = torch.zeros_like(vector)
            for view, part in zip(layout.views(result), found, strict=True):
                view.copy_(part)
            return result

        return multiply

    def _start(self) -> Tensor:
        """A random vector (P,), the same each time, with zeros in the padding."""
        generator = make_generator(self._seed, "power-iteration")
        start = torch.zeros(self._row.layout.num_numbers)
        for view in self._row.layout.views(start):
            view.copy_(torch.randn(view.shape, generator=generator))
        return start.to(self._row.values)
