"""The results of earlier trials, for criteria that compare a training with them."""

from collections.abc import Sequence


def scores_at(earlier: Sequence[Sequence[float]], epoch: int) -> list[float]:
    """The scores after an epoch of the trials that came so far."""
    return [scores[epoch - 1] for scores in earlier if len(scores) >= epoch]


def score_shown(score: float) -> str:
    """A score as the user knows the metric: losses, whose scores are negative, without the sign."""
    return f"{abs(score):.4g}"
