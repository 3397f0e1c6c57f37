"""What losses with a teacher or a second model share: their logits, and how the weight of a teacher decays."""

import math
from typing import TYPE_CHECKING, Literal

from plugins.protocols import LossContext

if TYPE_CHECKING:
    from torch import Tensor

Decay = Literal["none", "linear", "squared", "cosine"]


def decay_factor(decay: Decay, progress: float) -> float:
    """Factor of the teacher's weight at a progress in [0, 1): from 1 at the start to 0 at the end, or 1 with `none`.

    Source: the forms of Zhao et al. 2023, CSKD, arXiv:2307.08500: `1 - x`, `(1 - x)^2` and `cos(pi x / 2)`.
    """
    if decay == "linear":
        return 1 - progress
    if decay == "squared":
        return (1 - progress) ** 2
    return math.cos(math.pi * progress / 2) if decay == "cosine" else 1.0


def teacher_of(context: LossContext) -> "Tensor":
    """The teacher's logits, shape (B, classes).

    Raises:
        ValueError: There is no teacher.
    """
    if context.teacher is None:
        raise ValueError("a loss with a teacher needs the logits of one, but there are none. Name it in `teacher`.")
    return context.teacher


def peer_of(context: LossContext) -> "Tensor":
    """The logits of the model that is trained at the same time, shape (B, classes).

    Raises:
        ValueError: There is none.
    """
    if context.peer is None:
        raise ValueError("a loss of two models needs the logits of the other one, but there are none.")
    return context.peer


def divergence(given: "Tensor", learned: "Tensor", temperature: float) -> "Tensor":
    """`KL(softmax(given / T) || softmax(learned / T))` of each image, shape (B,), from logits (B, classes)."""
    from torch.nn import functional as F

    one, other = (logits / temperature for logits in (given, learned))
    return F.kl_div(other.log_softmax(1), one.log_softmax(1), reduction="none", log_target=True).sum(1)
