"""Size residual: what several scores say about topologies beyond their size, fitted on the pool without accuracies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SizeResidual:
    """Mean standardised residual of four scores after a linear fit on the logarithms of parameters and MACs.

    The fit is over the topologies of the pool and uses no accuracies, so the score answers the question which of two
    topologies of like size is better, and nothing else. Use it together with limits on the size.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="ours; scores with the influence of size removed within the pool",
        cost="arithmetic on the scores params, flops, az-expressivity, zico, nwot and swap",
        needs=("params", "flops", "az-expressivity", "zico", "nwot", "swap"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    parts: ClassVar[tuple[str, ...]] = ("params", "flops", "az-expressivity", "zico", "nwot", "swap")

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        import numpy as np

        sizes = [scores[name] for name in self.parts[:2]]
        rests = [beyond_size(scores[name], *sizes) for name in self.parts[2:]]
        return [float(value) for value in np.mean(rests, axis=0)]


def beyond_size(score: Sequence[float], params: Sequence[float], macs: Sequence[float]) -> "NDArray[np.float64]":
    """Standardised residual of a score after least squares on `log params` and `log macs`.

    Args:
        score: One value per topology.
        params: Number of parameters, positive.
        macs: Multiply-accumulates, positive.

    Returns:
        Residuals with mean 0 and standard deviation 1 over the topologies with finite values. They are 0 if size
        explains the score, to rounding, and nan for topologies with a value that is not finite or a size that is not
        positive.
    """
    import numpy as np

    values = np.asarray(score, dtype=float)
    sizes = np.column_stack([np.asarray(params, dtype=float), np.asarray(macs, dtype=float)])
    known = np.isfinite(values) & np.isfinite(sizes).all(1) & (sizes > 0).all(1)
    found = np.full(len(values), math.nan)
    if not known.any():
        return found
    logs = np.log(sizes[known])
    centred = values[known] - values[known].mean()
    logs -= logs.mean(0)
    weights = np.linalg.lstsq(logs, centred, rcond=1e-9)[0]
    rest = centred - logs @ weights
    spread = float(rest.std())
    tiny = 1e-9 * max(float(np.abs(values[known]).max()), float(np.finfo(float).tiny))
    found[known] = rest / spread if spread > tiny else 0.0
    return found
