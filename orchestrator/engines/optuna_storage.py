"""Optuna's storage in memory, for trials that come with all their values at once."""

import copy

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial


class TrialStorage(InMemoryStorage):
    """Each of Optuna's own calls for one value copies the trial, and adding one copies all that is in it."""

    def add(self, study_id: int, trial: FrozenTrial) -> int:
        """Add a trial, which is the storage's from now on; its id. Optuna checks and copies it."""
        with self._lock:
            trial_id = self.create_new_trial(study_id)
            trial.number = self.get_trial_number_from_id(trial_id)
            trial._trial_id = trial_id
            self._set_trial(trial_id, trial)
            self._update_cache(trial_id, study_id)
            return trial_id

    def replace(self, trial_id: int, trial: FrozenTrial) -> None:
        """Put a copy of a running trial, with its values set, in its place; what samplers noted with it is kept."""
        with self._lock:
            noted = self._get_trial(trial_id)
            self.check_trial_is_updatable(trial_id, noted.state)
            trial.system_attrs = noted.system_attrs
            self._set_trial(trial_id, trial)

    def clear(self, trial_id: int) -> None:
        """Forget what a sampler noted with a running trial."""
        with self._lock:
            trial = self._get_trial(trial_id)
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.system_attrs:
                trial = copy.copy(trial)
                trial.system_attrs = {}
                self._set_trial(trial_id, trial)
