"""A training stage in a database, and a search of learning rates, for benchmarks of what surrounds the trainings."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from orchestrator.engines.interfaces import Objective, Pool, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.context import Machinery, StageContext, StudyContext
from orchestrator.stages.control import StageControl
from orchestrator.stages.progress import Progress, SilentProgress
from orchestrator.store.records import TrialRecord
from orchestrator.store.repository import Store
from orchestrator.tracking.run_tree import RunTree
from plugins.metrics.deciding import ACCURACY_CHOICE
from search_spaces.base import ImageTask
from search_spaces.dimensions import Dimension, Real
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import Configuration, DataConfig, TrainTask
from trainers.training.reporting import SilentReporter

ACCURACY = Objective("val_accuracy", "maximize")
TOPOLOGY = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
_RATES: tuple[Dimension, ...] = (Real(name="recipe.learning_rate", low=0.01, high=0.99),)


@contextmanager
def stage_in_own_database(pool: Pool) -> Iterator[StageContext]:
    """A stage of a study in a separate SQLite database, whose trials run in a pool."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{folder}/vitsearch.db")
        yield new_stage(store, "s", Path(folder), pool)
        store.close()


def new_stage(store: Store, name: str, folder: Path, pool: Pool, *, progress: Progress | None = None) -> StageContext:
    """The running training stage of a new study, whose events are written as in a real one.

    Args:
        store: The database.
        name: Name of the study.
        folder: Folder of the stage's files.
        pool: What runs its trials.
        progress: The display; by default none.
    """
    study = store.create_study(name, spec={"seed": 0}, digest="d", data_digest="d", stage_names=[("train", "train")])
    spec = SimpleNamespace(seed=0, metric=(ACCURACY_CHOICE,), resources=SimpleNamespace(silent_minutes=None))
    run_tree = RunTree(study, "")

    def events(execution: Any, _: Any) -> list[str]:
        return run_tree.execution_began(execution, (), stages=())

    execution = store.begin_execution(study.id, events=events)
    (stage,) = store.stages(study.id)
    return StageContext(
        shared=StudyContext(
            study=study,
            spec=cast("StudySpec", spec),
            store=store,
            run_tree=run_tree,
            image_task=ImageTask(image_size=32, in_channels=1, num_classes=10),
        ),
        machinery=Machinery(engine=OptunaEngine(), pool=pool, progress=progress or SilentProgress()),
        control=StageControl(stage="train", request=SilentReporter()),
        stage=store.begin_stage(stage, events=run_tree.stage_began(stage, execution, {}, at=time.time())),
        execution=execution,
        folder=folder,
        abandon=_abandon,
    )


def _abandon(reason: str) -> Any:
    raise AssertionError(reason)


def rate_search(folder: Path, num_trials: int, epochs: int, *, sampler: str) -> Search:
    """A search of the learning rate."""

    def task(trial: TrialRecord) -> TrainTask:
        configuration = Configuration(
            data=DataConfig(source="digits"),
            topology=TOPOLOGY,
            recipe=Recipe(learning_rate=float(str(trial.point["recipe.learning_rate"]))),
            epochs=epochs,
            seed=trial.number,
        )
        return TrainTask(configuration=configuration, folder=folder / f"trial-{trial.number:04d}")

    return Search(
        num_trials=num_trials,
        objectives=(ACCURACY,),
        suggester=OptunaSuggester(_RATES, objectives=(ACCURACY,), sampler=PluginChoice(name=sampler), seed=1),
        make_task=task,
        parameters=dict,
        epochs=epochs,
    )
