"""The searches of a study for an Optuna database."""

from typing import NamedTuple

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.optuna_export import ExportedSearch, OptunaExportError, export_searches
from orchestrator.settings import Settings
from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.averaging import AveragingStage, averaging_objectives
from orchestrator.stages.screen import ScreenStage, screening_objectives
from orchestrator.stages.stopping import OBJECTIVES, StoppingStage
from orchestrator.stages.trade_off import with_cost
from orchestrator.stages.train_result import ranking_by
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import database_gone, find_study, open_existing
from orchestrator.study.growth import stored_spec
from plugins.metrics.deciding import DecidingMetric
from search_spaces.dimensions import Choice, Dimension


class WrittenSearch(NamedTuple):
    """A search in an Optuna database."""

    name: str
    num_trials: int
    num_left_out: int
    """Trials that have not ended."""


def export_to_optuna(name: str, url: str, settings: Settings, *, overwrite: bool = False) -> list[WrittenSearch]:
    """Write every search of a study into an Optuna database, as studies named `STUDY/STAGE`.

    Searches whose trials all have not ended are left out, and so are stages that sample no search space.

    Args:
        name: Name of the study.
        url: SQLAlchemy URL of the database, which is created if necessary.
        settings: Settings of this installation.
        overwrite: Whether Optuna studies of the same names are replaced.

    Returns:
        What was written.

    Raises:
        orchestrator.study.access.UnknownStudyError: There is no study of that name.
        OptunaExportError: The study has no trial that has ended, or the database cannot be written.
    """
    study = find_study(name, settings)
    spec = stored_spec(study)
    if spec is None:
        raise OptunaExportError(
            f"study {name!r} must be readable by this version, but its file is from another one. Export it with the "
            "version that made it."
        )
    with open_existing(settings) as store:
        if store is None:
            raise database_gone(settings)
        found = [_search(study, spec, record, store) for record in store.stages(study.id)]
    searches = [one for one in found if one is not None and one.ended]
    if not searches:
        raise OptunaExportError(
            f"study {name!r} must have a trial that has ended, but has none yet. See: vitsearch status {name}"
        )
    export_searches(searches, url, overwrite=overwrite)
    return [WrittenSearch(one.name, len(one.ended), len(one.trials) - len(one.ended)) for one in searches]


def _search(study: StudyRecord, spec: StudySpec, record: StageRecord, store: Store) -> ExportedSearch | None:
    """The search of a stage; `None` if it samples no space."""
    block, metric = spec.stages[record.position], DecidingMetric.of(spec.metric[0])
    trials = store.trials(record.id)
    space = _space(block, spec, metric, trials)
    if space is None:
        return None
    dimensions, objectives = space
    curves: dict[int, dict[int, float]] = {}
    if isinstance(block, TrainStage):
        reports = {trial.number: store.reports(trial.id) for trial in trials}
        known = {"val_loss", "val_accuracy"}
        curves = {
            number: {one.epoch: one.value(metric) for one in some if metric.key in known | one.metrics.keys()}
            for number, some in reports.items()
        }
    return ExportedSearch(
        name=f"{study.name}/{record.name}",
        dimensions=dimensions,
        objectives=objectives,
        trials=trials,
        curves=curves,
        attributes={
            "vitsearch.study": study.name,
            "vitsearch.stage": record.kind,
            "vitsearch.seed": spec.seed,
            "vitsearch.spec_digest": study.spec_digest,
        },
    )


def _space(
    block: StageModel, spec: StudySpec, metric: DecidingMetric, trials: list[TrialRecord]
) -> tuple[tuple[Dimension, ...], tuple[Objective, ...]] | None:
    """Dimensions and objectives of a stage's search; `None` if it samples no space."""
    if isinstance(block, ScreenStage):
        return tuple(block.search_space.dimensions()), screening_objectives(block)
    if isinstance(block, TrainStage):
        topologies = tuple(dict.fromkeys(str(trial.point["topology"]) for trial in trials))
        dimensions = (Choice(name="topology", options=topologies), *block.recipe_space.dimensions)
        return dimensions, with_cost(ranking_by(metric, block), spec.cost)
    if isinstance(block, StoppingStage):
        return block.dimensions, OBJECTIVES
    if isinstance(block, AveragingStage):
        return block.dimensions, averaging_objectives(metric, block)
    return None
