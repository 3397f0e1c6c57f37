"""The arithmetic of signals that are more than a mean: pure functions of tensors."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.protocols import Signal
from trainers.hardware import devices

ROUNDING = 1e-6
"""Size of a gradient relative to the largest one below which it may consist of rounding errors."""


def in_float64(values: Tensor) -> Tensor:
    """Values in float64, or in float32 on a device that has no float64."""
    return values.float() if values.device.type in devices.WITHOUT_FLOAT64 else values.double()


def share(flags: Tensor) -> float:
    """The fraction of true values, the same to the last bit on every device."""
    return int(flags.sum()) / flags.numel()


def class_means(logits: Tensor, labels: Tensor) -> dict[Signal, dict[int, float]]:
    """Mean cross-entropy and share of wrong predictions of each class that has images, by class.

    Args:
        logits: Shape (N, classes).
        labels: Shape (N,), int64, on the same device.
    """
    classes = labels.cpu()
    counts = torch.bincount(classes, minlength=logits.shape[1])
    known = counts.nonzero()[:, 0].tolist()
    of_images = {
        Signal.CLASS_VAL_LOSS: F.cross_entropy(logits, labels, reduction="none"),
        Signal.CLASS_VAL_ERROR: (logits.argmax(1) != labels).float(),
    }
    found = {}
    for signal, values in of_images.items():
        sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, classes, values.cpu().double())
        means = (sums / counts).tolist()
        found[signal] = {number: means[number] for number in known}
    return found


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of features (N, D); between 1 and min(N, D).

    Source: Roy and Vetterli 2007, "The effective rank"; of the features of a network as in Garrido et al. 2023,
    RankMe, arXiv:2210.02885, without its constant of 1e-7.
    """
    singular = torch.linalg.svdvals(features.cpu().double())
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def neural_persistence(matrices: Sequence[Tensor]) -> float:
    """Mean normalised neural persistence of the weight matrices of a network, in [0, 1].

    A matrix (rows, columns) is a complete bipartite graph with rows + columns = n vertices, whose edges are
    `a = |w| / max |w|`, with the maximum over all matrices. Its persistence is
    `sqrt(sum (1 - a_e)^2 / (n - 1))` over the edges e of its maximum spanning tree.

    Source: Rieck et al. 2019, arXiv:1812.09764, definitions 1 and 2, with p = 2. The authors' code adds a point of
    persistence 1 for the component that survives, so that its values can exceed 1.

    Returns:
        NaN if all weights are 0.
    """
    largest = max(float(matrix.abs().max()) for matrix in matrices)
    if largest == 0:
        return math.nan
    values = []
    for matrix in matrices:
        edges = _maximum_spanning_tree((matrix.detach().abs() / largest).cpu().double().numpy())
        values.append(math.sqrt(float(np.square(1 - edges).sum()) / len(edges)))
    return math.fsum(values) / len(values)


def _maximum_spanning_tree(weights: np.ndarray) -> np.ndarray:
    """Weights of the tree's edges, (rows + columns - 1,), of a complete bipartite graph with weights in [0, 1].

    Prim's algorithm: on a complete graph it takes a twentieth of the time of Kruskal's, which sorts all edges. All
    maximum spanning trees of a graph have the same weights.
    """
    sides = (weights, np.ascontiguousarray(weights.T))
    # The heaviest edge from the tree to each row and column; minus infinity for those in the tree.
    heaviest = [np.full(len(side), -1.0) for side in sides]
    is_outside = [np.ones(len(side), dtype=bool) for side in sides]
    edges = np.empty(sum(weights.shape) - 1)
    side, vertex = 0, 0  # the first row
    for place in range(len(edges) + 1):
        if place:
            best = [int(one.argmax()) for one in heaviest]
            side = int(heaviest[1][best[1]] > heaviest[0][best[0]])
            vertex = best[side]
            edges[place - 1] = heaviest[side][vertex]
        heaviest[side][vertex] = -np.inf
        is_outside[side][vertex] = False
        np.maximum(heaviest[1 - side], sides[side][vertex], out=heaviest[1 - side], where=is_outside[1 - side])
    return edges


def evidence(total: Tensor, squares: Tensor, count: int) -> float:
    """Evidence criterion of a batch gradient: `1 - B mean_d(g_d^2 / s_d^2)`, above 0 if the gradient is only noise.

    Args:
        total: Sum of the gradients of `B` single images, (P,).
        squares: Sum of their squares, (P,).
        count: The number `B` of images.

    Returns:
        NaN if no parameter's gradient varies. Parameters without influence are left out: those whose gradient is at
        most a millionth of the largest, and thus rounding, such as that of a key's bias in attention. There is no
        constant in the denominator (1e-5 in other implementations): it would be larger than most variances of a
        transformer's gradients.

    Source: Mahsereci et al. 2017, arXiv:1703.09580, equation 9.
    """
    mean = total / count
    variance = (squares - total * mean) / (count - 1)
    varies = (variance > 0) & (squares > ROUNDING**2 * squares.max())
    ratios = torch.where(varies, mean**2 / torch.where(varies, variance, 1.0), 0.0)
    return 1 - count * float(ratios.sum() / varies.sum())


def mean_distance(gradients: Sequence[Tensor]) -> float:
    """Mean Euclidean distance between each pair of gradients (P,).

    Source: Forouzesh and Thiran 2021, arXiv:2107.06665, equation 4.
    """
    distances = [torch.linalg.vector_norm(one - other) for one, other in itertools.combinations(gradients, 2)]
    return float(torch.stack(distances).mean())


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, *, num_products: int) -> float:
    """The eigenvalue of a symmetric matrix with the largest absolute value, by power iteration.

    Args:
        product: Multiplies the matrix with a vector (P,).
        start: The first vector, (P,), not zero.
        num_products: Number of products. The result is the Rayleigh quotient of the last vector.
    """
    vector, quotient = start / torch.linalg.vector_norm(start), start.new_zeros(())
    smallest = torch.finfo(start.dtype).tiny
    for _ in range(num_products):
        image = product(vector)
        quotient = torch.dot(vector, image)
        vector = image / torch.linalg.vector_norm(image).clamp(min=smallest)
    return float(quotient)
