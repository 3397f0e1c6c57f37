"""Building a model from its topology: checks, initial weights, device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from search_spaces.base import ImageTask, SearchSpace, Topology

Model = TypeVar("Model", bound=nn.Module)
Source = torch.Generator | Sequence[torch.Generator]
"""Source of initial weights, on the CPU. Several generators stack the weights of as many networks; see
`trainers.models.stacking`."""


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
        if not 0 <= drop_path < 1:
            raise ValueError(f"`drop_path` must lie in [0, 1), but got {drop_path}. Use a rate such as 0.1.")
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        return self._build(topology, task, source, device, dtype, drop_path=drop_path, normalization=normalization)

    def stack(
        self,
        topology: Topology,
        task: ImageTask,
        *,
        generators: Sequence[torch.Generator],
        normalization: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Model:
        """Fresh networks of one topology as one module that computes all of them; see `trainers.models.stacking`.

        Args:
            topology: The topology of all networks.
            task: Image size, channels and classes.
            generators: The source of each network's weights; a network equals the model built with its generator.
            normalization: See `__call__`.
            device: See `__call__`.
            dtype: See `__call__`.

        Raises:
            ValueError: The topology does not fit the task.
        """
        return self._build(topology, task, tuple(generators), device, dtype, normalization=normalization)

    def _build(
        self,
        topology: Topology,
        task: ImageTask,
        source: Source,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **settings: Any,
    ) -> Model:
        problem = self.space.problem(topology, task)
        if problem:
            raise ValueError(f"{topology.id} cannot be built: {problem}")
        model = self.model_type(topology, task, generator=source, **settings)
        if torch.device(device or "cpu").type == "cpu" and dtype in (None, torch.float32):
            return model
        return model.to(device=device, dtype=dtype)


def draw_linears(model: nn.Module, source: Source, *, std: float) -> None:
    """Draw the weights of all linear layers from a normal distribution and set their biases to 0."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    _draw([(linear, "weight") for linear in linears], source, _normal(std))
    with torch.no_grad():
        for linear in linears:
            if linear.bias is not None:
                linear.bias.zero_()


def draw_convolutions(model: nn.Module, source: Source) -> None:
    """Draw weights and biases of all convolutions as torch does: uniformly within 1 / sqrt(fan-in) of 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            draw_uniform(module, fan_in**-0.5, source)


def draw_uniform(layer: nn.Linear | nn.Conv2d, bound: float, source: Source) -> None:
    """Draw weight and bias of a layer uniformly within `bound` of 0."""

    def fill(values: Tensor, generator: torch.Generator) -> Tensor:
        return values.uniform_(-bound, bound, generator=generator)

    for name in ("weight", "bias") if layer.bias is not None else ("weight",):
        _draw([(layer, name)], source, fill)


def draw_normal(model: nn.Module, name: str, source: Source, *, std: float) -> None:
    """Draw a parameter (1, ...) of a model from a normal distribution with mean 0; stacked, it is (R, ...)."""
    _draw([(model, name)], source, _normal(std))
    if not isinstance(source, torch.Generator):
        setattr(model, name, nn.Parameter(model.get_parameter(name).detach().squeeze(1)))


def _normal(std: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda values, generator: values.normal_(0.0, std, generator=generator)


@torch.no_grad()
def _draw(
    parameters: Sequence[tuple[nn.Module, str]], source: Source, fill: Callable[[Tensor, torch.Generator], Tensor]
) -> None:
    """Draw parameters together, as one vector per generator.

    With several generators, each parameter is replaced by one of shape (R, ...) without copying: the parameters are
    views of the vectors.
    """
    shapes = [module.get_parameter(name).shape for module, name in parameters]
    sizes = [shape.numel() for shape in shapes]
    generators = [source] if isinstance(source, torch.Generator) else source
    vectors = torch.empty(len(generators), sum(sizes))
    for vector, generator in zip(vectors, generators, strict=True):
        fill(vector, generator)
    for (module, name), shape, values in zip(parameters, shapes, torch.split(vectors, sizes, 1), strict=True):
        if isinstance(source, torch.Generator):
            module.get_parameter(name).copy_(values.view(shape))
        else:
            setattr(module, name, nn.Parameter(values.view(-1, *shape)))
