"""Optuna's NSGA-II for many trials. A study rebuilt from rows repeats its suggestions."""

from bisect import insort
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIISampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from plugins.samplers.history import History, history_of, number_of

GENERATION = "OrderedNsga2:generation"
"""System attribute of a trial: its generation, starting at 0."""
PARENTS = "OrderedNsga2:parents"
"""System attribute of the first trial of a generation: the numbers of its parents."""


class OrderedNsga2(NSGAIISampler):
    """NSGA-II that reads each trial once, after it ended. Optuna reads all trials for each suggestion.

    The parents of a generation are chosen when its first trial is drawn, and recorded with this trial. Trials of the
    previous generation that end later are not among them. Optuna records the parents with the study, which ends with
    its process, and returns them by rank at first and by number later.
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """The parameters that all complete trials have in common."""
        shared = history_of(study).view(Generations).shared
        return {name: found for name, found in sorted(shared.items()) if not found.single()}

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """The newest generation, or the next one if that is full."""
        recorded: int | None = trial.system_attrs.get(GENERATION)
        if recorded is not None:
            return recorded
        generations = history_of(study).view(Generations)
        generation = generations.newest
        if len(generations.population(generation)) >= (self.population_size or 0):
            generation += 1
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, generation)
        return generation

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Complete trials of a generation, by number."""
        return list(history_of(study).view(Generations).population(generation))

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation, by number."""
        history = history_of(study)
        generations = history.view(Generations)
        known = generation
        while known > 0 and generations.parents(known, history) is None:
            known -= 1
        for later in range(known + 1, generation):  # rows of older versions do not record the parents
            generations.remember(later, self.select_parent(study, later))
        if known < generation:
            return sorted(self.select_parent(study, generation), key=number_of)
        return generations.parents(generation, history) or []

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A child of two parents; no values in the first generation, which is random."""
        history = history_of(study)
        generation = self.get_trial_generation(study, trial)
        if generation > 0 and history.view(Generations).parents(generation, history) is None:
            parents = self.get_parent_population(study, generation)
            study._storage.set_trial_system_attr(trial._trial_id, PARENTS, [number_of(parent) for parent in parents])
        return super().sample_relative(study, trial, search_space)


class Generations:
    """A view of the trials of each generation and their parents."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:  # noqa: ARG002 - a view's signature
        self.newest = 0
        self._shared: dict[str, BaseDistribution] | None = None
        self._complete: dict[int, FrozenTrial] = {}
        self._populations: dict[int, list[FrozenTrial]] = {}
        self._recording: dict[int, FrozenTrial] = {}
        self._remembered: dict[int, list[FrozenTrial]] = {}

    @property
    def shared(self) -> dict[str, BaseDistribution]:
        """Parameters that all complete trials have in common, with the same distribution."""
        return self._shared or {}

    def take(self, trial: FrozenTrial) -> None:
        recorded = _records_parents_of(trial)
        if recorded is not None:
            self._recording[recorded] = min(self._recording.get(recorded, trial), trial, key=number_of)
        if trial.state != TrialState.COMPLETE:
            return
        self._complete[number_of(trial)] = trial
        if self._shared is None:
            self._shared = dict(trial.distributions)
        for name, found in list(self._shared.items()):
            other = trial.distributions.get(name)
            if other is not found and other != found:
                del self._shared[name]
        generation = trial.system_attrs.get(GENERATION)
        if generation is not None:
            insort(self._populations.setdefault(generation, []), trial, key=number_of)
            self.newest = max(self.newest, generation)

    def population(self, generation: int) -> Sequence[FrozenTrial]:
        """Complete trials of a generation, by number."""
        return self._populations.get(generation, ())

    def parents(self, generation: int, history: History) -> list[FrozenTrial] | None:
        """The parents that a trial of the generation recorded, by number; `None` if no trial did."""
        recording = [trial for trial in history.running if _records_parents_of(trial) == generation]
        if generation in self._recording:
            recording.append(self._recording[generation])
        if not recording:
            return self._remembered.get(generation)
        numbers = min(recording, key=number_of).system_attrs[PARENTS]
        return [self._complete[number] for number in sorted(numbers)]

    def remember(self, generation: int, parents: Sequence[FrozenTrial]) -> None:
        """Store parents that no trial recorded."""
        self._remembered[generation] = sorted(parents, key=number_of)


def _records_parents_of(trial: FrozenTrial) -> int | None:
    return trial.system_attrs[GENERATION] if PARENTS in trial.system_attrs else None
