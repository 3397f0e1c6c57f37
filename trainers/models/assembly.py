"""Building a model from its topology: checks, initial weights, device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from search_spaces.base import ImageTask, SearchSpace, Topology

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class ModelBuilder(Generic[Model]):
    """A `models` plug-in: builds the models of a space.

    Args:
        model_type: Called with topology and task, and `generator`, `drop_path` and `normalization`; builds on the CPU.
        space: The space of the topologies.
    """

    model_type: Callable[..., Model]
    space: type[SearchSpace]

    def __call__(
        self,
        topology: Topology,
        task: ImageTask,
        *,
        drop_path: float = 0.0,
        normalization: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """A freshly initialised model; the same generator state gives the same weights on every device.

        Args:
            topology: The topology of the model.
            task: Image size, channels and classes.
            drop_path: Rate of the last block's stochastic depth, in [0, 1); it rises linearly from 0 in the first.
            normalization: False replaces every layer norm by the identity, as scores of curves need it.
            generator: Source of the weights, on the CPU; `None` is a new one with seed 0.
            device: Device of the model; the CPU by default.
            dtype: Type of the parameters, float32 by default. They are drawn in float32.

        Raises:
            ValueError: The topology does not fit the task, or the rate is outside [0, 1).
        """
        problem = self.space.problem(topology, task)
        if problem:
            raise ValueError(f"{topology.id} cannot be built: {problem}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"`drop_path` must lie in [0, 1), but got {drop_path}. Use a rate such as 0.1.")
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        model = self.model_type(topology, task, generator=source, drop_path=drop_path, normalization=normalization)
        if torch.device(device or "cpu").type == "cpu" and dtype in (None, torch.float32):
            return model
        return model.to(device=device, dtype=dtype)


@torch.no_grad()
def draw_linears(model: nn.Module, generator: torch.Generator, *, std: float) -> None:
    """Draw the weights of all linear layers from a normal distribution and set their biases to 0."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    draws = torch.empty(sum(linear.weight.numel() for linear in linears)).normal_(0.0, std, generator=generator)
    start = 0
    for linear in linears:
        stop = start + linear.weight.numel()
        linear.weight.copy_(draws[start:stop].view_as(linear.weight))
        start = stop
        if linear.bias is not None:
            linear.bias.zero_()


@torch.no_grad()
def draw_convolutions(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights and biases of all convolutions as torch does: uniformly within 1 / sqrt(fan-in) of 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            draw_uniform(module, fan_in**-0.5, generator)


@torch.no_grad()
def draw_uniform(layer: nn.Linear | nn.Conv2d, bound: float, generator: torch.Generator) -> None:
    """Draw weight and bias of a layer uniformly within `bound` of 0."""
    layer.weight.uniform_(-bound, bound, generator=generator)
    if layer.bias is not None:
        layer.bias.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def draw_normal(parameter: Tensor, generator: torch.Generator, *, std: float) -> None:
    """Draw a parameter from a normal distribution with mean 0."""
    parameter.normal_(0.0, std, generator=generator)
