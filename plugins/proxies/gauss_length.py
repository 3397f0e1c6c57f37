"""Gauss-map length: how far the tangent of the curve to which an untrained network maps a circle turns."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class GaussLength:
    """Length of the curve of unit tangents, computed by `plugins.proxies.input_circle.gauss_length`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chen et al. 2022 (As-ViT), arXiv:2202.11921; as in the formula, since the code has a bug; radius 1",
        cost=(
            "per repeat, one initialisation and one forward pass of 4 or 6 images (float64: `num_points`) with "
            "derivatives, shared by all curve scores"
        ),
        needs=("a model without normalisation",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 5
    """Number of fresh initialisations to average over, each with a different circle."""
    num_points: Annotated[int, Field(ge=2)] = 10
    """Number of points on the circle."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.circle_scores import score_circles
        from plugins.proxies.input_circle import gauss_length

        return score_circles(candidate, gauss_length, order=2, repeats=self.repeats, num_points=self.num_points)
