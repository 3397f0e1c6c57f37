"""Past trials, as samplers need them. Each trial is read once, after it ended, instead of for every suggestion.

A sampler exists for one suggestion only. Data that it derives from trials is kept with the study instead, in views that
receive each ended trial. Views depend on the trials only, so a study that is rebuilt from rows has the same views.
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
"""User attribute of each Optuna trial that represents one of our trials. Refused suggestions do not have it."""


class View(Protocol):
    """Data that a sampler derives from ended trials."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None: ...

    def take(self, trial: FrozenTrial) -> None:
        """Add an ended trial. Trials arrive in the order in which their end was noticed, not by number."""
        ...


AnyView = TypeVar("AnyView", bound=View)


class History:
    """The trials of a study without refused suggestions. "By number" means sorted by `number_of`."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._directions = tuple(directions)
        self._num_read = 0
        self._open: list[int] = []  # indices of trials that have not ended
        self._views: dict[type[Any], View] = {}
        self._ended: list[FrozenTrial] = []
        self.complete: list[FrozenTrial] = []
        """Complete trials, by number."""
        self.distributions: dict[str, BaseDistribution] = {}
        """Distributions of all parameters of ended trials."""
        self.running: list[FrozenTrial] = []
        """Running trials, by number, including the one to suggest parameters for."""

    @property
    def num_ended(self) -> int:
        """Number of complete, pruned and failed trials. While it does not change, no view changes."""
        return len(self._ended)

    @property
    def ended(self) -> Sequence[FrozenTrial]:
        """Complete, pruned and failed trials, in the order in which their end was noticed."""
        return self._ended

    def view(self, kind: type[AnyView]) -> AnyView:
        """The view of a class, created from all ended trials at the first call."""
        if kind not in self._views:
            view = kind(self._directions)
            for trial in self._ended:
                view.take(trial)
            self._views[kind] = view
        return cast("AnyView", self._views[kind])

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the changes since the last call.

        Args:
            trials: All trials of the study in Optuna's order. Trials never disappear, and ended trials never change.
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
    """The up-to-date history of a study."""
    history = _histories.get(study)
    if history is None:
        history = _histories[study] = History(study.directions)
    history.read(study.get_trials(deepcopy=False))
    return history


class FinishedTrials:
    """A view of our complete and failed trials, by number."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:  # noqa: ARG002 - a view's signature
        self.trials: list[FrozenTrial] = []

    def take(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.PRUNED and TRIAL_NUMBER in trial.user_attrs:
            insort(self.trials, trial, key=number_of)


class KnownPoints:
    """A view of the points of all ended trials, including failed and pruned ones."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:  # noqa: ARG002 - a view's signature
        self._points: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}

    def take(self, trial: FrozenTrial) -> None:
        names = tuple(sorted(trial.params))
        self._points.setdefault(names, set()).add(tuple([trial.params[name] for name in names]))

    def __contains__(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial had these values. Values of dimensions that the trial did not have are ignored."""
        for names, points in self._points.items():
            if all(name in values for name in names) and tuple([values[name] for name in names]) in points:
                return True
        return False


def finished_trials(study: Study, *, num_trials: int | None = None) -> list[FrozenTrial]:
    """Our complete and failed trials, by number. A study rebuilt from rows has the same finished trials.

    Args:
        study: The study.
        num_trials: Trials with this number or a higher one are ignored.
    """
    ours = history_of(study).view(FinishedTrials).trials
    return list(ours) if num_trials is None else [trial for trial in ours if number_of(trial) < num_trials]


def number_of(trial: FrozenTrial) -> int:
    """The number of our trial that an Optuna trial represents; Optuna's number if it does not represent one."""
    number: int = trial.user_attrs.get(TRIAL_NUMBER, trial.number)
    return number


def options_of(distribution: BaseDistribution) -> Sequence[Scalar]:
    """The values of a choice or a range of whole numbers, in order.

    Raises:
        ValueError: The distribution is continuous.
    """
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    raise ValueError(f"a distribution with options must be a choice or whole numbers, but got {distribution}.")
