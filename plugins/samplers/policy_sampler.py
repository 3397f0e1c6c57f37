"""REINFORCE as an Optuna sampler: the policy follows from the finished trials, in the order of their numbers."""

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
"""System attribute of a trial: numbers of the trials that the policy drew again just before it drew this one. `None`
where the policy had settled on known points and this one was drawn around them: the policy does not learn from it."""
_MAX_REPEATS = 10
"""Known points that are learned from again for one suggestion; a policy that has settled would do nothing else."""
_MAX_DRAWS = 50
_WARMING = 1.1
"""Factor between the temperatures of two draws, once `_MAX_DRAWS` of the policy gave known points only."""
_MAX_TEMPERATURE = 100.0
_KEEP_EVERY = 32
"""Trials between two policies that are kept, to go on from them when a trial before the newest ones ends late."""
_MAX_KEPT = 8


class PolicySampler(BaseSampler):
    """Draws from the policy; the first trial is uniform, which the untrained policy is too."""

    def __init__(self, settings: PolicySettings, *, seed: int, study_seed: int) -> None:
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
            temperature *= _WARMING
            drawn = policy.draw(rng, temperature=temperature)
        return policy.values(drawn)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Uniform, as long as nothing is known."""
        return self._uniform.sample_independent(study, trial, param_name, param_distribution)


class Policies:
    """A view: policies that were trained on the first few, the first few more, ... of the finished trials.

    Trials seldom end in the order of their numbers when several run. One that ends late is learned from in its place.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions]
        self.known: dict[Drawn, FrozenTrial] = {}
        """The trial of each point."""
        self._options: dict[str, Sequence[Scalar]] = {}
        self._by_number: dict[int, FrozenTrial] = {}
        self._made_for: tuple[PolicySettings, int] | None = None
        self._trained: list[tuple[int, FrozenTrial, Policy]] = []
        """How many trials a policy has learned from, the last of them, and the policy."""

    def take(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.PRUNED:
            return
        if not self._options:
            self._options = {name: options_of(found) for name, found in sorted(trial.distributions.items())}
        self._by_number[number_of(trial)] = trial
        self.known[place_in(self._options, trial.params)] = trial

    def policy(self, settings: PolicySettings, finished: Sequence[FrozenTrial], *, study_seed: int) -> Policy:
        """A copy of the policy after these trials, of which there is at least one."""
        if self._made_for != (settings, study_seed):
            self._made_for = (settings, study_seed)
            self._trained = []
        while self._trained and not _begins(finished, self._trained[-1]):
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
        """In place of the newest one that is not one of every `_KEEP_EVERY`; the oldest ones are dropped."""
        if self._trained and self._trained[-1][0] % _KEEP_EVERY:
            self._trained.pop()
        self._trained.append((num_learned, last, policy))
        del self._trained[:-_MAX_KEPT]


def _begins(finished: Sequence[FrozenTrial], trained: tuple[int, FrozenTrial, Policy]) -> bool:
    """Whether the trials begin with those that a policy has learned from: trials are added to them only."""
    num_learned, last, _ = trained
    return num_learned <= len(finished) and finished[num_learned - 1] is last


def trained_policy(
    settings: PolicySettings, study: Study, finished: Sequence[FrozenTrial], *, study_seed: int
) -> Policy | None:
    """The policy after those finished trials that it drew, in their order; `None` where none has finished."""
    if not finished:
        return None
    return history_of(study).view(Policies).policy(settings, finished, study_seed=study_seed)


def _remember(study: Study, trial: FrozenTrial, repeats: list[int] | None) -> None:
    study._storage.set_trial_system_attr(trial._trial_id, REPEATS, repeats)
