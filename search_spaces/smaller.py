"""Smaller topologies of the same space, for trainings that begin with a smaller network or pass through one."""

from typing import Literal

from search_spaces.autoformer import AutoFormerTopology
from search_spaces.base import Growable, Topology

Reduction = Literal["both", "depth", "width"]
"""What is halved."""


def with_fewer_blocks(topology: Topology, share: float) -> Topology:
    """The topology with a share of the blocks of each stage, the first ones; at least one each.

    Raises:
        ValueError: No stage would have fewer blocks.
    """
    growable = _growable(topology)
    depths = tuple(max(1, round(share * depth)) for depth in growable.depths)
    if depths == growable.depths:
        raise ValueError(
            f"a share of {share:g} of the blocks must leave out at least one, but {topology.id} has "
            f"{_listed(growable.depths)} blocks per stage, and all would stay. Choose a deeper topology or a smaller "
            "share."
        )
    return _checked(growable.with_size(depths=depths))


def halved(topology: Topology, reduction: Reduction) -> Topology:
    """The topology with half of the blocks of each stage, rounded up, or half of the width, or both.

    Raises:
        ValueError: It does not exist at that size, or two blocks that become one have different shapes.
    """
    growable = _growable(topology)
    depths, width = growable.depths, growable.width
    if reduction != "width":
        depths = tuple(-(-depth // 2) for depth in depths)
    if reduction != "depth":
        width = width // 2
        if growable.width % 2 or width % growable.width_unit:
            raise ValueError(
                f"half of the width must be a multiple of {growable.width_unit}, which the heads share evenly, but "
                f"{topology.id} has the width {growable.width}. Choose another topology, or halve the depth only."
            )
    if depths == growable.depths and width == growable.width:
        raise ValueError(
            f"a topology with half of the blocks must have fewer, but {topology.id} has {_listed(depths)} per stage. "
            "Choose a deeper topology, or halve the width."
        )
    if isinstance(topology, AutoFormerTopology) and reduction != "width":
        _check_pairs(topology)
    return _checked(growable.with_size(depths=depths, width=width))


def _growable(topology: Topology) -> Growable:
    if not isinstance(topology, Growable):
        raise ValueError(
            f"a topology must have depths and a width (`search_spaces.base.Growable`) to become smaller, but "
            f"{topology.id} has none. Choose a topology of another space."
        )
    return topology


def _check_pairs(topology: AutoFormerTopology) -> None:
    """Raise ValueError unless blocks 1 and 2, 3 and 4, ... are alike, and the smaller network has their shapes."""
    shapes = list(zip(topology.num_heads, topology.mlp_ratio, strict=True))
    for place, shape in enumerate(shapes):
        if shape != shapes[place // 2]:
            raise ValueError(
                f"blocks that become one must have equal numbers of heads and MLP ratios, but block {place + 1} of "
                f"{topology.id} has other ones than block {place // 2 + 1}. Choose a topology whose blocks are alike, "
                "or halve the width only."
            )


def _checked(smaller: Growable) -> Topology:
    assert isinstance(smaller, Topology)
    return smaller


def _listed(depths: tuple[int, ...]) -> str:
    return ", ".join(map(str, depths))
