"""The latency of a topology: the time of one image's forward pass."""

import torch

from plugins.proxies.latency import Latency
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from trainers.hardware.devices import pick_device
from trainers.tasks.scoring import make_candidate


def measure_latency(topology: str, image_task: ImageTask, *, repeats: int = 10) -> float:
    """Median time in milliseconds, over several passes on this machine's device.

    Args:
        topology: `space:text`.
        image_task: Image size, channels and classes.
        repeats: Number of timed passes, after a warm-up.
    """
    size = image_task.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, image_task.in_channels, size, size, generator=generator).to(pick_device())
    candidate = make_candidate(parse_topology(topology), images, image_task, seed=0)
    return Latency(repeats=repeats, warm_up=5).score(candidate).value
