"""TVT: a fresh network that looks where a convolutional teacher looks, and has large weights."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass

TEACHER_SEED = 0
TEACHER_WIDTHS = (32, 64, 128)
"""Channels of the stages of the teacher; each halves the map."""


@dataclass(frozen=True, kw_only=True)
class Tvt(PassProxy):
    """`s ||W||_2`, with `s` the mean over blocks and images of the similarity to the teacher's spatial attention map.

    A spatial attention map is the mean square of the features at each position. The student's maps are those of what
    the attention of each block adds to the residual stream, without a class token. The teacher's map is scaled to the
    student's grid, and the similarity of two maps is `(1 + r) / 2` with their correlation `r`; a constant map has
    `r = 0`. `||W||_2` is the norm of all weights of linear and convolution layers.

    The authors' teacher is a trained ConvNet. There is none here, and nothing is downloaded: the teacher consists of
    three random convolutions with ReLU, the same for all topologies. Its maps follow edges and contrast, which is what
    maps of convolutional networks have in common, and not the classes of the target.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Wei et al. 2023 (TVT), arXiv:2311.14337, from its abstract; the teacher is an untrained ConvNet, and "
        "maps are those of features instead of attention weights",
        cost="per repeat, one forward pass of the batch, shared with other proxies, and one of a small ConvNet",
        needs=("images", "a topology that merges no tokens"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        from plugins.proxies.block_features import is_finite, map_blocks, require_all_tokens
        from plugins.proxies.passes import sum_of

        require_all_tokens(recorded, "tvt")
        if not is_finite(recorded):
            return math.nan
        teacher = teacher_map(recorded.candidate.images)

        def similarity(added: "Tensor") -> float:
            return map_similarity(added.square().mean(-1), teacher)

        found = map_blocks(recorded, lambda block: block.stream[1] - block.stream[0], similarity)
        squares = sum_of(layer.get_parameter("weight").detach().square().sum() for layer in recorded.layers.values())
        return statistics.fmean(found) * math.sqrt(squares)


def teacher_map(images: "Tensor") -> "Tensor":
    """Spatial attention map (B, 1, h, w) of the fixed ConvNet for images (B, C, H, W)."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(TEACHER_SEED)
    features = images
    for width in TEACHER_WIDTHS:
        fan_in = 9 * features.shape[1]
        weight = torch.randn(width, features.shape[1], 3, 3, generator=generator, dtype=torch.float64)
        features = F.conv2d(features, (weight * math.sqrt(2 / fan_in)).to(features), stride=2, padding=1).relu()
    return features.square().mean(1, keepdim=True)


def map_similarity(student: "Tensor", teacher: "Tensor") -> float:
    """`(1 + r) / 2` with the mean correlation `r` of the maps of the images.

    Args:
        student: Maps as sequences, (B, N); a first token in addition to a square grid is the class token.
        teacher: Maps (B, 1, h, w).

    Raises:
        ValueError: The tokens are no square grid.
    """
    import torch
    import torch.nn.functional as F

    side = math.isqrt(student.shape[1])
    tokens = student[:, student.shape[1] - side**2 :]
    if student.shape[1] - side**2 not in (0, 1):
        raise ValueError(
            f"tvt needs a square grid of tokens, with or without a class token, but got {student.shape[1]} tokens. "
            "Remove the proxy from the study."
        )
    target = F.interpolate(teacher, size=(side, side), mode="bilinear", antialias=True).flatten(1).double()
    rows = tokens.double()
    rows, target = rows - rows.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    lengths = rows.norm(dim=1) * target.norm(dim=1)
    correlations = torch.where(lengths > 0, (rows * target).sum(1) / lengths.clamp(min=1e-300), 0.0)
    return float((1 + correlations.mean()) / 2)
