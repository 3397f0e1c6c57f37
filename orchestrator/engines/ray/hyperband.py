"""HyperBand for searches whose trials come one after another."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, TrialScheduler
from ray.tune.schedulers.hyperband import _Bracket


class _WholeBracket(_Bracket):
    """A bracket that counts the trials that it was given, not those that have not ended."""

    def filled(self) -> bool:
        return bool(len(self._all_trials) >= self._n0)


class WholeBrackets(HyperBandScheduler):
    """Ray's HyperBand, whose brackets wait until they are full.

    Ray halves a bracket as soon as those of its trials that are there have come to the rung, and a trial that ends
    makes room for another one. Where trials come one after another, the first bracket takes them all and stops none.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """As Ray's; a bracket that will not be filled any more is halved as it is."""
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
