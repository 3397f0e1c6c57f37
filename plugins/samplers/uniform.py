"""Optuna's random sampler with identical draws, but without its overhead for choices and system entropy."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from plugins.samplers.generators import return_generator, take_generator


class UniformSampler(RandomSampler):
    """A random sampler that is cheap to create, since one is created for every suggestion.

    It avoids Optuna's conversion of each choice to a one-hot vector and back.
    """

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        self._rng._rng = self._generator = take_generator(seed)

    def __del__(self) -> None:
        return_generator(self._generator)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw."""
        if isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            return choices[self._generator.random_sample(len(choices)).argmax()]
        return super().sample_independent(study, trial, param_name, param_distribution)
