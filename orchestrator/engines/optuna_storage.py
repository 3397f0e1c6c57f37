"""Optuna's in-memory storage with shortcuts, for trials that arrive with all their values.

Optuna's own calls copy a trial for each value that is set, and once more when it is added. Together with
`OptunaSuggester._draw`, the shortcuts reduce the CPU time of asking for and telling a trial with 12 values to about 1/5
with the random sampler and to 3/4 with TPE (`python -m benchmarks.shortcuts`).
"""

import copy

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial


class TrialStorage(InMemoryStorage):
    """Adds and replaces whole trials without copying them."""

    def add(self, study_id: int, trial: FrozenTrial) -> int:
        """Add a trial, which belongs to the storage from now on, and return its id. Optuna checks and copies it."""
        with self._lock:
            trial_id = self.create_new_trial(study_id)
            trial.number = self.get_trial_number_from_id(trial_id)
            trial._trial_id = trial_id
            self._set_trial(trial_id, trial)
            self._update_cache(trial_id, study_id)
            return trial_id

    def replace(self, trial_id: int, trial: FrozenTrial) -> None:
        """Put a copy of a running trial, with its values set, in its place; the sampler's notes on it are kept."""
        with self._lock:
            before = self._get_trial(trial_id)
            self.check_trial_is_updatable(trial_id, before.state)
            trial.system_attrs = before.system_attrs
            self._set_trial(trial_id, trial)

    def clear(self, trial_id: int) -> None:
        """Remove the sampler's notes on a running trial."""
        with self._lock:
            trial = self._get_trial(trial_id)
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.system_attrs:
                trial = copy.copy(trial)
                trial.system_attrs = {}
                self._set_trial(trial_id, trial)
