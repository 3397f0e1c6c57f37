"""Computes the number of workers that fit on the nodes of a Ray cluster."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

_ROUNDING = 1e-6


class Node(NamedTuple):
    """Total resources of a living node."""

    num_cpus: float
    num_gpus: float


def can_hold(nodes: Sequence[Node], shares: Iterable[tuple[float, float]]) -> bool:
    """Whether workers with these shares (CPU cores, GPUs) fit on the nodes together, placing the largest first.

    A GPU share below 1 is a share of a single GPU.
    """
    cores = [node.num_cpus for node in nodes]
    gpus = [[1.0] * int(node.num_gpus) for node in nodes]
    for num_cpus, num_gpus in sorted(shares, key=lambda share: (share[1], share[0]), reverse=True):
        for index, free in enumerate(gpus):
            fitting = [place for place, left in enumerate(free) if left + _ROUNDING >= min(num_gpus, 1.0)]
            count = max(1, int(num_gpus))
            if cores[index] + _ROUNDING < num_cpus or (num_gpus and len(fitting) < count):
                continue
            cores[index] -= num_cpus
            for place in fitting[: count if num_gpus else 0]:
                free[place] -= min(num_gpus, 1.0)
            break
        else:
            return False
    return True


def fits(node: Node, num_cpus: float, num_gpus: float) -> int:
    """Number of workers with that share that fit on a node."""
    limits = [node.num_cpus // num_cpus] if num_cpus else []
    if num_gpus > 1:
        limits.append(node.num_gpus // num_gpus)
    elif num_gpus:
        limits.append(int(node.num_gpus) * int(1 / num_gpus + _ROUNDING))  # a share of a single GPU
    return int(min(limits)) if limits else 0


def node_elsewhere(nodes: Mapping[str, Node], avoided: Set[str], *, num_cpus: float, num_gpus: float) -> str | None:
    """The largest node, by its id, on which a worker can be started that must avoid some; `None` if there is none."""
    fitting = {name: node for name, node in nodes.items() if name not in avoided and fits(node, num_cpus, num_gpus)}
    return max(fitting, key=lambda name: (fitting[name].num_gpus, fitting[name].num_cpus), default=None)


def described(nodes: Sequence[Node]) -> str:
    """Describe the nodes in words."""
    return ", ".join(f"{node.num_cpus:g} cores and {node.num_gpus:g} GPUs" for node in nodes) or "there is no node"
