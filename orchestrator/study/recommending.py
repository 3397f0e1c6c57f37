"""Finds earlier studies of data like one's own, with the configuration that each found and what it gave."""

from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.engines.interfaces import Objective
from orchestrator.evaluation.data_similarity import DataDistance, distance_between
from orchestrator.settings import Settings
from orchestrator.stages.learned_schedules import with_learned_schedule
from orchestrator.stages.promote import PromoteResult
from orchestrator.stages.train_result import TrainResult, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import open_existing, study_folder
from orchestrator.study.report import read_study
from orchestrator.study.reported import ReportedStage, ReportedStudy
from plugins import registry
from search_spaces.base import ImageTask
from trainers.config import Configuration, DataConfig
from trainers.data.report import DataReport
from trainers.results.model_report import describe_result


class Wanted(NamedTuple):
    """What a recommended configuration must satisfy; `None` means anything."""

    max_params: int | None = None
    space: str | None = None
    """Name of the search space of its topology."""
    budget_s: float | None = None
    """Seconds that its study may have taken."""


class Recommendation(NamedTuple):
    """A configuration from an earlier study."""

    study: str
    distance: DataDistance
    configuration: Configuration
    """With the new data instead of those of the study."""
    trial: int
    is_champion: bool
    result: str
    """What it gave, in words."""
    parameters: int
    time_s: float
    """Seconds of the whole study."""


class Recommendations(NamedTuple):
    """What earlier studies recommend."""

    found: tuple[Recommendation, ...]
    """The nearest data first."""
    left_out: tuple[tuple[str | None, str], ...]
    """Studies that recommend nothing, with the reason; without a name for older ones, which were not compared."""

    @property
    def near(self) -> tuple[Recommendation, ...]:
        """Those from data like the wanted ones."""
        return tuple(one for one in self.found if one.distance.is_near)


def recommend(data: DataReport, config: DataConfig, wanted: Wanted, settings: Settings) -> Recommendations:
    """Find configurations of finished studies, ordered by how near their data are.

    Args:
        data: What is known of the data that a model is wanted for.
        config: The data, for the configurations.
        wanted: What the configurations must satisfy.
        settings: Settings of this installation.
    """
    with open_existing(settings) as store:
        if store is None:
            return Recommendations((), ())
        return recommend_from(store.list_studies(), store, data, config, wanted, settings)


def recommend_from(
    studies: Iterable[StudyRecord],
    store: Store,
    data: DataReport,
    config: DataConfig,
    wanted: Wanted,
    settings: Settings,
    max_studies: int | None = None,
) -> Recommendations:
    """The same from some studies of an open store; of those that are complete, from the first `max_studies`."""
    found: list[Recommendation] = []
    left_out: list[tuple[str | None, str]] = []
    num_complete = 0
    for study in studies:
        if study.state != "complete":
            left_out.append((study.name, f"it is {study.state}"))
            continue
        num_complete += 1
        if max_studies is not None and num_complete > max_studies:
            continue
        result = _recommend(read_study(study, store, study_folder(settings, study)), data, config, wanted)
        if isinstance(result, str):
            left_out.append((study.name, result))
        else:
            found.append(result)
    num_older = 0 if max_studies is None else max(0, num_complete - max_studies)
    if num_older:
        studies_were = "1 older study was" if num_older == 1 else f"{num_older:,} older studies were"
        left_out.append((None, f"{studies_were} not compared, since the newest {max_studies:,} are"))
    found.sort(key=lambda one: (one.distance.total, one.study))
    return Recommendations(tuple(found), tuple(left_out))


def _recommend(reported: ReportedStudy, data: DataReport, config: DataConfig, wanted: Wanted) -> Recommendation | str:
    """What a study recommends, or the reason why it recommends nothing."""
    if reported.data is None:
        return "it did not record its images (version 0.1.0)"
    if wanted.budget_s is not None and reported.total_s > wanted.budget_s:
        return "it took longer than the budget"
    champion, train = reported.last(PromoteResult), reported.last_stage(TrainResult)
    distance = distance_between(data, reported.data)
    task = ImageTask(image_size=data.image_size, in_channels=data.channels, num_classes=max(2, len(data.classes)))
    if champion is not None and _fits(champion.configuration.topology, champion.parameters, wanted, task):
        result = f"test accuracy {100 * champion.test_accuracy:.1f} %"
        if champion.test is not None:
            result = f"test {describe_result(champion.test)}"
        adapted = _adapted(champion.configuration, config)
        return Recommendation(
            reported.study.name,
            distance,
            adapted,
            champion.trial,
            True,
            result,
            int(champion.parameters),
            reported.total_s,
        )
    if train is None or reported.spec is None:
        return "it trained nothing that this version reads"
    trial = _best_fitting(*train, wanted, task)
    if trial is None:
        return "none of its models satisfies what is wanted and fits the images"
    configuration = _configuration(reported, train[0], trial)
    metric, value = train[1].metric, trial.metrics[train[1].ranked_by]
    return Recommendation(
        reported.study.name,
        distance,
        _adapted(configuration, config),
        trial.number,
        False,
        f"validation {metric.words} {metric.text(value)}",
        int(trial.metrics["parameters"]),
        reported.total_s,
    )


def _fits(topology: str, parameters: float, wanted: Wanted, task: ImageTask) -> bool:
    """Whether a topology satisfies what is wanted, and can be built for the images."""
    space = topology.partition(":")[0]
    if wanted.space is not None and space != wanted.space:
        return False
    if wanted.max_params is not None and parameters > wanted.max_params:
        return False
    try:
        problem: str | None = registry.load("spaces", space).problem(registry.parse_topology(topology), task)
    except (ImportError, ValueError):  # a space that is no longer installed
        return False
    return problem is None


def _best_fitting(stage: ReportedStage, result: TrainResult, wanted: Wanted, task: ImageTask) -> TrialRecord | None:
    fitting = [
        trial
        for trial in stage.trials
        if trial.is_usable
        and result.ranked_by in trial.metrics
        and "parameters" in trial.metrics
        and _fits(str(trial.point["topology"]), trial.metrics["parameters"], wanted, task)
    ]
    ordered = sort_trials(fitting, (Objective(result.ranked_by, result.metric.direction),))
    return ordered[0] if ordered else None


def _configuration(reported: ReportedStudy, stage: ReportedStage, trial: TrialRecord) -> Configuration:
    """A trial's configuration, without weights to start from and without a teacher."""
    assert reported.spec is not None
    block = reported.spec.stages[stage.record.position]
    assert isinstance(block, TrainStage)
    recipe = with_learned_schedule(block.recipe_space.decode(trial.point), reported.folder / block.name)
    return Configuration(
        data=reported.spec.data,
        topology=str(trial.point["topology"]),
        recipe=recipe,
        epochs=block.epochs,
        seed=trial.seed,
        stopping=block.stopping,
        metric=reported.spec.metric[0],
    )


def _adapted(configuration: Configuration, config: DataConfig) -> Configuration:
    """The configuration for other data, from random weights, which `vitsearch train` can run."""
    return configuration.model_copy(update={"data": config, "weights": None, "teacher": None, "train_on": "train"})
