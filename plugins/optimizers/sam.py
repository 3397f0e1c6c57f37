"""SAM: sharpness-aware minimisation, with the gradient at the worst nearby point."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.optimizers.adamw import AdamW
from plugins.optimizers.sgd import Sgd
from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    from torch import Tensor

_BASES: dict[str, AdamW | Sgd] = {"adamw": AdamW(), "sgd": Sgd()}


def worst_nearby(values: "Tensor", gradient: "Tensor", *, rho: float) -> "Tensor":
    """The point at the distance `rho` with the highest loss to first order: `values + rho * g / |g|`.

    Args:
        values: Parameters, shape (P,).
        gradient: Gradient `g`, shape (P,). If it is zero, the point is `values`.
        rho: Euclidean distance.

    Source: Foret et al. 2021, arXiv:2010.01412, eq. 2 with p = 2.
    """
    import torch

    length = torch.linalg.vector_norm(gradient).clamp_min(1e-12)
    point: torch.Tensor = values + gradient * (rho / length)
    return point


@dataclass(frozen=True, kw_only=True)
class Sam:
    """SAM as a plug-in: `worst_nearby`, then a step of another optimizer, the base."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Foret et al. 2021, arXiv:2010.01412; Chen et al. 2022, arXiv:2106.01548, for vision transformers",
        cost="two forward and backward passes per step instead of one; the state of the base",
    )
    rho: Annotated[float, Field(gt=0)] = 0.05
    """Euclidean distance, over all parameters, to the point of the gradient; 0.1 to 0.2 is usual for ViTs."""
    base: Literal["adamw", "sgd"] = "adamw"
    """The optimizer that takes the step, with its default settings."""

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:
        """The initial state of the base."""
        return _BASES[self.base].start(layout, values)

    def probe(
        self,
        layout: ParameterLayout,  # noqa: ARG002 - the protocol's signature
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,  # noqa: ARG002
        settings: StepSettings,  # noqa: ARG002
    ) -> "Tensor":
        """The point at which to compute the gradient; see `worst_nearby`."""
        return worst_nearby(values, gradient, rho=self.rho)

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take a step of the base with the gradient at the probed point, in place."""
        _BASES[self.base].update(layout, values, gradient, state, settings)
