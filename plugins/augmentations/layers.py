"""Applies kornia's layers to whole batches on their device. The same seed gives the same batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_SHIFT = 0.125
"""Largest translation at strength 1, as a fraction of the image size: 4 of 32 pixels."""

MakeLayers = Callable[[int, float], "nn.Sequential"]
"""Function that creates the layers for an image size and a strength. It should cache them, since creation is slow."""

_SHAPE = "forward_input_shape"
"""The only parameter of kornia's layers without a row per image."""


def apply_layers(make: MakeLayers, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
    """Return an augmented copy of a batch (B, C, S, S), or the batch itself if there are no layers."""
    import torch

    layers = _layers(make, images, strength)
    if len(layers) == 0:
        return images
    with _seeded(seed, images.device), torch.no_grad():
        result: Tensor = layers(images)
        return result


def apply_layers_together(
    make: MakeLayers, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
) -> "Sequence[Tensor]":
    """Apply layers to several batches together, with few operations; equal to `apply_layers` up to rounding.

    Each batch gets the same random numbers as alone. The layers must be able to draw them before they are applied.

    Args:
        make: Creates the layers.
        batches: Batches of shape (B, C, S, S) each; `B` may differ.
        strength: Strength for all batches.
        seeds: One seed per batch.
    """
    import torch

    if len(batches) == 1:
        return [apply_layers(make, batches[0], strength=strength, seed=seeds[0])]
    layers: list[Any] = list(_layers(make, batches[0], strength).children())
    if not layers:
        return batches
    draws = []
    for batch, seed in zip(batches, seeds, strict=True):
        with _seeded(seed, batch.device):
            draws.append([layer.forward_parameters(batch.shape) for layer in layers])
    images = torch.cat(list(batches))
    with torch.no_grad():
        for layer, *parameters in zip(layers, *draws, strict=True):
            joined = {key: torch.cat([one[key] for one in parameters]) for key in parameters[0] if key != _SHAPE}
            shape = parameters[0][_SHAPE].clone()
            shape[0] = len(images)
            images = layer(images, params={**joined, _SHAPE: shape})
    return torch.split(images, [len(batch) for batch in batches])


class LayeredAugmentation(ABC):
    """Base of augmentations that apply the same layers to all batches, alone or together."""

    @staticmethod
    @abstractmethod
    def layers(size: int, strength: float) -> "nn.Sequential":
        """The layers for an image size and a strength; see `MakeLayers`."""

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """Return an augmented copy of a batch."""
        return apply_layers(self.layers, images, strength=strength, seed=seed)

    def augment_together(
        self, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
    ) -> "Sequence[Tensor]":
        """The result of `augment` for each batch, up to rounding."""
        return apply_layers_together(self.layers, batches, strength=strength, seeds=seeds)


def _layers(make: MakeLayers, images: "Tensor", strength: float) -> "nn.Sequential":
    return make(images.shape[-1], round(strength, 2))  # rounding limits their number while the strength changes


@contextmanager
def _seeded(seed: int, device: "torch.device") -> Iterator[None]:
    """Seed torch's global generators, the only ones that kornia uses, and restore them afterwards."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if devices:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
