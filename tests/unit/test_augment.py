"""Augmentation of batches: deterministic, in range, and what each kind may do."""

from typing import get_args

import pytest
import torch

from search_spaces.recipes import Augmentation
from trainers.training.augment import augment

NAMES: tuple[Augmentation, ...] = get_args(Augmentation)


def batch(channels: int = 3) -> torch.Tensor:
    return torch.rand(8, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def edges() -> torch.Tensor:
    """Grey images, white on the left and black on the right."""
    images = torch.zeros(64, 1, 16, 16)
    images[..., :8] = 1
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_seed_alone_decides(name: Augmentation, channels: int) -> None:
    images = batch(channels)
    state = torch.get_rng_state()
    first = augment(images, name, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    augment(images, name, seed=5)
    assert torch.equal(first, augment(images, name, seed=1))
    assert name == "none" or not torch.equal(first, augment(images, name, seed=2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_stay_pixels_of_the_same_shape(name: Augmentation, channels: int) -> None:
    images = batch(channels)
    before = images.clone()
    result = augment(images, name, seed=3)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1.0001
    assert torch.equal(images, before)


@pytest.mark.parametrize(("name", "mirrors"), [("shift", False), ("affine", False), ("flip-crop", True)])
def test_only_flip_crop_makes_mirror_images(name: Augmentation, mirrors: bool) -> None:
    result = augment(edges(), name, seed=0)
    left, right = result[..., 2:6].mean((1, 2, 3)), result[..., 10:14].mean((1, 2, 3))
    assert bool((right > left).any()) == mirrors


def test_a_shift_moves_by_an_eighth_at_most() -> None:
    result = augment(edges(), "shift", seed=0)
    inner = result[:, 0, 2:14]
    assert torch.all(inner[..., 2:6] > 0.99)
    assert torch.all(inner[..., 10:] < 0.01)
    assert inner[..., 6:10].std(0).max() > 0.1
