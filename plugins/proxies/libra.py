"""LIBRA: scores chosen one after the other by how little each adds to those already chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Libra:
    """Mean rank of L-SWAG and of the `added` scores with the lowest information gain given those chosen before.

    The information gain of a score is its conditional entropy `H(score | chosen)`, with scores as classes of equal
    size: what it would tell about a topology that the chosen ones do not. The authors add scores with a low gain, which
    agree with the first one except for noise. The choice uses the scores of the pool and no accuracies.

    Source: LIBRA-NAS in Casarin et al. 2025 (L-SWAG), arXiv:2505.07300, from a description of it.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Casarin et al. 2025 (LIBRA-NAS), arXiv:2505.07300, from a description of it; without their final "
        "re-alignment of the bias, whose formula was not available, and with a fixed first score",
        cost="arithmetic on the scores l-swag, swap, zico, nwot, az-expressivity and effective-rank",
        needs=("l-swag", "swap", "zico", "nwot", "az-expressivity", "effective-rank"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    parts: ClassVar[tuple[str, ...]] = ("l-swag", "swap", "zico", "nwot", "az-expressivity", "effective-rank")
    added: Annotated[int, Field(ge=1, le=5)] = 2
    """Number of scores added to the first one."""
    classes: Annotated[int, Field(ge=2, le=20)] = 4
    """Number of classes of equal size into which each score is divided to measure information."""

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        import numpy as np
        from scipy.stats import rankdata

        table = np.array([scores[part] for part in self.parts], dtype=float)
        known = np.isfinite(table).all(0)
        found = np.full(table.shape[1], math.nan)
        if known.any():
            ranks = np.array([rankdata(row) for row in table[:, known]])
            chosen = choose_by_information(ranks, added=self.added, num_classes=self.classes)
            found[known] = ranks[chosen].mean(0) / known.sum()
        return [float(value) for value in found]


def choose_by_information(ranks: "NDArray[np.float64]", *, added: int, num_classes: int) -> list[int]:
    """Indices of the first score and of those added to it, in the order of choice; ties go to the earlier score.

    Args:
        ranks: Ranks of each score over the topologies, from 1, shape (P, n).
        added: Number of scores to add.
        num_classes: Number of classes of equal size per score.
    """
    import numpy as np

    codes = np.ceil(ranks * num_classes / ranks.shape[1]).astype(int)
    chosen, together = [0], codes[:1]
    for _ in range(added):
        others = [index for index in range(len(codes)) if index not in chosen]
        gains = [entropy_of_columns(np.vstack([together, codes[index]])) for index in others]
        nearest = others[int(np.argmin(np.round(gains, 12)))]
        chosen.append(nearest)
        together = np.vstack([together, codes[nearest]])
    return chosen


def entropy_of_columns(codes: "NDArray[np.int_]") -> float:
    """Entropy in nats of the columns of a matrix of classes (P, n), as draws of one variable.

    With the classes of chosen scores held fixed, the joint entropy and the information gain of a further score differ
    by a constant.
    """
    import numpy as np

    counts = np.unique(codes, axis=1, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
