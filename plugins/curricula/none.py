"""Every example once per epoch, in random order."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from plugins.protocols import PluginCard

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class NoCurriculum:
    """No curriculum: each pass is a random permutation of the whole training set."""

    card: ClassVar[PluginCard] = PluginCard(source="the plain baseline", cost="nothing")
    needs_difficulty: ClassVar[bool] = False

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Whole passes, and what is left over as a last smaller one."""
        whole = math.floor(num_epochs)
        rest = num_epochs - whole
        return (1.0,) * whole + ((rest,) if rest else ())

    def select(
        self,
        size: int,
        *,
        difficulty: "Tensor | None",  # noqa: ARG002 - the protocol's signature
        labels: "Tensor",
        generator: "Generator",
    ) -> "Tensor":
        """`size` examples drawn uniformly without replacement."""
        import torch

        return torch.randperm(len(labels), generator=generator)[:size]
