"""A policy of independent categorical distributions, trained by REINFORCE with a closed-form gradient in NumPy."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.dimensions import Scalar

Drawn = tuple[int, ...]
"""The index of one option per dimension."""

_INITIAL_SPREAD = 1e-3
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Rewards:
    """As-ViT's reward: the improvement of each score since the previous step, in units of its recent range.

    `r_t = sum over m of s_m (m_t - m_{t-1}) / (max - min of newest values of m + 1e-6)`, where `s_m` is 1 if higher
    is better and -1 if lower is better. The reward of the first step is 0. A step without scores gets the worst value
    so far of each score.

    Args:
        signs: `s_m` of each score.
        window: Number of newest values that define the range, including the current step.

    Source: Chen et al. 2022, arXiv:2202.11921 (the released code never replaces a bad score).
    """

    def __init__(self, signs: Sequence[float], *, window: int) -> None:
        self._signs = signs
        self._window = window
        self._values: list[list[float]] = [[] for _ in signs]

    def copy(self) -> "Rewards":
        """An independent copy."""
        other = Rewards(self._signs, window=self._window)
        other._values = [list(values) for values in self._values]
        return other

    def take(self, scores: Sequence[float] | None) -> float | None:
        """The reward of the next step; `None` if neither this step nor a previous one has scores."""
        reward = 0.0
        for index, (sign, values) in enumerate(zip(self._signs, self._values, strict=True)):
            if scores is not None:
                value = scores[index]
            elif values:
                value = min(values) if sign > 0 else max(values)
            else:
                return None
            values.append(value)
            if len(values) > 1:
                recent = values[-self._window :]
                reward += sign * (value - values[-2]) / (max(recent) - min(recent) + 1e-6)
        return reward


class PolicySettings(NamedTuple):
    """Learning settings of a policy."""

    learning_rate: float
    """Learning rate of Adam."""
    momentum: float
    """Momentum of the baseline, an exponential moving average of the rewards."""
    window: int
    """Number of newest values that define the range of a score; see `Rewards`."""


class Policy:
    """One categorical distribution per dimension, trained with Adam and a moving baseline.

    Args:
        options: Values of each dimension.
        seed: Seed of the initial logits, which are normal with standard deviation 1e-3.
        learning_rate: Learning rate of Adam.
        momentum: Momentum of the baseline, a bias-corrected exponential moving average of the rewards that includes the
            current one.
        rewards: Converts scores to rewards.

    Source: Williams 1992; settings as in As-ViT (Chen et al. 2022, arXiv:2202.11921).
    """

    def __init__(
        self,
        options: Mapping[str, Sequence[Scalar]],
        *,
        seed: int,
        learning_rate: float,
        momentum: float,
        rewards: Rewards,
    ) -> None:
        self._options = dict(options)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._rewards = rewards
        counts = np.array([len(values) for values in self._options.values()])
        shape = (len(counts), int(counts.max(initial=0)))
        self._rows = np.arange(len(counts))
        self._logits = _INITIAL_SPREAD * np.random.default_rng(seed).standard_normal(shape)
        self._logits[np.arange(shape[1]) >= counts[:, None]] = -np.inf
        self._mean = np.zeros(shape)
        self._square = np.zeros(shape)
        self._num_steps = 0
        self._baseline = self._weight = 0.0

    def copy(self) -> "Policy":
        """An independent copy."""
        other = copy.copy(self)
        other._rewards = self._rewards.copy()
        other._logits, other._mean, other._square = self._logits.copy(), self._mean.copy(), self._square.copy()
        return other

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Probability of each option, shape (dimensions, options), padded with zeros."""
        powers = np.exp((self._logits - self._logits.max(1, keepdims=True)) / temperature)
        found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
        return found

    def draw(self, rng: np.random.Generator, *, temperature: float = 1.0) -> Drawn:
        """Draw a random point. A higher temperature makes the distributions more uniform."""
        cumulative = self.probabilities(temperature).cumsum(1)
        chosen = (cumulative < rng.random(len(cumulative))[:, None] * cumulative[:, -1:]).sum(1)
        return tuple(chosen.tolist())

    def best(self) -> Drawn:
        """The most probable point: the argmax of each dimension."""
        return tuple(self._logits.argmax(1).tolist())

    def learn(self, drawn: Drawn, scores: Sequence[float] | None) -> None:
        """Take a step of Adam on `-log p(drawn) (reward - baseline)`. `scores` is `None` if the trial failed."""
        reward = self._rewards.take(scores)
        if reward is None:
            return
        self._baseline = self._momentum * self._baseline + (1 - self._momentum) * reward
        self._weight = self._momentum * self._weight + (1 - self._momentum)
        gradient = self.probabilities()
        gradient[self._rows, list(drawn)] -= 1.0
        gradient *= reward - self._baseline / self._weight
        self._num_steps += 1
        first, second = _BETAS
        self._mean += (1 - first) * (gradient - self._mean)
        self._square += (1 - second) * (gradient * gradient - self._square)
        rate = self._learning_rate / (1 - first**self._num_steps)
        spread = np.sqrt(self._square / (1 - second**self._num_steps))
        self._logits -= rate * self._mean / (spread + _EPSILON)

    def values(self, drawn: Drawn) -> dict[str, Any]:
        """The values of a drawn point."""
        return {name: options[index] for (name, options), index in zip(self._options.items(), drawn, strict=True)}

    def place(self, values: Mapping[str, Any]) -> Drawn:
        """The inverse of `values`."""
        return place_in(self._options, values)


def place_in(options: Mapping[str, Sequence[Scalar]], values: Mapping[str, Any]) -> Drawn:
    """The index of each value among the options of its dimension."""
    return tuple([found.index(values[name]) for name, found in options.items()])
