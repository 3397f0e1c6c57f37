"""REINFORCE as an Optuna sampler: the policy is trained anew from the finished trials for each suggestion."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from plugins.samplers.history import finished_trials, number_of, options_of
from plugins.samplers.policy import Policy, Rewards

if TYPE_CHECKING:
    from plugins.samplers.reinforce import Reinforce

REPEATS = "reinforce:repeats"
"""System attribute of a trial: numbers of the trials that the policy drew again just before it drew this one. `None`
where the policy had settled on known points and this one was drawn around them: the policy does not learn from it."""
_MAX_REPEATS = 10
"""Known points that are learned from again for one suggestion; a policy that has settled would do nothing else."""
_MAX_DRAWS = 50
_WARMING = 1.1
"""Factor between the temperatures of two draws, once `_MAX_DRAWS` of the policy gave known points only."""
_MAX_TEMPERATURE = 100.0


class PolicySampler(BaseSampler):
    """Draws from the policy; the first trial is uniform, which the untrained policy is too."""

    def __init__(self, settings: "Reinforce", *, seed: int, study_seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._study_seed = study_seed
        self._uniform = RandomSampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Marks the first trials, of which nothing is known, as the policy's own too."""
        _remember(study, trial, [])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The dimensions of the trials before."""
        finished = finished_trials(study)
        return dict(finished[0].distributions) if finished else {}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """A point that was not scored yet: the policy's own, or one around it where it draws known ones only."""
        finished = finished_trials(study)
        policy = trained_policy(self._settings, study, finished, study_seed=self._study_seed)
        if policy is None:
            return {}
        known = {policy.place(past.params): past for past in finished}
        rng = np.random.default_rng(self._seed)
        repeats: list[int] = []
        for _ in range(_MAX_DRAWS):
            drawn = policy.draw(rng)
            if drawn not in known:
                _remember(study, trial, repeats)
                return policy.values(drawn)
            if len(repeats) < _MAX_REPEATS:
                policy.learn(drawn, known[drawn].values)
                repeats.append(number_of(known[drawn]))
        _remember(study, trial, None)
        temperature = 1.0
        while drawn in known and temperature < _MAX_TEMPERATURE:
            temperature *= _WARMING
            drawn = policy.draw(rng, temperature=temperature)
        return policy.values(drawn)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Uniform, as long as nothing is known."""
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)


def trained_policy(
    settings: "Reinforce", study: Study, finished: Sequence[FrozenTrial], *, study_seed: int
) -> Policy | None:
    """The policy after those finished trials that it drew, in their order; `None` where none has finished."""
    if not finished:
        return None
    signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
    policy = Policy(
        {name: options_of(distribution) for name, distribution in sorted(finished[0].distributions.items())},
        seed=study_seed,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        rewards=Rewards(signs, window=settings.window),
    )
    by_number = {number_of(trial): trial for trial in finished}
    for trial in finished:
        repeats = trial.system_attrs.get(REPEATS)
        if repeats is None:
            continue
        for number in repeats:
            again = by_number[number]
            policy.learn(policy.place(again.params), again.values)
        policy.learn(policy.place(trial.params), trial.values)
    return policy


def _remember(study: Study, trial: FrozenTrial, repeats: list[int] | None) -> None:
    study._storage.set_trial_system_attr(trial._trial_id, REPEATS, repeats)
