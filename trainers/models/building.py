"""Models and costs of topologies, by the plug-ins of their search space."""

import torch
from torch import nn

from plugins.registry import load, parse_topology
from search_spaces.base import Costs, ImageTask
from trainers.hardware.devices import make_generator


def build_model(
    topology: str, task: ImageTask, *, seed: int, device: torch.device, drop_path: float = 0.0
) -> nn.Module:
    """A freshly initialised model; the same seed gives the same weights on every device.

    Args:
        topology: `space:text`.
        task: Image size, channels and classes.
        seed: The trial's seed.
        device: Device of the model.
        drop_path: Drop-path rate of the last block.

    Raises:
        ValueError: The topology cannot be parsed or built.
    """
    build = load("models", space_of(topology))
    model: nn.Module = build(
        parse_topology(topology),
        task,
        drop_path=drop_path,
        generator=make_generator(seed, "weights"),
        device=device,
    )
    return model


def topology_costs(topology: str, task: ImageTask, **options: int) -> Costs:
    """Closed-form parameters and MACs.

    Args:
        topology: `space:text`.
        task: Image size, channels and classes.
        options: Options of the model's `forward` that change its cost.
    """
    costs: Costs = load("spaces", space_of(topology)).costs(parse_topology(topology), task, **options)
    return costs


def training_options(topology: str) -> dict[str, int]:
    """Options of `topology_costs` that hold in training only: auxiliary heads are computed.

    Args:
        topology: `space:text`.
    """
    options = getattr(parse_topology(topology), "options", None)
    return {"auxiliary": True} if getattr(options, "deep_supervision", False) else {}


def fitting_image_sizes(topology: str, task: ImageTask) -> tuple[int, ...]:
    """Image sizes, ascending up to the task's, that a model built for the task accepts in its `forward`.

    Args:
        topology: `space:text`.
        task: Image size, channels and classes that the model is built for.
    """
    space, parsed = load("spaces", space_of(topology)), parse_topology(topology)
    sizes = range(1, task.image_size + 1)
    return tuple(size for size in sizes if space.problem(parsed, task.model_copy(update={"image_size": size})) is None)


def space_of(topology: str) -> str:
    """Name of the topology's search space, the part before the colon."""
    return topology.partition(":")[0]
