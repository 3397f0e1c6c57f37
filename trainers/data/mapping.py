"""Pixels that stay in a file: tensors on a memory map, and reading them without filling the memory.

A process counts the pages of a file that it has read as its own memory, although the system can drop them at any time.
The functions here give them back regularly, so that a set of images may be larger than the memory.
"""

import math
import mmap
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

_RELEASE_BYTES = 1 << 27
"""Number of bytes that may have been read from a map before its pages are given back."""
_AROUND_BYTES = 1 << 16
"""Linux maps this much around a page that is read."""
_SELECTED_AT_ONCE = 256


class _Map(mmap.mmap):
    num_read = 0
    """Number of bytes that may be resident."""


_maps: "WeakValueDictionary[int, _Map]" = WeakValueDictionary()
"""By address. A map lives as long as tensors that use it, even if its file is deleted."""


def map_pixels(descriptor: int, shape: tuple[int, ...]) -> Tensor:
    """The pixels at the beginning of an open file as a tensor, uint8, that must not be written to.

    The file may be closed, renamed or deleted afterwards.

    Raises:
        OSError: The file cannot be mapped.
        ValueError: The file is too short.
    """
    if 0 in shape:
        return torch.empty(shape, dtype=torch.uint8)
    mapped = _Map(descriptor, math.prod(shape), access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
        images = torch.from_numpy(np.frombuffer(mapped, dtype=np.uint8).reshape(shape))
    _maps[images.data_ptr()] = mapped
    return images


def is_mapped(images: Tensor) -> bool:
    """Whether a tensor is a part of a map."""
    return _map_of(images) is not None


def gather(images: Tensor, indices: Tensor) -> Tensor:
    """Copies of the images at `indices` (B,), on the device of the indices."""
    chosen = images.index_select(0, indices.to(images.device))  # on a CPU, 20 times as fast as `images[indices]`
    mapped = _map_of(images)
    if mapped is not None:
        _count(mapped, len(chosen) * (images[0].numel() + 2 * _AROUND_BYTES))
    return chosen.to(indices.device)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive images, at most `size` at a time."""
    mapped = _map_of(images)
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield batch
        if mapped is not None:
            _count(mapped, batch.numel())


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Both, one after the other; a view if they are neighbours in memory or in one file, so that nothing is copied."""
    are_neighbours = (
        first.is_contiguous()
        and second.is_contiguous()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and first.storage_offset() + first.numel() == second.storage_offset()
    )
    if not are_neighbours:
        return torch.cat([first, second])
    return first.as_strided((len(first) + len(second), *first.shape[1:]), first.stride(), first.storage_offset())


def select(images: Tensor, indices: Tensor, folder: Path) -> Tensor:
    """The images at `indices` (B,), in memory if `images` are; otherwise as a map of a new file without a name.

    Args:
        images: Shape (N, C, H, W).
        indices: In any order.
        folder: Where the file takes its space until no tensor uses it.
    """
    if not is_mapped(images):
        return images.index_select(0, indices)
    with tempfile.TemporaryFile(dir=folder) as file:
        for some in indices.split(_SELECTED_AT_ONCE):  # type: ignore[no-untyped-call]
            file.write(gather(images, some).numpy().data)
        file.flush()
        return map_pixels(file.fileno(), (len(indices), *images.shape[1:]))


def _map_of(images: Tensor) -> _Map | None:
    if not _maps or images.device.type != "cpu":
        return None
    return _maps.get(images.untyped_storage().data_ptr())


def _count(mapped: _Map, num_bytes: int) -> None:
    """Give all pages of a map back if many may be resident."""
    mapped.num_read += num_bytes
    if mapped.num_read >= _RELEASE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
        mapped.num_read = 0
