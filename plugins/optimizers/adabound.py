"""AdaBound: Adam whose learning rate per number is bounded more and more narrowly, until it is that of SGD."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdaBound:
    """AdaBound as a plug-in, with decoupled weight decay.

    Source: Luo et al. 2019, arXiv:1902.09843, algorithm 2 with the bounds of the authors' code.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Luo et al. 2019, arXiv:1902.09843, with the authors' bounds and decoupled weight decay (their AdaBoundW). "
            "The final rate of SGD is a factor of the learning rate; theirs, 0.1 for a rate of 0.001, is 100"
        ),
        cost="two numbers of state per parameter",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Number added to the denominator."""
    final_factor: Annotated[float, Field(gt=0)] = 100.0
    """Rate to which both bounds converge, as a factor of the learning rate."""
    gamma: Annotated[float, Field(gt=0)] = 1e-3
    """Speed at which the bounds converge, per step."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: zeros."""
        import torch

        return {
            "step": torch.zeros((), dtype=torch.float32),  # on the CPU, to be read without waiting for the device
            "exp_avg": torch.zeros_like(values),
            "exp_avg_sq": torch.zeros_like(values),
        }

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place: `w -= lr clip(adam rate, lower, upper) m` after weight decay."""
        step = float(state["step"].add_(1))
        mean = state["exp_avg"].lerp_(gradient, 1 - self.beta1)
        square = state["exp_avg_sq"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        correction = (1 - self.beta2**step) ** 0.5 / (1 - self.beta1**step)
        lower = self.final_factor * (1 - 1 / (self.gamma * step + 1))
        upper = self.final_factor * (1 + 1 / (self.gamma * step))
        factors = square.sqrt().add_(self.eps).reciprocal_().mul_(correction).clamp_(lower, upper)
        values[: layout.decay_end].mul_(1 - settings.learning_rate * settings.weight_decay)
        values.addcmul_(factors, mean, value=-settings.learning_rate)
