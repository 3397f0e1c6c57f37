"""TVLARS: layer-wise rates for large batches that start high and fall by themselves, instead of a warm-up."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.layer_norms import norms_of, scale_each
from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tvlars:
    """TVLARS as a plug-in: LARS with a rate that varies with time.

    Source: Do et al. 2023, arXiv:2309.14053.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Do et al. 2023, arXiv:2309.14053. The authors' code (https://github.com/KhoiDOO/tvlars) has `eta` 0.001, "
            "no floor and a factor of 1 during the delay, and treats biases and norms like matrices; here they have "
            "neither layer-wise rates nor weight decay. With the defaults, a step is at first about 10 times the "
            "learning rate as long as the weights"
        ),
        cost="one number of state per parameter, and two norms per parameter and step",
    )
    eta: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the layer-wise rates."""
    alpha: Annotated[float, Field(gt=0)] = 0.1
    """Bound of the rates during the delay: they are at most `1 / alpha`."""
    decay: Annotated[float, Field(ge=0)] = 0.001
    """Exponent λ per step of the fall of the rates; the authors use 1e-6 to 1e-2."""
    delay_steps: Annotated[int, Field(ge=0)] = 0
    """Number of steps before the fall."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """Number added to the falling factor, which tends to 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Fraction of the last update that is kept."""
    largest_norm: Annotated[float, Field(gt=0)] = 10.0
    """Norms of weights and gradients are limited to this number."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: zeros."""
        import torch

        return {"step": torch.zeros((), dtype=torch.float32), "momentum_buffer": torch.zeros_like(values)}

    def factor(self, step: int) -> float:
        """Factor of the layer-wise rates in a step, from 1: `1 / (alpha + exp(decay (step - delay))) + floor`."""
        exponent = min(self.decay * (step - self.delay_steps), 700.0)  # e^709 is the largest float
        return 1 / (self.alpha + math.exp(exponent)) + self.floor

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place: SGD with momentum on gradients of the length `eta * factor * |w|`."""
        import torch

        step = int(state["step"].add_(1))
        decayed = slice(0, layout.decay_end)
        gradient[decayed].add_(values[decayed], alpha=settings.weight_decay)
        weights = norms_of(layout, values).clamp_(max=self.largest_norm)
        lengths = norms_of(layout, gradient).clamp_(max=self.largest_norm)
        ratios = self.eta * self.factor(step) * weights / lengths
        ratios = torch.where((weights > 0) & (lengths > 0), ratios, 1.0)
        ratios[layout.num_decayed :] = 1.0
        scale_each(layout, gradient, ratios)
        momentum = state["momentum_buffer"].mul_(self.momentum).add_(gradient)
        values.sub_(momentum, alpha=settings.learning_rate)
