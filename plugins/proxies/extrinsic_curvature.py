"""Extrinsic curvature: how bent a curve the untrained network makes of a circle."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ExtrinsicCurvature:
    """As-ViT's curvature; the arithmetic is `plugins.proxies.input_circle.extrinsic_curvature`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chen et al. 2022 (As-ViT), arXiv:2202.11921; radius 1 and plain sum over the points, as in its code",
        cost="per repeat, one initialisation and one forward pass of `num_points` images with two derivatives",
        needs=("a model without normalisation",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 5
    num_points: Annotated[int, Field(ge=2)] = 10

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.input_circle import curve_acceleration, extrinsic_curvature, score_curves
        from plugins.proxies.repeats import summarize

        def measure(features: "Callable[[Tensor], Tensor]", angles: "Tensor", basis: "Tensor") -> "Tensor":
            return extrinsic_curvature(*curve_acceleration(features, angles, basis))

        return summarize(score_curves(candidate, measure, repeats=self.repeats, num_points=self.num_points))
