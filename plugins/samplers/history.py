"""What a sampler sees of the trials before."""

from collections.abc import Sequence

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search_spaces.dimensions import Scalar

TRIAL_NUMBER = "number"
"""User attribute of each Optuna trial that stands for one of ours. Suggestions that were refused have none."""


def finished_trials(study: Study, *, num_trials: int | None = None) -> list[FrozenTrial]:
    """Our trials that ended, failed ones too, by their numbers: the same in a study rebuilt from rows.

    Args:
        study: The study.
        num_trials: Leave those with this number or a higher one aside.
    """
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    ours = [trial for trial in ended if TRIAL_NUMBER in trial.user_attrs]
    ours.sort(key=number_of)
    return ours if num_trials is None else [trial for trial in ours if number_of(trial) < num_trials]


def number_of(trial: FrozenTrial) -> int:
    """The number of our trial that an Optuna trial stands for."""
    number: int = trial.user_attrs[TRIAL_NUMBER]
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
