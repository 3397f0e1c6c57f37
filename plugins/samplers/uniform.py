"""Optuna's random sampler, draw for draw, without what it spends on choices and on the system's entropy."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from plugins.samplers.generators import give_back, take_generator


class UniformSampler(RandomSampler):
    """Made anew for every suggestion, so that making it must cost little.

    Optuna turns each choice into a one-hot vector and back.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        self._rng._rng = self._generator = take_generator(seed)

    def __del__(self) -> None:
        give_back(self._generator)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw."""
        if isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            return choices[self._generator.random_sample(len(choices)).argmax()]
        return super().sample_independent(study, trial, param_name, param_distribution)
