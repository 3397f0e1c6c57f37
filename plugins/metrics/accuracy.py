"""The fraction of images whose predicted class is right."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.metrics.class_counts import predicted_classes
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Every image counts the same, so a large class counts more than a small one."""

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as `sklearn.metrics.accuracy_score`", cost="one comparison per image"
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_fraction: ClassVar[bool] = True

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The accuracy of logits (N, classes) for labels (N,); NaN if a logit is NaN."""
        predicted = predicted_classes(logits)
        return math.nan if predicted is None else float((predicted == labels).double().mean())
