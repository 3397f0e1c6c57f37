"""The trained model that the trials of a train stage learn from: kept in the stage's folder, and what it is."""

from typing import TYPE_CHECKING, NamedTuple

from orchestrator.stages.context import StageContext, StageFailedError
from orchestrator.stages.kind import StageResult
from orchestrator.stages.retention import kept_checkpoints
from orchestrator.stages.starting_weights import TEACHER_INDEX, has_stored_weights, store_weights, stored_weights

if TYPE_CHECKING:
    from trainers.weights.reading import SourceWeights


class StageTeacher(StageResult):
    """The teacher of a stage's trials."""

    source: str
    sha256: str
    topology: str

    @property
    def lineage(self) -> str:
        """The model and the beginning of its sha256, for MLflow."""
        return f"{self.source} (sha256 {self.sha256[:12]})"


class EarlierTrial(NamedTuple):
    """A trial of an earlier stage of the study."""

    stage: str
    stage_id: int
    number: int
    is_best_epoch: bool
    """Whether its best epoch ranks it, and teaches if it is kept; otherwise the last one."""


def plan_teacher(context: StageContext, source: str, trial: EarlierTrial | None) -> StageTeacher:
    """Prepare the teacher of a stage, and say which it is when the stage begins.

    Args:
        context: The context of the stage.
        source: What the study file names.
        trial: The trial that it names, whose weights are copied into the stage's folder; `None` for another model,
            which is there already.

    Raises:
        StageFailedError: The teacher has no checkpoint, or cannot teach the classes of the data.
    """
    from trainers.data.images import load_images
    from trainers.training.companions import teacher_problem
    from trainers.weights.prepared import read_prepared

    if trial is not None and not has_stored_weights(context.folder, TEACHER_INDEX):
        store_weights(context.folder, _weights_of(context, trial, source), TEACHER_INDEX)
    found, data = read_prepared(stored_weights(context.folder, TEACHER_INDEX)), load_images(context.spec.data)
    problem = teacher_problem(
        found.topology, found.task, found.class_names, found.mean, data.class_names, data.task.in_channels
    )
    if problem is not None:
        raise StageFailedError(f"teacher {source} of stage {context.stage.name!r}: {problem}")
    assert found.topology is not None
    if not context.store.trials(context.stage.id):
        context.progress.note(f"teacher {found.source}: {found.topology}")
    return StageTeacher(source=found.source, sha256=found.sha256, topology=found.topology)


def _weights_of(context: StageContext, named: EarlierTrial, source: str) -> "SourceWeights":
    """The weights of a trial of an earlier stage."""
    from trainers.data.images import load_images
    from trainers.training.best_epoch import best_checkpoint
    from trainers.training.checkpoints import WEIGHTS, CheckpointError, load_weights, read_manifest
    from trainers.weights.reading import SourceWeights

    trial = next((one for one in context.store.trials(named.stage_id) if one.number == named.number), None)
    records = [] if trial is None else kept_checkpoints(context.store, trial)
    if trial is None or not records:
        raise StageFailedError(
            f"teacher {source}: trial {named.number} of that stage must have a checkpoint, but has none. Name another "
            "trial or a model folder."
        )
    folders, data = [one.path for one in records], load_images(context.spec.data)
    try:
        folder = best_checkpoint(folders, context.metric) if named.is_best_epoch else folders[-1]
        weights, sha256 = load_weights(folder), read_manifest(folder).files[WEIGHTS]
    except CheckpointError as error:
        raise StageFailedError(f"teacher {source}: {error}") from error
    return SourceWeights(
        source=f"{context.study.name}/{named.stage}@trial-{named.number}",
        sha256=sha256,
        tensors={name: value for name, value in weights.items() if value.is_floating_point()},
        topology=str(trial.point["topology"]),
        task=data.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
    )
