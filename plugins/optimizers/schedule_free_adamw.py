"""Schedule-free AdamW: AdamW whose weights are averaged while it trains, so that no decay of the rate is needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW:
    """Schedule-free AdamW as a plug-in.

    Gradients are computed at `y = beta1 x + (1 - beta1) z`. AdamW without momentum moves `z`; `x`, the mean of all `z`
    weighted by the squared learning rate, is evaluated and saved.

    Source: Defazio et al. 2024, arXiv:2405.15682; as `schedulefree.AdamWScheduleFree`.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Defazio et al. 2024, arXiv:2405.15682; as `AdamWScheduleFree` of the package schedulefree 1.4. The "
            "warm-up is the recipe's; the schedule should be `constant`, the learning rate 1 to 10 times AdamW's"
        ),
        cost="two numbers of state per parameter, and one more row of weights in evaluation",
    )
    applies_rates: ClassVar[bool] = True
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the average in the weights at which gradients are computed."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Number added to the denominator."""
    rate_power: Annotated[float, Field(ge=0)] = 2.0
    """Power of the largest learning rate so far in the weights of the average."""
    step_power: Annotated[float, Field(ge=0)] = 0.0
    """Power of the number of the step in the weights of the average."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: `z` is the initial weights."""
        import torch

        def number() -> torch.Tensor:  # on the CPU, to be read without waiting for the device
            return torch.zeros((), dtype=torch.float64)

        return {
            "step": number(),
            "largest_rate": number(),
            "weight_sum": number(),
            "exp_avg_sq": torch.zeros_like(values),
            "z": values.detach().clone(),
        }

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place; `values` are `y`."""
        rate, z = settings.learning_rate, state["z"]
        step = float(state["step"].add_(1))
        largest = max(float(state["largest_rate"]), rate)
        state["largest_rate"].fill_(largest)
        weight = step**self.step_power * largest**self.rate_power
        total = float(state["weight_sum"].add_(weight))
        share = weight / total if total > 0 else 0.0
        square = state["exp_avg_sq"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        direction = gradient.div_((square / (1 - self.beta2**step)).sqrt_().add_(self.eps))
        decayed = slice(0, layout.decay_end)
        direction[decayed].add_(values[decayed], alpha=settings.weight_decay)
        factors = layout.rate_factors(values)
        if factors is not None:
            direction.mul_(factors)
        values.lerp_(z, share).add_(direction, alpha=rate * (self.beta1 * (1 - share) - 1))
        z.sub_(direction, alpha=rate)

    def evaluated(
        self,
        layout: ParameterLayout,  # noqa: ARG002 - the protocol's signature
        values: "Tensor",
        state: OptimizerState,
    ) -> "Tensor":
        """The average `x`."""
        average: Tensor = values.lerp(state["z"], 1 - 1 / self.beta1)
        return average
