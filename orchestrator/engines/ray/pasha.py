"""PASHA as a Ray Tune scheduler: ASHA that raises its highest rung only while the ranking still changes."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.engines.ray.pickling import NotPickled

_FIRST_TOP = 2
"""Index of the highest rung at the start."""
_PERCENTILE = 90


def rungs(grace: int, reduction_factor: float, budget: int) -> list[int]:
    """Epochs of the rungs, ascending: `grace * reduction_factor^k` below the budget, then the budget."""
    found: list[int] = []
    milestone = float(grace)
    while milestone < budget:
        found.append(round(milestone))
        milestone *= reduction_factor
    return [*dict.fromkeys(found), budget]


def noise_level(curves: Mapping[str, Sequence[float]], epoch: int) -> float:
    """The largest difference at an epoch at which two trials still count as equal.

    It is the 90th percentile of the differences at that epoch over all pairs whose order changed and changed back
    before; 0 if there is no such pair.

    Args:
        curves: Values of each trial after epochs 1, 2, ...; shorter curves are left out.
        epoch: Epoch of the rung.
    """
    reached = {name: np.asarray(curve[:epoch]) for name, curve in curves.items() if len(curve) >= epoch}
    gaps = []
    for first, second in combinations(reached, 2):
        signs = np.sign(reached[first] - reached[second])
        signs = signs[signs != 0]
        if np.count_nonzero(signs[1:] != signs[:-1]) >= 2:
            gaps.append(abs(float(reached[first][-1] - reached[second][-1])))
    return float(np.percentile(gaps, _PERCENTILE)) if gaps else 0.0


def ranking_changed(below: Mapping[str, float], top: Mapping[str, float], noise: float) -> bool:
    """Whether the ranking at the top rung differs from that of the rung below by more than noise.

    Args:
        below: Values at the second highest rung.
        top: Values at the highest rung; its trials are among those of `below`.
        noise: Trials whose values differ by at most this much count as equal.

    Source: Bohdal et al. 2023, arXiv:2207.06940, soft ranking.
    """
    by_top = sorted(top, key=lambda name: -top[name])
    by_below = sorted(top, key=lambda name: -below[name])
    return any(
        abs(below[here] - below[there]) > noise for here, there in zip(by_top, by_below, strict=True) if here != there
    )


class PashaScheduler(NotPickled, FIFOScheduler):
    """Progressive asynchronous successive halving.

    A trial that reaches a rung below the highest one continues if it is among the best `1 / reduction_factor` of the
    trials that reached it before; otherwise it is stopped. At the highest rung, trials wait. When the ranking there
    differs from that of the rung below, the next rung opens and the best waiting trials continue. When no other trial
    is left to run, trials that are still waiting are stopped.

    Args:
        metric: The metric to compare.
        mode: `max` or `min`.
        budget: Epochs of a whole training.
        grace: Epoch of the first rung.
        reduction_factor: One in this many trials continues.

    Source: Bohdal et al. 2023, arXiv:2207.06940; noise and first rung as in syne-tune's code.
    """

    def __init__(self, *, metric: str, mode: str, budget: int, grace: int, reduction_factor: float) -> None:
        super().__init__()
        self._metric, self._mode = metric, mode
        self._sign = 1.0 if mode == "max" else -1.0
        self._factor = reduction_factor
        self._rungs = rungs(grace, reduction_factor, budget)
        self._top = min(len(self._rungs) - 1, _FIRST_TOP)
        self._values: list[dict[str, float]] = [{} for _ in self._rungs]
        self._curves: dict[str, list[float]] = {}
        self._waiting: dict[str, Trial] = {}

    @property
    def top_epoch(self) -> int:
        """Epoch of the highest open rung."""
        return self._rungs[self._top]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002
        epoch, value = result["epoch"], self._sign * result[self._metric]
        self._curves[trial.trial_id] = [*self._curves.get(trial.trial_id, [])[: epoch - 1], value]
        if epoch not in self._rungs:
            return str(TrialScheduler.CONTINUE)
        index = self._rungs.index(epoch)
        others = list(self._values[index].values())
        self._values[index][trial.trial_id] = value
        if index >= self._top:
            self._open_next()
        if index == len(self._rungs) - 1:
            return str(TrialScheduler.CONTINUE)  # the trial has used its whole budget
        if index >= self._top:
            self._waiting[trial.trial_id] = trial
            return str(TrialScheduler.PAUSE)
        continues = not others or value >= np.percentile(others, (1 - 1 / self._factor) * 100)
        return str(TrialScheduler.CONTINUE if continues else TrialScheduler.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """A new trial, or a waiting one that may continue. If there is neither, all waiting trials are stopped."""
        chosen = super().choose_trial_to_run(_WithoutPaused(tune_controller))
        if chosen is not None:
            return chosen
        for name, trial in self._waiting.items():
            if trial.status == Trial.PAUSED and self._may_continue(name):
                del self._waiting[name]
                return trial
        left = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if left and tune_controller.search_alg.is_finished() and all(one.status == Trial.PAUSED for one in left):
            for trial in left:
                self._waiting.pop(trial.trial_id, None)
                tune_controller.stop_trial(trial)
        return None

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        self._forget(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002
        self._waiting.pop(trial.trial_id, None)

    def debug_string(self) -> str:
        return f"PASHA: rungs up to epoch {self.top_epoch} are open"

    def _open_next(self) -> None:
        """Open the next rung if the ranking has changed at the top one."""
        if self._top + 1 >= len(self._rungs) or self._top == 0:
            return
        below, top = self._values[self._top - 1], self._values[self._top]
        shared = {name: value for name, value in top.items() if name in below}
        if len(shared) > 1 and ranking_changed(below, shared, noise_level(self._curves, self.top_epoch)):
            self._top += 1

    def _may_continue(self, name: str) -> bool:
        """Whether a waiting trial is among the best of its rung, which is no longer the highest."""
        at = max(index for index, values in enumerate(self._values) if name in values)
        if at >= self._top:
            return False
        best = sorted(self._values[at].values(), reverse=True)
        return self._values[at][name] >= best[max(1, int(len(best) / self._factor)) - 1]

    def _forget(self, trial: Trial) -> None:
        for values in self._values:
            values.pop(trial.trial_id, None)
        self._curves.pop(trial.trial_id, None)
        self._waiting.pop(trial.trial_id, None)


class _WithoutPaused:
    """Hides paused trials from `FIFOScheduler.choose_trial_to_run`, which would resume any of them."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def get_trials(self) -> list[Trial]:
        return [trial for trial in self._controller.get_trials() if trial.status != Trial.PAUSED]
