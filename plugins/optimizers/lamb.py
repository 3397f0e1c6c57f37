"""LAMB: Adam with a step whose length is proportional to the norm of each layer's weights, for large batches."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.optimizers.layer_norms import norms_of, scale_each
from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lamb:
    """LAMB as a plug-in.

    Source: You et al. 2020, arXiv:1904.00962, algorithm 2, with the identity as the function of the norm.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "You et al. 2020, arXiv:1904.00962, algorithm 2. A layer is one parameter. Biases, norms, positions and "
            "the class token have plain Adam steps, because their norm may be near 0 at the start"
        ),
        cost="two numbers of state per parameter, and two norms per parameter and step",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Number added to the denominator."""

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
        """Take one step, in place: each layer moves by `lr |w| / |u|` times its Adam step `u` with weight decay."""
        import torch

        step = float(state["step"].add_(1))
        mean = state["exp_avg"].lerp_(gradient, 1 - self.beta1)
        square = state["exp_avg_sq"].mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = (square / (1 - self.beta2**step)).sqrt_().add_(self.eps)
        direction = (mean / (1 - self.beta1**step)).div_(root)
        decayed = slice(0, layout.decay_end)
        direction[decayed].add_(values[decayed], alpha=settings.weight_decay)
        lengths, weights = norms_of(layout, direction), norms_of(layout, values)
        ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
        ratios[layout.num_decayed :] = 1.0
        scale_each(layout, direction, ratios)
        values.sub_(direction, alpha=settings.learning_rate)
