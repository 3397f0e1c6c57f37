"""What samplers look up in the trials before. Each is read once, when it has ended, and not for every suggestion.

A sampler is made for one suggestion and then gone. What it derives from the trials is kept with the study instead, as
views that are handed each trial that ended. They follow from the trials alone, so that a study that was rebuilt from
rows has the same.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search_spaces.dimensions import Scalar

TRIAL_NUMBER = "number"
"""User attribute of each Optuna trial that stands for one of ours. Suggestions that were refused have none."""


class View(Protocol):
    """What a sampler derives from the trials that ended."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None: ...

    def take(self, trial: FrozenTrial) -> None:
        """One more trial ended. Trials come in the order in which they were seen to end, not by their numbers."""
        ...


AnyView = TypeVar("AnyView", bound=View)


class History:
    """The trials of a study but for refused suggestions. By number means: by that of ours where it stands for one."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._directions = tuple(directions)
        self._num_read = 0
        self._open: list[int] = []  # places of trials that had not ended
        self._views: dict[type[Any], View] = {}
        self._ended: list[FrozenTrial] = []
        self.complete: list[FrozenTrial] = []
        """Complete trials, by number."""
        self.distributions: dict[str, BaseDistribution] = {}
        """Of every parameter that an ended trial had."""
        self.running: list[FrozenTrial] = []
        """Trials that run, by number; also the one that a suggestion is made for."""

    @property
    def num_ended(self) -> int:
        """Complete, pruned and failed trials; as long as it is the same, so are all views."""
        return len(self._ended)

    @property
    def ended(self) -> Sequence[FrozenTrial]:
        """Complete, pruned and failed trials, in the order in which they were seen to have ended."""
        return self._ended

    def view(self, kind: type[AnyView]) -> AnyView:
        """The view of that class; made of all ended trials when it is first asked for."""
        if kind not in self._views:
            view = kind(self._directions)
            for trial in self._ended:
                view.take(trial)
            self._views[kind] = view
        return cast("AnyView", self._views[kind])

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Learn what happened since the last time.

        Args:
            trials: All of the study in Optuna's order, where none goes away and ended ones do not change.
        """
        still_open = []
        self.running = []
        for place in chain(self._open, range(self._num_read, len(trials))):
            trial = trials[place]
            if trial.state.is_finished():
                self._take(trial)
                continue
            still_open.append(place)
            if trial.state == TrialState.RUNNING:
                insort(self.running, trial, key=number_of)
        self._open, self._num_read = still_open, len(trials)

    def _take(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL and TRIAL_NUMBER not in trial.user_attrs:
            return  # a refused suggestion
        self._ended.append(trial)
        self.distributions.update(trial.distributions)
        if trial.state == TrialState.COMPLETE:
            insort(self.complete, trial, key=number_of)
        for view in self._views.values():
            view.take(trial)


_histories: WeakKeyDictionary[Study, History] = WeakKeyDictionary()


def history_of(study: Study) -> History:
    """The history of a study, up to now."""
    history = _histories.get(study)
    if history is None:
        history = _histories[study] = History(study.directions)
    history.read(study.get_trials(deepcopy=False))
    return history


class FinishedTrials:
    """A view: our trials that ended, failed ones too but not pruned ones, by number."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:  # noqa: ARG002 - a view's signature
        self.trials: list[FrozenTrial] = []

    def take(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.PRUNED and TRIAL_NUMBER in trial.user_attrs:
            insort(self.trials, trial, key=number_of)


class KnownPoints:
    """A view: the points of all trials that ended, failed and pruned ones too."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:  # noqa: ARG002 - a view's signature
        self._points: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}

    def take(self, trial: FrozenTrial) -> None:
        names = tuple(sorted(trial.params))
        self._points.setdefault(names, set()).add(tuple([trial.params[name] for name in names]))

    def __contains__(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial had these values. Values of dimensions that it did not have do not count."""
        for names, points in self._points.items():
            if all(name in values for name in names) and tuple([values[name] for name in names]) in points:
                return True
        return False


def finished_trials(study: Study, *, num_trials: int | None = None) -> list[FrozenTrial]:
    """Our trials that ended, failed ones too, by their numbers: the same in a study rebuilt from rows.

    Args:
        study: The study.
        num_trials: Leave those with this number or a higher one aside.
    """
    ours = history_of(study).view(FinishedTrials).trials
    return list(ours) if num_trials is None else [trial for trial in ours if number_of(trial) < num_trials]


def number_of(trial: FrozenTrial) -> int:
    """The number of our trial that an Optuna trial stands for; Optuna's own where it stands for none."""
    number: int = trial.user_attrs.get(TRIAL_NUMBER, trial.number)
    return number


def options_of(distribution: BaseDistribution) -> Sequence[Scalar]:
    """The values of a choice or whole number, in order.

    Raises:
        ValueError: The distribution is continuous.
    """
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    raise ValueError(f"only choices and whole numbers can be listed, but got {distribution}.")
