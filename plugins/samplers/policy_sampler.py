"""REINFORCE as an Optuna sampler. The finished trials, in the order of their numbers, determine the policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from plugins.samplers.history import finished_trials, history_of, number_of, options_of
from plugins.samplers.policy import Drawn, Policy, PolicySettings, Rewards, place_in
from search_spaces.dimensions import Scalar

REPEATS = "reinforce:repeats"
"""System attribute of a trial: numbers of the trials that the policy drew again just before it drew this one.

`None` if the policy drew known points only. Then this trial was drawn at a higher temperature, and the policy does not
learn from it.
"""
_MAX_REPEATS = 10
"""Maximum number of known points to learn from again per suggestion. A converged policy draws known points only."""
_MAX_DRAWS = 50
_TEMPERATURE_FACTOR = 1.1
"""Factor between the temperatures of consecutive draws, after `_MAX_DRAWS` draws of known points."""
_MAX_TEMPERATURE = 100.0
_KEEP_EVERY = 32
"""Number of trials between two stored policies. Training restarts from a stored policy if a trial ends late."""
_MAX_KEPT = 8


class PolicySampler(BaseSampler):
    """Draws points from the policy. The first trial is uniform, like the untrained policy."""

    def __init__(self, settings: PolicySettings, *, seed: int, study_seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._study_seed = study_seed
        self._uniform = RandomSampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Mark the trial as drawn by the policy, which includes the first trials."""
        _remember(study, trial, [])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The dimensions of past trials."""
        finished = finished_trials(study)
        return dict(finished[0].distributions) if finished else {}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """A new point, drawn from the policy, or at a higher temperature if the policy draws known points only."""
        finished = finished_trials(study)
        policy = trained_policy(self._settings, study, finished, study_seed=self._study_seed)
        if policy is None:
            return {}
        known = history_of(study).view(Policies).known
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
            temperature *= _TEMPERATURE_FACTOR
            drawn = policy.draw(rng, temperature=temperature)
        return policy.values(drawn)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw, before any trial has finished."""
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)


class Policies:
    """A view with policies that were trained on increasing numbers of finished trials.

    Concurrent trials seldom end in the order of their numbers. If a trial ends late, the policy is trained again from
    this trial on.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions]
        self.known: dict[Drawn, FrozenTrial] = {}
        """The trial of each known point."""
        self._options: dict[str, Sequence[Scalar]] = {}
        self._by_number: dict[int, FrozenTrial] = {}
        self._made_for: tuple[PolicySettings, int] | None = None
        self._trained: list[tuple[int, FrozenTrial, Policy]] = []
        """The number of trials that a policy has learned from, the last of these trials, and the policy."""

    def take(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.PRUNED:
            return
        if not self._options:
            self._options = {name: options_of(found) for name, found in sorted(trial.distributions.items())}
        self._by_number[number_of(trial)] = trial
        self.known[place_in(self._options, trial.params)] = trial

    def policy(self, settings: PolicySettings, finished: Sequence[FrozenTrial], *, study_seed: int) -> Policy:
        """A copy of the policy trained on these trials, at least one."""
        if self._made_for != (settings, study_seed):
            self._made_for = (settings, study_seed)
            self._trained = []
        while self._trained and not _starts_with(finished, self._trained[-1]):
            self._trained.pop()
        if self._trained:
            num_learned, _, policy = self._trained[-1]
            policy = policy.copy()
        else:
            num_learned, policy = 0, self._untrained(settings, study_seed)
        for place in range(num_learned, len(finished)):
            self._learn(policy, finished[place])
            if (place + 1) % _KEEP_EVERY == 0 or place + 1 == len(finished):
                self._keep(place + 1, finished[place], policy.copy())
        return policy

    def _untrained(self, settings: PolicySettings, study_seed: int) -> Policy:
        return Policy(
            self._options,
            seed=study_seed,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            rewards=Rewards(self._signs, window=settings.window),
        )

    def _learn(self, policy: Policy, trial: FrozenTrial) -> None:
        repeats = trial.system_attrs.get(REPEATS)
        if repeats is None:
            return
        for number in repeats:
            again = self._by_number[number]
            policy.learn(policy.place(again.params), again.values)
        policy.learn(policy.place(trial.params), trial.values)

    def _keep(self, num_learned: int, last: FrozenTrial, policy: Policy) -> None:
        """Store a policy and discard the oldest ones.

        It replaces the newest one, unless that has learned from a multiple of `_KEEP_EVERY` trials.
        """
        if self._trained and self._trained[-1][0] % _KEEP_EVERY:
            self._trained.pop()
        self._trained.append((num_learned, last, policy))
        del self._trained[:-_MAX_KEPT]


def _starts_with(finished: Sequence[FrozenTrial], trained: tuple[int, FrozenTrial, Policy]) -> bool:
    """Whether the trials start with those that a policy has learned from. Trials are only ever added."""
    num_learned, last, _ = trained
    return num_learned <= len(finished) and finished[num_learned - 1] is last


def trained_policy(
    settings: PolicySettings, study: Study, finished: Sequence[FrozenTrial], *, study_seed: int
) -> Policy | None:
    """The policy trained on the finished trials that it drew, in their order; `None` if no trial has finished."""
    if not finished:
        return None
    return history_of(study).view(Policies).policy(settings, finished, study_seed=study_seed)


def _remember(study: Study, trial: FrozenTrial, repeats: list[int] | None) -> None:
    study._storage.set_trial_system_attr(trial._trial_id, REPEATS, repeats)
