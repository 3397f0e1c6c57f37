"""Shared parts of repeated scores: seeds and networks of the repeats, parallel work, mean and spread."""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from plugins.protocols import Candidate, ProxyScore

if TYPE_CHECKING:
    from torch import nn

SHARED_BYTES = 2**28
"""Maximum size of the networks of several repeats that are in memory together and kept for the next proxy."""

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


def _fit_in_memory(candidate: Candidate, count: int) -> bool:
    return count * candidate.costs.parameters * candidate.images.element_size() <= SHARED_BYTES


def on_all_cores(work: Callable[[Item], Result], items: Sequence[Item], *, device: str) -> Iterator[Result]:
    """Apply `work` to every item, with results in order. On a CPU, items run in parallel, one core per item.

    For small networks, one item per core is faster than sharing every operation between cores. On a machine with other
    load it is several times faster, since the cores do not wait for each other after each operation.
    """
    import torch

    num_threads = torch.get_num_threads()
    if device != "cpu" or num_threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(num_threads)
