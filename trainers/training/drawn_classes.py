"""Classes drawn from a model's own predictions, whose gradients estimate the curvature of the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hardware.devices import make_generator


def draw_numbers(seed: int, num_images: int) -> Tensor:
    """Uniform random numbers in [0, 1), shape (num_images,), on the CPU; the same for the same seed."""
    return torch.rand(num_images, generator=make_generator(seed, "drawn-classes"))


def cross_entropy_of_drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Mean cross-entropy with classes drawn from the predictions, a scalar.

    `B` times its squared gradient is an unbiased estimate of the diagonal of the Gauss-Newton matrix.

    Args:
        logits: Shape (B, classes).
        draws: Uniform random numbers in [0, 1), shape (B,). The class of an image is the first at which the cumulative
            probability exceeds its number.

    Source: Liu et al. 2024, arXiv:2305.14342, algorithm 2 (Gauss-Newton-Bartlett).
    """
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    classes = (cumulative <= draws[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return F.cross_entropy(logits, classes)
