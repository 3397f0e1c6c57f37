"""The learning rate stays where warm-up left it."""

from dataclasses import dataclass
from typing import ClassVar

from plugins.protocols import PluginCard


@dataclass(frozen=True, kw_only=True)
class Constant:
    """No decay: averaging checkpoints (LAWA, EMA) can take the place of one."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="nothing")

    def factor(self, progress: float) -> float:  # noqa: ARG002 - the protocol's signature
        """Always 1."""
        return 1.0
