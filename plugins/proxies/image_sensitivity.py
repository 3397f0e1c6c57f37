"""Image sensitivity: how much further apart a fresh network maps real images than noise."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class ImageSensitivity(PassProxy):
    """Distance between the features of different images, divided by that between the features of noise.

    A distance is the root mean square over all pairs of images, relative to the root mean square norm. The noise is
    Gaussian with the mean and standard deviation of each channel of the images. The features are those before the
    classifier. A network with a high score responds to structure that images have and noise lacks: on noise images the
    score is about 1 for every topology. Use the images of the target.

    Source: ours.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="ours; sensitivity of features to real images, relative to noise of the same mean and variance",
        cost="per repeat, one shared forward pass of the batch, and one forward pass each of the images and of noise",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over, each with other noise."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network.

        Raises:
            ValueError: There is only one image.
        """
        import torch

        images = recorded.candidate.images
        if len(images) < 2:
            raise ValueError(
                f"image-sensitivity compares images and needs at least 2, but got {len(images)}. Raise `batch_size`."
            )
        mean = images.mean((0, 2, 3), keepdim=True)
        std = images.std((0, 2, 3), keepdim=True, correction=0)
        noise = torch.randn(images.shape, generator=recorded.generator(), dtype=torch.float64).to(images)
        with torch.no_grad():
            features = [recorded.model.forward_features(batch) for batch in (images, mean + std * noise)]  # type: ignore[operator]
        real, random = (relative_spread(one) for one in features)
        return real / random if random > 0 else math.nan


def relative_spread(features: "Tensor") -> float:
    """Root mean square distance of different rows (B, D), divided by their root mean square norm."""
    rows = features.double()
    num_rows = len(rows)
    centred = float((rows - rows.mean(0)).square().sum())
    norms = float(rows.square().sum())
    return math.sqrt(2 * num_rows / (num_rows - 1) * centred / norms) if norms > 0 else math.nan
