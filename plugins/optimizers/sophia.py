"""Sophia: momentum divided by an estimate of the diagonal of the Hessian, with steps of limited size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-12
"""Smallest denominator, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Sophia:
    """Sophia-G as a plug-in.

    Source: Liu et al. 2024, arXiv:2305.14342, algorithm 3 with the estimator of algorithm 2.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Liu et al. 2024, arXiv:2305.14342, algorithm 3 with the Gauss-Newton-Bartlett estimate of the curvature "
            "(Sophia-G), which is that of the cross-entropy whatever the loss of the recipe"
        ),
        cost="two numbers of state per parameter, and one more forward and backward pass every `period` steps",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.96
    """Decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the running mean of curvatures, per estimate."""
    gamma: Annotated[float, Field(gt=0)] = 0.05
    """Factor of the curvature: the lower it is, the more steps have the largest size, the learning rate."""
    period: Annotated[int, Field(ge=1)] = 10
    """Number of steps from one estimate of the curvature to the next."""

    @property
    def observation_period(self) -> int:
        """Number of steps from one estimate to the next."""
        return self.period

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: zeros."""
        import torch

        return {
            "step": torch.zeros((), dtype=torch.float32),  # on the CPU, to be read without waiting for the device
            "exp_avg": torch.zeros_like(values),
            "curvature": torch.zeros_like(values),
        }

    def is_observation_due(self, state: OptimizerState) -> bool:
        """Whether the next step is the first, or `period` steps after the last one with an estimate."""
        return int(state["step"]) % self.period == 0

    def observe(
        self,
        layout: ParameterLayout,  # noqa: ARG002 - the protocol's signature
        sampled_gradient: "Tensor",
        num_images: int,
        state: OptimizerState,
    ) -> None:
        """Add an estimate of the diagonal of the Hessian, `num_images * g * g`, to its running mean."""
        scale = (1 - self.beta2) * num_images
        state["curvature"].mul_(self.beta2).addcmul_(sampled_gradient, sampled_gradient, value=scale)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place: `w -= lr clip(m / max(gamma h, eps), 1)` after weight decay."""
        state["step"].add_(1)
        mean = state["exp_avg"].lerp_(gradient, 1 - self.beta1)
        direction = mean / (self.gamma * state["curvature"]).clamp_(min=_SMALLEST)
        values[: layout.decay_end].mul_(1 - settings.learning_rate * settings.weight_decay)
        values.sub_(direction.clamp_(-1, 1), alpha=settings.learning_rate)
