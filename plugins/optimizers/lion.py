"""Lion: the sign of a momentum, with decoupled weight decay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lion:
    """Lion as a plug-in.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Chen et al. 2023, arXiv:2302.06675, algorithm 2. Every number moves by the learning rate, so the authors "
            "advise a rate 3 to 10 times lower than AdamW's and a weight decay as many times higher"
        ),
        cost="one number of state per parameter",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the momentum in the step; the rest is the gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the momentum."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: zeros."""
        import torch

        return {"momentum": torch.zeros_like(values)}

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place: `w -= lr (sign(beta1 m + (1 - beta1) g) + decay w)`, then update the momentum."""
        momentum = state["momentum"]
        direction = momentum.lerp(gradient, 1 - self.beta1).sign_()
        values[: layout.decay_end].mul_(1 - settings.learning_rate * settings.weight_decay)
        values.sub_(direction, alpha=settings.learning_rate)
        momentum.lerp_(gradient, 1 - self.beta2)
