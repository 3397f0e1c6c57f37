"""The mean F1 score of the classes, which drops with missed images of a class and with false alarms."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.metrics.class_counts import count_classes
from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MacroF1:
    """`2 correct / (labelled + predicted)` of each class, averaged over the classes that occur.

    A class that is never predicted has the score 0. A class without images counts, with 0, only if it is predicted.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as `sklearn.metrics.f1_score(average='macro', zero_division=0)`",
        cost="one count per image and class",
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    is_fraction: ClassVar[bool] = True

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The mean F1 score of logits (N, classes) for labels (N,); NaN if a logit is NaN."""
        counts = count_classes(logits, labels)
        if counts is None:
            return math.nan
        occurrences = counts.labelled + counts.predicted
        present = occurrences > 0
        return float((2 * counts.correct[present] / occurrences[present]).mean())
