"""SGD: stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """SGD as a plug-in. Weight decay is added to the gradient, so its effect grows with the learning rate."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Sutskever et al. 2013 (momentum, Nesterov); as `torch.optim.SGD`",
        cost="one number of state per parameter, none if `momentum` is 0",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Fraction of the last update that is kept; 0 for plain gradient descent."""
    nesterov: bool = False
    """Whether to look ahead along the momentum (Nesterov)."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "`nesterov` needs a `momentum` above 0, but got momentum=0. Raise `momentum` or remove `nesterov`."
            )

    def start(
        self,
        layout: ParameterLayout,  # noqa: ARG002 - the protocol's signature
        values: "Tensor",
    ) -> OptimizerState:
        """The initial state: zeros, or no state if the momentum is 0."""
        import torch

        return {"momentum_buffer": torch.zeros_like(values)} if self.momentum else {}

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step of `torch.optim.SGD`, in place."""
        from torch.optim.sgd import sgd

        for segment in layout.segments:
            part = slice(segment.start, segment.stop)
            sgd(
                [values[part]],
                [gradient[part]],
                [state["momentum_buffer"][part] if self.momentum else None],
                foreach=False,
                weight_decay=settings.weight_decay if segment.decays else 0.0,
                momentum=self.momentum,
                lr=settings.learning_rate,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
            )
