"""The common part of methods that take an average maintained by training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugins.averaging.arithmetic import copy_newest
from plugins.protocols import StateDict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaintainedAverage:
    """The average saved with the newest checkpoint. Subclasses declare in `reads` which one."""

    @property
    def num_needed(self) -> int:
        """1."""
        return 1

    def average(self, checkpoints: Sequence[StateDict]) -> "dict[str, Tensor]":
        """A copy of the newest average.

        Raises:
            ValueError: There are no checkpoints.
        """
        return copy_newest(checkpoints)
