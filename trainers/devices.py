"""Which device a worker computes on, and where its random numbers come from."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MACS_PER_THREAD = 10**9
"""Work of one step below which a further CPU thread costs more in waiting than it brings on a busy machine."""


def pick_device() -> torch.device:
    """The current CUDA GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        # TF32 where bf16 autocast leaves float32 (the head's loss, the evaluation of saved weights).
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def cpu_threads(step_macs: float) -> Iterator[None]:
    """While inside, torch uses no more CPU threads than a step of `step_macs` multiply-accumulates can feed.

    Threads of a tiny step spin while they wait for each other: with another process on the same cores, a training that
    takes 11 s with one thread was seen to take 169 s with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, int(step_macs // _MACS_PER_THREAD))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU that has it; everything in float32 elsewhere."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed below 2^63 for one purpose: `derive_seed(7, "order", epoch)`. Different arguments give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *numbers))
