"""AdamW: adaptive learning rates with decoupled weight decay."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-8
"""Number added to the denominator, as in `torch.optim.AdamW`."""


def start_adamw(values: "Tensor") -> OptimizerState:
    """The state of AdamW before the first step, for parameters (P,)."""
    import torch

    return {
        "step": torch.zeros((), dtype=torch.float32, device=values.device),
        "exp_avg": torch.zeros_like(values),
        "exp_avg_sq": torch.zeros_like(values),
    }


def update_adamw(
    parts: Iterable[tuple[slice, float]],
    values: "Tensor",
    gradient: "Tensor",
    state: OptimizerState,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float = EPS,
) -> None:
    """Take one step of torch's fused AdamW on parts of a row, in place.

    Args:
        parts: Slices of the row, each with its weight decay. Numbers outside the slices do not change.
        values: Parameters, shape (P,).
        gradient: Gradient, shape (P,).
        state: State created by `start_adamw`.
        learning_rate: Learning rate of this step.
        beta1: Decay rate of the running mean of gradients.
        beta2: Decay rate of the running mean of squared gradients.
        eps: Number added to the denominator.
    """
    from torch.optim.adamw import adamw

    by_decay: dict[float, list[slice]] = {}
    for part, decay in parts:
        by_decay.setdefault(decay, []).append(part)
    for decay, slices in by_decay.items():
        adamw(
            [values[part] for part in slices],
            [gradient[part] for part in slices],
            [state["exp_avg"][part] for part in slices],
            [state["exp_avg_sq"][part] for part in slices],
            [],
            list(state["step"].repeat(len(slices)).unbind()),  # torch increments the step counter of each slice
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=learning_rate,
            weight_decay=decay,
            eps=eps,
            maximize=False,
        )
    state["step"].add_(1)


def decayed_parts(layout: ParameterLayout, weight_decay: float) -> list[tuple[slice, float]]:
    """The segments of a row, each with its weight decay."""
    return [(part, weight_decay if decays else 0.0) for part, decays in layout.segments]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW as a plug-in; torch's fused kernel does the arithmetic."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Loshchilov and Hutter 2019, arXiv:1711.05101; as `torch.optim.AdamW`",
        cost="two numbers of state per parameter",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = EPS
    """Number added to the denominator."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:  # noqa: ARG002 - the protocol's
        """The initial state: zeros."""
        return start_adamw(values)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place; see `update_adamw`."""
        update_adamw(
            decayed_parts(layout, settings.weight_decay),
            values,
            gradient,
            state,
            learning_rate=settings.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
        )
