"""Trains the best trials again with other seeds, and the winner on all images; for stage `promote`."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import FinishedStage, StageResult
from orchestrator.stages.retention import drop_checkpoints, num_kept_by, trial_folder
from orchestrator.stages.train import configuration_of, training_parameters
from orchestrator.stages.train_result import TrainResult, ranking, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Point
from trainers.config import Configuration, TrainTask
from trainers.storage.artifacts import artifacts_at

FINALIST, REPEAT, REFIT, STOP_AT = "finalist", "repeat", "refit", "stop_at"
"""Keys of the points of these trainings, beside those of the trial that they repeat."""
Trained = FinishedStage[TrainStage, TrainResult]


class Finalist(StageResult):
    """A trial that was trained again with other seeds."""

    trial: int
    """Its number in the train stage."""
    retrained: tuple[int, ...]
    """Numbers of its trainings with a result, in the promote stage."""
    values: tuple[float, ...]
    """The figure by which the train stage ranks its trials, of each of them."""
    mean: float
    spread: float | None
    """Standard deviation of the values; `None` if there is only one."""


class FixedPoints:
    """Suggests points of a list, one after the other."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    @property
    def shortage(self) -> str | None:
        """`None`, because every point is suggested."""
        return None

    def ask(self, number: int) -> Suggestion | None:
        return Suggestion(self._points[number], {}) if number < len(self._points) else None

    def expect(self, trial: TrialRecord) -> None:
        """Nothing depends on other trials."""

    def tell(self, trial: TrialRecord) -> None:
        """Nothing depends on other trials."""


def retrain_finalists(
    context: StageContext, train: Trained, *, finalists: int, seeds: int, refits: bool
) -> list[Finalist]:
    """Train the best trials again, each with several other seeds; best mean first.

    The trials of the search are not counted: the best of many was lucky, too, and its new trainings were not selected.

    Args:
        context: The context of the promote stage.
        train: The train stage.
        finalists: Number of trials.
        seeds: Number of trainings of each.
        refits: Whether the stage trains one more model afterwards.

    Raises:
        StageInterruptedError: A stop was requested.
        StageFailedError: Every training failed.
    """
    from orchestrator.stages.searching import run_search

    objectives = (ranking(context, train.spec),)
    usable = [trial for trial in context.store.trials(train.record.id) if trial.is_usable]
    best = sort_trials(usable, objectives)[:finalists]
    if context.spec.cost is not None:  # the trial was chosen from the front, which need not be the best one
        best = [context.trial_of(train, train.result.best.trial)]
    if len(best) < finalists:
        context.progress.note(f"{len(best)} of the {finalists} finalists: no more trials have a result")
    _drop_leftovers(context)
    # The first seed of each, then the second: a deadline leaves all with about as many trainings.
    points = [{**trial.point, FINALIST: trial.number, REPEAT: repeat} for repeat in range(seeds) for trial in best]
    if not _refits(context):
        search = _search(context, train, points, objectives, epochs=train.spec.epochs)
        run_search(context, search, tracked=True, further=int(refits))
    values = _retrainings(context)
    found = [
        _finalist(objectives[0].metric, trial.number, values.get(trial.number, []))
        for trial in best
        if trial.number in values
    ]
    for trial in best:
        if trial.number not in values:
            context.progress.note(f"trial {trial.number} is no finalist any more: none of its trainings has a result")
    return sorted(found, key=lambda one: -context.metric.score(one.mean))


def best_retraining(context: StageContext, train: Trained, finalist: Finalist) -> TrialRecord:
    """The best training of a finalist. Weights that only the others need are deleted."""
    trials = context.store.trials(context.stage.id)
    mine = [trial for trial in trials if trial.number in finalist.retrained]
    best = sort_trials(mine, (ranking(context, train.spec),))[0]
    retrainings = [trial for trial in trials if REFIT not in trial.point]
    drop_checkpoints(context, retrainings, best=best, may_continue=lambda _: False)
    return best


