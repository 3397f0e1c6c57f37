"""Augmentation of whole batches on their device, with kornia. The same seed gives the same batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.recipes import Augmentation

MAX_SHIFT = 0.125
"""Largest translation, as a fraction of the image's size: 4 of 32 pixels."""


def augment(images: Tensor, name: Augmentation, *, seed: int) -> Tensor:
    """A changed copy of a batch; what is shifted in from outside is black.

    Args:
        images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32.
        name: `none`; `shift` (translations); `affine` (small rotations, translations and changes of scale, no mirror
            images: right for digits); `flip-crop` (mirror images, translations); `randaugment` (mirror images and two
            random operations).
        seed: Start of the random numbers; torch's global generators are left as they were.
    """
    if name == "none":
        return images
    transform = _transform(name, images.shape[-1])
    with _seeded(seed, images.device), torch.no_grad():
        if name == "randaugment" and images.shape[1] == 1:  # kornia's colour operations want three channels
            coloured: Tensor = transform(images.expand(-1, 3, -1, -1))
            return coloured.mean(1, keepdim=True)
        result: Tensor = transform(images)
        return result


def augment_together(batches: Sequence[Tensor], names: Sequence[Augmentation], seeds: Sequence[int]) -> list[Tensor]:
    """What `augment` makes of each batch, up to rounding, with few operations for all of them.

    Each batch has the random numbers that it would have alone.

    Args:
        batches: Each with pixels on a scale of 0 to 1, shape (B, C, S, S), float32; `B` may differ.
        names: An augmentation for each batch.
        seeds: A seed for each batch.
    """
    changed = list(batches)
    for name in dict.fromkeys(names):
        members = [index for index, other in enumerate(names) if other == name]
        if name == "none":
            continue
        if name == "randaugment" or len(members) == 1:  # it draws its operations while it applies them
            for index in members:
                changed[index] = augment(batches[index], name, seed=seeds[index])
            continue
        results = _augment_joined([batches[index] for index in members], name, [seeds[index] for index in members])
        for index, result in zip(members, results, strict=True):
            changed[index] = result
    return changed


def _augment_joined(batches: Sequence[Tensor], name: Augmentation, seeds: Sequence[int]) -> Sequence[Tensor]:
    layers: list[Any] = list(_transform(name, batches[0].shape[-1]).children())
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


_SHAPE = "forward_input_shape"
"""The one of kornia's parameters of a layer that does not have a row for each image."""


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, the only ones that kornia uses, and put them back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if devices:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


@lru_cache(maxsize=16)
def _transform(name: Augmentation, size: int) -> nn.Module:
    import kornia.augmentation as kornia

    shift = (MAX_SHIFT, MAX_SHIFT)
    if name == "shift":
        return nn.Sequential(kornia.RandomAffine(degrees=0.0, translate=shift, p=1.0))
    if name == "affine":
        return nn.Sequential(kornia.RandomAffine(degrees=12.0, translate=shift, scale=(0.9, 1.1), p=1.0))
    flip = kornia.RandomHorizontalFlip(p=0.5)
    if name == "flip-crop":
        return nn.Sequential(flip, kornia.RandomCrop((size, size), padding=max(1, round(MAX_SHIFT * size))))
    return nn.Sequential(flip, kornia.auto.RandAugment(n=2, m=9))
