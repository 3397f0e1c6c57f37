"""HyperBand for searches whose trials start one after another."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket


class _WholeBracket(_Bracket):
    """A bracket that counts all its trials, not only unfinished ones."""

    def filled(self) -> bool:
        return bool(len(self._all_trials) >= self._n0)


class WholeBrackets(HyperBandScheduler):
    """Ray's HyperBand with brackets that wait until they are full.

    Ray halves a bracket as soon as its present trials have reached the rung, and a trial that ends makes room for
    another one. If trials start one after another, Ray's first bracket takes them all and stops none.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Like Ray's method, but a bracket that can no longer be filled is halved with the trials that it has."""
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is None and tune_controller.search_alg.is_finished():
            for bracket in [bracket for band in self._hyperbands for bracket in band if bracket is not None]:
                trials = bracket.current_trials()
                if not bracket.filled() and trials and all(trial.status == Trial.PAUSED for trial in trials):
                    bracket._n0 = len(bracket._all_trials)
                    self._process_bracket(tune_controller, bracket)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _create_bracket(self, s: int) -> _WholeBracket:
        return _WholeBracket(
            time_attr=self._time_attr,
            max_trials=self._get_n0(s),
            init_t_attr=self._get_r0(s),
            max_t_attr=self._max_t_attr,
            eta=self._eta,
            s=s,
            stop_last_trials=self._stop_last_trials,
        )

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        if not bracket.filled() and not tune_controller.search_alg.is_finished():
            return str(TrialScheduler.PAUSE)
        return str(super()._process_bracket(tune_controller, bracket))
