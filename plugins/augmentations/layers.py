"""Runs kornia's layers on whole batches, on their device. The same seed gives the same batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_SHIFT = 0.125
"""Largest translation at strength 1, as a fraction of the image's size: 4 of 32 pixels."""

MakeLayers = Callable[[int, float], "nn.Sequential"]
"""Makes the layers for an image size and a strength; it should cache them, as making them is slow."""

_SHAPE = "forward_input_shape"
"""The one of kornia's parameters of a layer that does not have a row for each image."""


def apply_layers(make: MakeLayers, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
    """A changed copy of a batch (B, C, S, S), or the batch itself if there is nothing to change."""
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
    """What `apply_layers` makes of each batch, up to rounding, with few operations for all of them.

    Each batch has the random numbers that it would have alone. The layers must draw them before they are applied.

    Args:
        make: Makes the layers.
        batches: Each of shape (B, C, S, S); `B` may differ.
        strength: Of all batches.
        seeds: A seed for each batch.
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


def _layers(make: MakeLayers, images: "Tensor", strength: float) -> "nn.Sequential":
    return make(images.shape[-1], round(strength, 2))  # rounded, so that few are made while a strength changes


@contextmanager
def _seeded(seed: int, device: "torch.device") -> Iterator[None]:
    """Seed torch's global generators, the only ones that kornia uses, and put them back afterwards."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if devices:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
