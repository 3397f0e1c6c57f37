"""AZ-NAS: a sum of log ranks of three scores within a pool of topologies, so that a single bad rank costs most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class AzNas:
    """`sum_m log(rank_m / l)` over expressivity, trainability and complexity, for `l` topologies; rank 1 is the worst.

    Ties share their mean rank. If a part failed for a topology, its value is nan and it does not count in `l`. More
    multiply-accumulates count as better, since the search of the paper limits the number of parameters from above and
    below. The fourth part of the paper, progressivity, applies to convolutional networks only.

    Source: Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232, and the authors' code for AutoFormer.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232; without progressivity, as in their code for AutoFormer; "
        "az-trainability, one of the parts, is mostly a noise floor (see there)",
        cost="arithmetic on the scores az-expressivity, az-trainability and flops",
        needs=("az-expressivity", "az-trainability", "flops"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    parts: ClassVar[tuple[str, ...]] = ("az-expressivity", "az-trainability", "flops")

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        from scipy.stats import rankdata

        columns = [scores[part] for part in self.parts]
        rows = list(zip(*columns, strict=True))
        ranked = [index for index, row in enumerate(rows) if all(map(math.isfinite, row))]
        values = [math.nan] * len(rows)
        for index in ranked:
            values[index] = 0.0
        for column in columns:
            for index, rank in zip(ranked, rankdata([column[index] for index in ranked]), strict=True):
                values[index] += math.log(float(rank) / len(ranked))
        return values