def refit(context: StageContext, train: Trained, source: TrialRecord, *, stop_at: int | None) -> TrialRecord | None:
    """Train the configuration of a trial once more, on the training and validation part.

    Early stopping is off: the training has as many epochs as the trial had, or ends at the epoch `stop_at`.

    Returns:
        The training; `None` if a deadline passed before it ended.

    Raises:
        StageInterruptedError: A stop was requested, or there is no other training to promote.
        StageFailedError: The training failed.
    """
    from orchestrator.stages.searching import run_search

    if not context.store.trials(context.stage.id):
        _drop_leftovers(context)
    before = [trial for trial in context.store.trials(context.stage.id) if REFIT not in trial.point]
    number = source.point.get(FINALIST, source.number)
    point = {name: value for name, value in source.point.items() if name != REPEAT}
    epochs = int(source.metrics["epochs"])
    point |= {FINALIST: number, REFIT: epochs}
    if stop_at is not None and stop_at < epochs:  # else, early stopping ended the trial before
        point[STOP_AT] = stop_at
    points = [*(trial.point for trial in before), point]
    # The loss of the training is all that can be compared.
    objectives = (Objective("train_loss", "minimize"),)
    search = _search(context, train, points, objectives, epochs=min(epochs, stop_at or epochs), validates=False)
    is_shown = bool(before) and not _refits(context)  # `retrain_finalists` began the stage
    run_search(context, search, tracked=True, further=None if is_shown else 0)
    found = _refits(context)
    if found and found[-1].state == "failed":
        raise StageFailedError(f"the training on training and validation part failed: {found[-1].reason}")
    if not found or not found[-1].is_usable:
        return None
    drop_checkpoints(context, found, best=found[-1], may_continue=lambda _: False)
    return found[-1]


def retrained_configuration(context: StageContext, train: Trained, trial: TrialRecord) -> Configuration:
    """Everything needed to repeat a training of this stage."""
    configuration = configuration_of(context, train.spec, trial)
    if REFIT not in trial.point:
        return configuration
    epochs, stop_at = int(str(trial.point[REFIT])), trial.point.get(STOP_AT)
    changes = {"train_on": "train+validation", "stopping": None, "epochs": epochs, "stop_at": stop_at}
    return configuration.model_copy(update=changes)


def _search(
    context: StageContext,
    train: Trained,
    points: Sequence[Point],
    objectives: tuple[Objective, ...],
    *,
    epochs: int,
    validates: bool = True,
) -> Search:
    def task(trial: TrialRecord) -> TrainTask:
        return TrainTask(
            configuration=retrained_configuration(context, train, trial),
            folder=trial_folder(context, trial),
            keep_checkpoints=num_kept_by(
                context, train.spec.name, keep_checkpoints=train.spec.keep_checkpoints, epochs=train.spec.epochs
            ),
            **context.computation,
        )

    def sizes() -> list[Configuration]:
        numbers = sorted({int(str(point[FINALIST])) for point in points})
        return [configuration_of(context, train.spec, context.trial_of(train, number)) for number in numbers]

    return Search(
        num_trials=len(points),
        suggester=FixedPoints(points),
        make_task=task,
        objectives=objectives,
        reported=Objective.of(context.metric) if validates else objectives[0],
        parameters=lambda point: _parameters(context, train, point),
        links=lambda point: _links(context, train, point),
        epochs=epochs,
        sizes=sizes,
        weights_of=lambda point: str(point["topology"]),
        may_be_cut=False,
        validates=validates,
    )


def _parameters(context: StageContext, train: Trained, point: Point) -> Mapping[str, Any]:
    found = dict(training_parameters(context, train.spec, point))
    if REFIT in point:
        found |= {"epochs": point.get(STOP_AT, point[REFIT]), "train_on": "train+validation"}
    return {**found, FINALIST: point[FINALIST]}


def _links(context: StageContext, train: Trained, point: Point) -> dict[str, str]:
    key = context.run_tree.trial_key(train.record, int(str(point[FINALIST])))
    return {"refit_of" if REFIT in point else "retrained_from": key}


def _refits(context: StageContext) -> list[TrialRecord]:
    return [trial for trial in context.store.trials(context.stage.id) if REFIT in trial.point]


def _retrainings(context: StageContext) -> dict[int, list[TrialRecord]]:
    """The trainings with a result, by the number of the trial that they repeat."""
    found: dict[int, list[TrialRecord]] = {}
    for trial in context.store.trials(context.stage.id):
        if trial.is_usable and REFIT not in trial.point:
            found.setdefault(int(str(trial.point[FINALIST])), []).append(trial)
    return found


def _finalist(metric: str, number: int, trials: Sequence[TrialRecord]) -> Finalist:
    values = tuple(trial.metrics[metric] for trial in trials)
    return Finalist(
        trial=number,
        retrained=tuple(trial.number for trial in trials),
        values=values,
        mean=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
    )


def _drop_leftovers(context: StageContext) -> None:
    """Delete checkpoints of an earlier run of the stage, whose trials the database does not have any more."""
    if context.store.trials(context.stage.id):
        return
    artifacts = artifacts_at(context.folder)
    for folder in artifacts.folders(context.folder, prefix="trial-"):
        artifacts.delete(folder)
