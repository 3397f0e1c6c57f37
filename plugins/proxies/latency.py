"""Measured time of a forward pass on the scoring device."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median time of several passes in milliseconds; the spread is their standard deviation.

    The passes run on the device and in the dtype of the images, with all threads of torch, after a warm-up that does
    not count. Latency is the only score that the seed does not determine, and other load on the machine increases it.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="a measured baseline; milliseconds of one forward pass without gradients",
        cost="one initialisation, `warm_up` and `repeats` forward passes of `batch_size` images",
        needs=("images", "a quiet machine"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    is_timing: ClassVar[bool] = True
    """Not part of `all` where scores are judged: it must be asked for by name."""
    repeats: Annotated[int, Field(ge=1)] = 10
    """Number of timed passes."""
    warm_up: Annotated[int, Field(ge=0)] = 3
    """Number of passes before the timed ones."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Images per pass. If the scoring batch has fewer images, they are repeated."""

    def score(self, candidate: Candidate) -> ProxyScore:
        import torch

        from plugins.proxies.repeats import networks, repeat_seeds

        (model,) = networks(candidate, repeat_seeds(candidate.seed, 1))
        copies = math.ceil(self.batch_size / len(candidate.images))
        images = candidate.images.repeat(copies, 1, 1, 1)[: self.batch_size].contiguous()
        with torch.no_grad():
            passes = [timed(lambda: model(images), images.device) for _ in range(self.warm_up + self.repeats)]
        counted = passes[self.warm_up :]
        spread = statistics.stdev(counted) if len(counted) > 1 else 0.0
        return ProxyScore(statistics.median(counted), spread)


def timed(work: Callable[[], object], device: "torch.device") -> float:
    """Milliseconds that `work` takes on a device, including asynchronous work that it starts."""
    import torch

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return 1000 * (time.perf_counter() - start)
