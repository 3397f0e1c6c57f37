"""PASHA as a Ray Tune scheduler: ASHA whose highest rung rises only while the ranking still changes."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.engines.ray.pickling import NotPickled

_FIRST_TOP = 2
"""Index of the rung that is the highest one at the start."""
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
    """How far apart two trials may be, at an epoch, and still count as equal.

    That is the 90th percentile of the differences at that epoch over the pairs whose order changed and changed back
    on the way; 0 where there is no such pair.

    Args:
        curves: Values of each trial after epochs 1, 2, ...; those that did not come so far are left aside.
        epoch: Epochs of the rung.
    """
    far = {name: np.asarray(curve[:epoch]) for name, curve in curves.items() if len(curve) >= epoch}
    gaps = []
    for first, second in combinations(far, 2):
        signs = np.sign(far[first] - far[second])
        signs = signs[signs != 0]
        if np.count_nonzero(signs[1:] != signs[:-1]) >= 2:
            gaps.append(abs(float(far[first][-1] - far[second][-1])))
    return float(np.percentile(gaps, _PERCENTILE)) if gaps else 0.0


def ranking_changed(below: Mapping[str, float], top: Mapping[str, float], noise: float) -> bool:
    """Whether a trial of the top rung left the group of equals at its place of the rung below.

    Args:
        below: Values at the second highest rung.
        top: Values at the highest one; its trials are among those of `below`.
        noise: Trials within that of each other are equal.

    Source: Bohdal et al. 2023, arXiv:2207.06940, soft ranking.
    """
    by_top = sorted(top, key=lambda name: -top[name])
    by_below = sorted(top, key=lambda name: -below[name])
    return any(
        abs(below[here] - below[there]) > noise for here, there in zip(by_top, by_below, strict=True) if here != there
    )


class PashaScheduler(NotPickled, FIFOScheduler):
    """Progressive asynchronous successive halving.

    A trial that reaches a rung below the highest one goes on if it is among the best `1 / reduction_factor` of those
    that came there before it, else it is stopped. At the highest rung it waits. When the ranking there differs from
    that of the rung below, the next rung is opened, and the best of those that wait go on. Whoever still waits when
    nothing else is left to do is stopped.

    Args:
        metric: What is compared.
        mode: `max` or `min`.
        budget: Epochs of a whole training.
        grace: Epochs of the first rung.
        reduction_factor: One in this many goes on.

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
        """Epochs of the highest rung that is open."""
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
            return str(TrialScheduler.CONTINUE)  # it has trained to its end
        if index >= self._top:
            self._waiting[trial.trial_id] = trial
            return str(TrialScheduler.PAUSE)
        goes_on = not others or value >= np.percentile(others, (1 - 1 / self._factor) * 100)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """A new trial, else one of those that wait and may go on; once nothing else is left, the others are stopped."""
        chosen = super().choose_trial_to_run(_WithoutPaused(tune_controller))
        if chosen is not None:
            return chosen
        for name, trial in self._waiting.items():
            if trial.status == Trial.PAUSED and self._may_go_on(name):
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
        """Open the next rung where the ranking at the top one says so."""
        if self._top + 1 >= len(self._rungs) or self._top == 0:
            return
        below, top = self._values[self._top - 1], self._values[self._top]
        shared = {name: value for name, value in top.items() if name in below}
        if len(shared) > 1 and ranking_changed(below, shared, noise_level(self._curves, self.top_epoch)):
            self._top += 1

    def _may_go_on(self, name: str) -> bool:
        """Whether one that waits at a rung that is not the highest any more is among its best."""
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
    """What `FIFOScheduler.choose_trial_to_run` sees: it would go on with any paused trial."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def get_trials(self) -> list[Trial]:
        return [trial for trial in self._controller.get_trials() if trial.status != Trial.PAUSED]
