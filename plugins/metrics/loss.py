"""The mean cross-entropy, which also judges how sure a model is of its predictions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MeanCrossEntropy:
    """Cross-entropy without label smoothing or class weights, whatever loss was trained with."""

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as `sklearn.metrics.log_loss`", cost="one softmax per image"
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    is_fraction: ClassVar[bool] = False

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The mean cross-entropy of logits (N, classes) for labels (N,); NaN if a logit is NaN."""
        from torch.nn import functional as F

        return float(F.cross_entropy(logits.double(), labels))
