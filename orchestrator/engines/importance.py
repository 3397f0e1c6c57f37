"""How much each dimension of a search mattered for its result, by Optuna's evaluator."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.optuna_space import OptunaSpace
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Dimension

optuna.logging.set_verbosity(optuna.logging.ERROR)

MIN_TRIALS = 10
"""With fewer trials, importances are mostly noise."""
_MIN_BEST = 4


def importances(
    dimensions: Sequence[Dimension], trials: Sequence[TrialRecord], objective: Objective
) -> dict[str, float]:
    """The importance of each dimension, largest first; they sum to 1.

    PED-ANOVA compares how the best trials are distributed over a dimension with how all trials are.

    Args:
        dimensions: Dimensions of the search.
        trials: Its trials; only those that ran to their end count.
        objective: The metric to explain.

    Returns:
        Importances by name; empty if there are too few trials, or if none of the dimensions mattered.

    Source: Watanabe, Bansal and Hutter 2023, arXiv:2304.10255.
    """
    whole = [trial for trial in trials if trial.state == "complete" and objective.metric in trial.metrics]
    if len(whole) < MIN_TRIALS or len({trial.metrics[objective.metric] for trial in whole}) == 1:
        return {}
    space = OptunaSpace(dimensions)
    study = optuna.create_study(direction=objective.direction)
    study.add_trials(
        [
            create_trial(
                value=trial.metrics[objective.metric],
                params=dict(trial.point),
                distributions=space.distributions_of(trial.point),
            )
            for trial in whole
        ]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, _MIN_BEST / len(whole)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about few trials, whose number the figure states
        found = evaluator.evaluate(study)
    total = sum(found.values())
    if not total > 0:
        return {}
    return {name: value / total for name, value in sorted(found.items(), key=lambda pair: -pair[1])}
