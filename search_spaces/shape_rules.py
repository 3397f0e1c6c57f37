"""Shape rules: the numbers that widths must be multiples of, so that matrix products fill a device's units.

Source: Anthony et al. 2024, The Case for Co-Designing Model Architectures with Hardware, arXiv:2401.14489, sections 5
and 6 (multiples of 64 for widths, of 8 and more for head widths).
"""

from typing import Protocol, runtime_checkable

from pydantic import ConfigDict, Field

from search_spaces.base import Growable, Topology
from search_spaces.numbers import NumericModel

_MOST_STEPS = 4096


@runtime_checkable
class Shaped(Protocol):
    """A topology that tells the widths of its blocks."""

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of the blocks' inputs and of the hidden layers of their MLPs."""
        ...

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Channels per attention head."""
        ...


class ShapeRules(NumericModel):
    """The numbers that the widths of a topology must be multiples of; 1 allows every width."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    width: int = Field(
        default=1, ge=1, le=1024, description="number that the widths of blocks and of their MLPs are multiples of"
    )
    head_width: int = Field(
        default=1, ge=1, le=1024, description="number that the widths of attention heads are multiples of"
    )

    @property
    def is_strict(self) -> bool:
        """Whether the rules exclude any topology."""
        return self.width > 1 or self.head_width > 1

    def broken(self, topology: Topology) -> list[tuple[str, int, int]]:
        """Each width that breaks a rule: the name of its kind, the width, and what it must be a multiple of.

        Raises:
            ValueError: The topology does not tell its widths.
        """
        if not self.is_strict:
            return []
        if not isinstance(topology, Shaped):
            raise ValueError(
                f"shape rules need topologies with `layer_widths` and `head_widths`, but {topology.id} lacks them. "
                "Remove the rules, or choose another space."
            )
        widths = [("width", width, self.width) for width in topology.layer_widths]
        heads = [("width of a head", width, self.head_width) for width in topology.head_widths]
        return [(kind, width, unit) for kind, width, unit in widths + heads if width % unit]

    def problem(self, topology: Topology) -> str | None:
        """Why the topology breaks the rules, or `None` if it does not."""
        for kind, width, unit in self.broken(topology):
            return f"each {kind} must be a multiple of {unit}, but {topology.id} has a {kind} of {width}"
        return None

    def contains(self, other: "ShapeRules") -> bool:
        """Whether every topology that other rules allow is allowed here, too."""
        return other.width % self.width == 0 and other.head_width % self.head_width == 0


def width_step(topology: Topology, rules: ShapeRules, *, multiple: int) -> int | None:
    """The smallest step of a growing topology's width: a multiple of `multiple` at which the rules hold.

    All widths of a topology are proportional to its own, so that the rules usually hold at multiples of the step.

    Returns:
        `None` if the rules hold at no width that the topology can have (or at none of the first 4,096 multiples).
    """
    assert isinstance(topology, Growable)
    for count in range(1, _MOST_STEPS + 1):
        try:
            wider = topology.with_size(width=count * multiple)
        except ValueError:  # beyond the largest width
            return None
        if not rules.broken(wider):
            return count * multiple
    return None
