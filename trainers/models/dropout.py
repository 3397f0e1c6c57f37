"""Dropout whose masks depend on a seed only, so that they are the same alone, in a stack and on every device.

torch draws dropout masks from a generator, whose numbers differ between devices and under `torch.func.vmap`. Here a
mask is a hash of the seed, the site (the place in the model) and the number of the element. The hash is computed with
integer tensor operations, so that a stack of models can have one seed and one rate per model.

Cost: a mask takes 0.7 of the time of `torch.nn.functional.dropout` on a CPU core. With dropout, a forward pass takes
about 1.5 times as long as without, and a training step 1.2 to 1.3 times (batches of 64 on one core, all three spaces).
The backward pass keeps one float32 number per element of each site.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

SITES_PER_BLOCK = 3
_LEVELS = 2**16
"""Rates are rounded down to a multiple of 1 / 65536: one 32-bit hash decides about two elements."""


class Dropout(NamedTuple):
    """Dropout of one forward pass. Under `torch.func.vmap`, both fields may have one value per model."""

    rate: float | Tensor
    """Probability that a value is dropped, in [0, 1); a float or a tensor without dimensions."""
    seed: Tensor
    """An int64 tensor without dimensions. Equal seeds give equal masks, so use a new seed in each training step."""


class DropoutOfPart(Dropout):
    """Dropout of one of several passes that compute a step. The masks are those of a single pass."""

    first: int
    """Number of images of the step before this pass."""

    @classmethod
    def after(cls, first: int, *, rate: float, seed: Tensor) -> Self:
        """Dropout of the images after the `first` ones."""
        made = cls(rate, seed)
        made.first = first
        return made


class DropoutSite(NamedTuple):
    """One place in a model where values are dropped."""

    keys: Tensor
    """Two int32 numbers, shape (2,), different for each site and seed."""
    threshold: Tensor
    """An int32 tensor without dimensions, a multiple of 65536; values whose hash is below it are dropped."""
    scale: Tensor
    """Factor of the kept values, 1 / (1 - rate), without dimensions."""
    earlier: float = 0.0
    """Number of earlier images of the step, as a multiple of the images of this pass."""

    def __call__(self, values: Tensor) -> Tensor:
        """Set some of the values (B, ...) to 0 and scale the others. Each image has a different mask."""
        count = math.prod(values.shape)
        start = round(self.earlier * count)
        kept = _is_kept(start, count, self.keys, self.threshold, values.device).reshape(values.shape)
        factors = kept * self.scale
        return (values * factors).to(values.dtype)


class BlockDropout(NamedTuple):
    """The sites of one transformer block."""

    attention: DropoutSite
    """After attention's output projection."""
    hidden: DropoutSite
    """After the MLP's first layer and its activation."""
    output: DropoutSite
    """After the MLP's second layer."""


class DropoutSites(NamedTuple):
    """The sites of a whole model, as in ViT and DeiT."""

    embedding: DropoutSite | None
    """After patch and position embedding."""
    blocks: Sequence[BlockDropout | None]

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedded tokens after dropout."""
        return tokens if self.embedding is None else self.embedding(tokens)


def dropout_sites(model: nn.Module, images: Tensor, *, num_blocks: int, dropout: Dropout | None) -> DropoutSites:
    """The sites of a model for one forward pass.

    Args:
        model: Nothing is dropped unless it is in training mode.
        images: The batch, (B, C, H, W); only its device and length matter.
        num_blocks: Number of blocks of the whole model.
        dropout: Rate and seed. `None`, or a float rate of 0, drops nothing and costs nothing.

    Raises:
        ValueError: The rate is a number outside [0, 1).
    """
    if dropout is None or not model.training:
        return DropoutSites(None, [None] * num_blocks)
    if not isinstance(dropout.rate, Tensor):
        if not 0 <= dropout.rate < 1:
            raise ValueError(f"the dropout rate must lie in [0, 1), but got {dropout.rate}. Use a rate such as 0.1.")
        if dropout.rate == 0:
            return DropoutSites(None, [None] * num_blocks)
    rate = dropout.rate if isinstance(dropout.rate, Tensor) else torch.tensor(dropout.rate)
    rate = rate.to(images.device, torch.float32, non_blocking=True)
    num_dropped = (rate * _LEVELS).floor()
    threshold = (num_dropped - _LEVELS // 2).to(torch.int32) * _LEVELS
    scale = _LEVELS / (_LEVELS - num_dropped)
    keys = _site_keys(dropout.seed.to(images.device, non_blocking=True), 1 + SITES_PER_BLOCK * num_blocks)
    earlier = dropout.first / len(images) if isinstance(dropout, DropoutOfPart) else 0.0
    embedding, *sites = (DropoutSite(key, threshold, scale, earlier) for key in keys.unbind(0))
    blocks = [BlockDropout(*sites[start : start + SITES_PER_BLOCK]) for start in range(0, len(sites), SITES_PER_BLOCK)]
    return DropoutSites(embedding, blocks)


def _site_keys(seed: Tensor, num_sites: int) -> Tensor:
    """Two int32 keys of each site, (num_sites, 2).

    Source: Steele, Lea and Flood 2014, SplitMix64 (doi:10.1145/2660193.2660195).
    """
    mixed = seed + torch.arange(1, num_sites + 1, device=seed.device) * _signed(0x9E3779B97F4A7C15, 64)
    mixed = (mixed ^ _shift_right(mixed, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    mixed = (mixed ^ _shift_right(mixed, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    mixed = mixed ^ _shift_right(mixed, 31, 64)
    return torch.stack((mixed << 32 >> 32, mixed >> 32), -1).to(torch.int32)


def _is_kept(start: int, count: int, keys: Tensor, threshold: Tensor, device: torch.device) -> Tensor:
    """Whether each of `count` values is kept, from value `start` on.

    There are two for each of the hashes of 0, 1, 2, ..., by the halves of its bits.

    The second key is added between the rounds: with one key only, the masks of two sites could be permutations of each
    other.

    Source: Appleby, MurmurHash3, the 32-bit finalizer (public domain).
    """
    first, second = keys.unbind(0)
    hashes = torch.arange(start // 2, (start + count + 1) // 2, dtype=torch.int32, device=device) ^ first
    hashes ^= _shift_right(hashes, 16, 32)
    hashes *= _signed(0x85EBCA6B, 32)
    hashes += second
    hashes ^= _shift_right(hashes, 13, 32)
    hashes *= _signed(0xC2B2AE35, 32)
    hashes ^= _shift_right(hashes, 16, 32)
    halves = torch.stack((hashes << 16 >= threshold, hashes >= threshold), -1).flatten()
    return halves[start % 2 : start % 2 + count]


def _shift_right(numbers: Tensor, count: int, num_bits: int) -> Tensor:
    """Logical shift to the right; the operator of torch copies the sign bit."""
    return (numbers >> count) & ((1 << (num_bits - count)) - 1)


def _signed(number: int, num_bits: int) -> int:
    """An unsigned constant as the signed integer with the same bits."""
    return number - (1 << num_bits) if number >> (num_bits - 1) else number
