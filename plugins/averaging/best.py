"""No averaging: the checkpoint of the epoch with the best validation metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import PluginCard, StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Best:
    """The unchanged checkpoint of the best epoch. Training keeps it, however long ago it was.

    It is chosen on the validation part among all epochs, so its validation metric is optimistic.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="common practice; as `restore_best_weights` of Keras' EarlyStopping", cost="one read of 1 checkpoint"
    )
    reads: ClassVar[str] = "best"

    @property
    def num_needed(self) -> int:
        """1."""
        return 1

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """A copy of the best checkpoint, which is the newest one given."""
        return copy_newest(checkpoints)
