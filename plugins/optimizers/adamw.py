"""AdamW: adaptive learning rates with decoupled weight decay."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard, Segment
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
    layout: ParameterLayout,
    segments: tuple[Segment, ...],
    values: "Tensor",
    gradient: "Tensor",
    state: OptimizerState,
    *,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float = EPS,
) -> None:
    """Take one step of torch's fused AdamW on segments of a row, in place.

    This calls the kernel of `torch.optim.AdamW` directly. The optimizer would increment a step counter for each part,
    which takes three times as long as the arithmetic of a small model.

    Args:
        layout: Layout of the row.
        segments: Segments of the row in ascending order. Numbers outside them do not change.
        values: Parameters, shape (P,).
        gradient: Gradient, shape (P,); best the same tensor in each step, as its views are kept.
        state: State created by `start_adamw`.
        learning_rate: Learning rate of this step.
        weight_decay: Weight decay of the segments that have it.
        beta1: Decay rate of the running mean of gradients.
        beta2: Decay rate of the running mean of squared gradients.
        eps: Number added to the denominator.
    """
    import torch

    rows = (values, gradient, state["exp_avg"], state["exp_avg_sq"])
    pieces = list(zip(segments, *(layout.parts(segments, row) for row in rows), strict=True))
    step = state["step"].add_(1)
    for decays in (True, False):
        chosen = [piece[1:] for piece in pieces if piece[0].decays == decays]
        if not chosen:
            continue
        own_values, own_gradients, means, squares = zip(*chosen, strict=True)
        torch._fused_adamw_(
            own_values,
            own_gradients,
            means,
            squares,
            [],
            [step] * len(chosen),
            amsgrad=False,
            lr=learning_rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay if decays else 0.0,
            eps=eps,
            maximize=False,
        )


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
            layout,
            layout.segments,
            values,
            gradient,
            state,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
        )
