"""The interface of metrics."""

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from plugins.protocols.cards import PluginCard

if TYPE_CHECKING:
    from torch import Tensor


class Metric(Protocol):
    """A measure of a model's predictions on labelled images."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]
    is_fraction: ClassVar[bool]
    """Whether all values lie between 0 and 1. They are then shown in percent."""

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The value on `N` images.

        It does not depend on the order of the images, and is NaN if a logit is NaN. The arguments are not modified.

        Args:
            logits: Shape (N, classes), float32 or float64, on any device. Their softmax are the probabilities.
            labels: Shape (N,), int64, on the same device. Classes may be missing.
        """
        ...
