"""The mean accuracy of the classes: each class counts the same, however few images it has."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.metrics.class_counts import count_classes
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BalancedAccuracy:
    """The recall of each class, averaged over the classes that have images."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Brodersen et al. 2010, ICPR; as `sklearn.metrics.balanced_accuracy_score`",
        cost="one count per image and class",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_fraction: ClassVar[bool] = True

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The mean recall of logits (N, classes) for labels (N,); NaN if a logit is NaN."""
        counts = count_classes(logits, labels)
        if counts is None:
            return math.nan
        present = counts.labelled > 0
        return float((counts.correct[present] / counts.labelled[present]).mean())
