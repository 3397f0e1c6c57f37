"""No averaging: the newest checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Last:
    """The unchanged newest checkpoint: the baseline of every averaging method."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="one read of 1 checkpoint")

    @property
    def num_needed(self) -> int:
        """1."""
        return 1

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """A copy of the newest checkpoint."""
        return copy_newest(checkpoints)
