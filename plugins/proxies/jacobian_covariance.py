"""Jacobian covariance: how differently an untrained network responds to changes in different images."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor

    from plugins.proxies.passes import RecordedPass

OFFSET = 1e-5
"""Number added to every eigenvalue, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class JacobianCovariance(PassProxy):
    """Computed by `eigenvalue_score` from the gradients of each image's summed logits with respect to its pixels."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Mellor et al. 2020, arXiv:2006.04647v1 (jacob_cov); as in Abdelfattah et al. 2021, arXiv:2101.08134",
        cost="per repeat, one forward pass, shared with other proxies, and one backward pass to the images",
        needs=("images",),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.passes import RecordedPart

        def differentiate(part: RecordedPart) -> "Tensor":
            (jacobian,) = torch.autograd.grad(part.logits.sum(), part.images, retain_graph=True)
            return jacobian.flatten(1)

        return eigenvalue_score(torch.cat(recorded.on_parts(differentiate)))


def eigenvalue_score(jacobians: "Tensor") -> float:
    """`-sum_i [log(v_i + k) + 1 / (v_i + k)]`, with `v_i` the eigenvalues of the images' correlation matrix.

    Args:
        jacobians: One row per image, shape (B, C H W).

    Returns:
        The score, which is highest for uncorrelated rows; nan if a row is constant or not finite.
    """
    import torch

    correlations = torch.corrcoef(jacobians.double()).reshape(len(jacobians), -1).cpu()
    if not bool(torch.isfinite(correlations).all()):
        return math.nan
    shifted = torch.linalg.eigvalsh(correlations) + OFFSET
    return -float((shifted.log() + 1 / shifted).sum())
