"""A constant learning rate after warm-up."""

from dataclasses import dataclass
from typing import ClassVar

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class Constant:
    """No decay. Averaging checkpoints (LAWA, EMA) can replace it."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="nothing")
    independent_of_length: ClassVar[bool] = True

    def factor(self, progress: float) -> float:  # noqa: ARG002 - the protocol's signature
        """Always 1."""
        return 1.0
