"""Shared parts of repeated scores: seeds and networks of the repeats, parallel work, mean and spread."""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from plugins.protocols import Candidate, ProxyScore

if TYPE_CHECKING:
    from torch import nn

SHARED_BYTES = 2**28
"""Maximum size of the networks of several repeats that are in memory together and kept for the next proxy."""

STACKED_NETWORKS = 8
"""Maximum number of networks that a CPU computes at once; larger stacks are not faster."""
STACKED_PIXELS = 7 * 2**10
"""Maximum number of pixels of an image times networks in a stack on a CPU: 7 networks at 32 px, one at 64 px. There,
arithmetic dominates, and stacks gain nothing."""
DEVICE_PIXELS = 2**23
"""Maximum number of pixels of a batch times networks in a stack on other devices."""

_CORES: ContextVar[int | None] = ContextVar("cores", default=None)

Item = TypeVar("Item")
Result = TypeVar("Result")


def repeat_seeds(seed: int, repeats: int) -> tuple[int, ...]:
    """One independent seed per repeat, determined by `seed`. More repeats append seeds to the same sequence."""
    rng = random.Random(seed)
    return tuple(rng.getrandbits(62) for _ in range(repeats))


def summarize(values: Sequence[float]) -> ProxyScore:
    """Mean and standard deviation (ddof 1) over the repeats; the mean is nan if any value is not finite."""
    if not all(math.isfinite(value) for value in values):
        return ProxyScore(math.nan)
    return ProxyScore(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def seed_groups(candidate: Candidate, repeats: int) -> list[tuple[int, ...]]:
    """The seeds of the repeats: one group if all networks fit in memory together, otherwise one group per seed."""
    seeds = repeat_seeds(candidate.seed, repeats)
    return [seeds] if _fit_in_memory(candidate, repeats) else [(seed,) for seed in seeds]


def networks(candidate: Candidate, seeds: Sequence[int]) -> "list[nn.Module]":
    """The candidate's fresh networks, with normalisation. Proxies share them and must not modify them."""
    kept = candidate.shared.setdefault("networks", {})
    missing = [seed for seed in seeds if seed not in kept]
    built = on_all_cores(lambda seed: candidate.build(seed=seed), missing, device="cpu")
    found = dict(zip(missing, built, strict=True))
    if _fit_in_memory(candidate, len(kept) + len(missing)):
        kept.update(found)
    return [found[seed] if seed in found else kept[seed] for seed in seeds]


class NetworkStack(NamedTuple):
    """Networks of one topology that are computed together; a single one is an ordinary model."""

    module: Any
    """See `plugins.protocols.Candidate.build_stack`."""
    num_networks: int = 1


def network_stacks(candidate: Candidate, seeds: Sequence[int]) -> list[NetworkStack]:
    """The candidate's fresh networks like `networks`, in order, with several in a stack if the images are small."""
    size = _stack_size(candidate, len(seeds))
    if size == 1:
        return [NetworkStack(model) for model in networks(candidate, seeds)]
    build_stack = candidate.build_stack
    assert build_stack is not None

    def build(group: tuple[int, ...]) -> NetworkStack:
        if len(group) == 1:
            return NetworkStack(candidate.build(seed=group[0]))
        return NetworkStack(build_stack(seeds=group), len(group))

    kept = candidate.shared.setdefault("network stacks", {})
    groups = [tuple(seeds[start : start + size]) for start in range(0, len(seeds), size)]
    missing = [group for group in groups if group not in kept]
    found = dict(zip(missing, on_all_cores(build, missing, device="cpu"), strict=True))
    if _fit_in_memory(candidate, sum(map(len, [*kept, *missing]))):
        kept.update(found)
    return [found[group] if group in found else kept[group] for group in groups]


def _stack_size(candidate: Candidate, count: int) -> int:
    """Number of networks in a stack, out of `count`."""
    if candidate.build_stack is None:
        return 1
    images = candidate.images
    pixels = images[0, 0].numel()
    if images.device.type != "cpu":
        return max(1, min(count, DEVICE_PIXELS // (len(images) * pixels)))
    on_each_core = math.ceil(count / num_cores())
    return max(1, min(on_each_core, STACKED_NETWORKS, STACKED_PIXELS // pixels))


def _fit_in_memory(candidate: Candidate, count: int) -> bool:
    return count * candidate.costs.parameters * candidate.images.element_size() <= SHARED_BYTES


def on_all_cores(work: Callable[[Item], Result], items: Sequence[Item], *, device: str) -> Iterator[Result]:
    """Apply `work` to every item, with results in order. On a CPU, items run in parallel, one core per item.

    For small networks, one item per core is faster than sharing every operation between cores. On a machine with other
    load it is several times faster, since the cores do not wait for each other after each operation.
    """
    import torch

    cores, num_threads = num_cores(), torch.get_num_threads()
    if device != "cpu" or cores == 1 or len(items) < 2:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(num_threads)


def num_cores() -> int:
    """Number of CPU cores that `on_all_cores` uses."""
    import torch

    return _CORES.get() or torch.get_num_threads()


@contextmanager
def one_core_per_operation() -> Iterator[None]:
    """Inside, each operation on a CPU uses one core, while `on_all_cores` uses as many as outside.

    This is for small operations between parallel work. On a busy machine, waiting for a second thread that has no core
    takes up to a thousand times as long as the operation.
    """
    import torch

    num_threads = torch.get_num_threads()
    token = _CORES.set(num_cores())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        _CORES.reset(token)
