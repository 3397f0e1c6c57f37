"""Length distortion: the length of the curve to which an untrained network maps a circle."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class LengthDistortion:
    """As-ViT's length distortion, computed by `plugins.proxies.input_circle.length_distortion`."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Chen et al. 2022 (As-ViT), arXiv:2202.11921; radius 1, plain sum over points, as in the authors' code",
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
        from plugins.proxies.input_circle import length_distortion

        return score_circles(candidate, length_distortion, order=1, repeats=self.repeats, num_points=self.num_points)
