"""Which device a worker computes on, and where its random numbers come from."""

import hashlib

import torch


def pick_device() -> torch.device:
    """The current CUDA GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        # TF32 where bf16 autocast leaves float32 (the head's loss, the evaluation of saved weights).
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


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
