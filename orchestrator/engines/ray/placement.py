"""Computes the number of workers that fit on the nodes of a Ray cluster."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

_ROUNDING = 1e-6


class Node(NamedTuple):
    """Total resources of a living node."""

    num_cpus: float
    num_gpus: float


def num_ranks(num_gpus: float) -> int:
    """Number of processes that share the training of a trial with so many GPUs: one per GPU."""
    return max(1, int(num_gpus))


def bundles(num_cpus: float, num_gpus: float) -> list[dict[str, float]]:
    """The resources of each process of a worker, as Ray names them; they may be on different nodes."""
    count = num_ranks(num_gpus)
    return [{"CPU": num_cpus / count, "GPU": num_gpus / count} for _ in range(count)]


def can_hold(nodes: Sequence[Node], shares: Iterable[tuple[float, float]]) -> bool:
    """Whether workers with these shares (CPU cores, GPUs) fit on the nodes together, placing the largest first.

    A GPU share below 1 is a share of a single GPU. The GPUs of a worker with several may be on different nodes.
    """
    cores = [node.num_cpus for node in nodes]
    gpus = [[1.0] * int(node.num_gpus) for node in nodes]
    largest_first = sorted(shares, key=lambda share: (share[1], share[0]), reverse=True)
    for needed in (one for share in largest_first for one in bundles(*share)):
        for index, free in enumerate(gpus):
            fitting = [place for place, left in enumerate(free) if left + _ROUNDING >= needed["GPU"]]
            if cores[index] + _ROUNDING < needed["CPU"] or (needed["GPU"] and not fitting):
                continue
            cores[index] -= needed["CPU"]
            if needed["GPU"]:
                free[fitting[0]] -= needed["GPU"]
            break
        else:
            return False
    return True


def room(nodes: Iterable[Node], num_cpus: float, num_gpus: float) -> int:
    """Number of workers with that share that fit on all nodes."""
    count = num_ranks(num_gpus)
    return sum(fits(node, num_cpus / count, num_gpus / count) for node in nodes) // count


def fits(node: Node, num_cpus: float, num_gpus: float) -> int:
    """Number of processes with that share that fit on a node; with at most one GPU."""
    limits = [(node.num_cpus + _ROUNDING) // num_cpus] if num_cpus else []
    if num_gpus:
        limits.append(int(node.num_gpus) * int(1 / num_gpus + _ROUNDING))  # a share of a single GPU
    return int(min(limits)) if limits else 0


def node_elsewhere(nodes: Mapping[str, Node], avoided: Set[str], *, num_cpus: float, num_gpus: float) -> str | None:
    """The largest node, by its id, on which a worker can be started that must avoid some; `None` if there is none."""
    fitting = {name: node for name, node in nodes.items() if name not in avoided and fits(node, num_cpus, num_gpus)}
    return max(fitting, key=lambda name: (fitting[name].num_gpus, fitting[name].num_cpus), default=None)


def described(nodes: Sequence[Node]) -> str:
    """Describe the nodes in words."""
    return ", ".join(f"{node.num_cpus:g} cores and {node.num_gpus:g} GPUs" for node in nodes) or "there is no node"
