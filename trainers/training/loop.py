"""The training loop. All randomness depends on seed and epoch, so a resumed training gives the same result."""

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plugins.metrics.deciding import DecidingMetric
from plugins.protocols import LossInput, PriorDifficulty, Signal, Stopper, needed_signals, planned
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.ramps import Ramp, largest
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration, EpochReport, TaskOutcome, TrainTask
from trainers.data.images import ImageData
from trainers.hardware.devices import cpu_threads, derive_seed, fits_on
from trainers.models.building import build_model, topology_costs
from trainers.training import checkpoints, fencing
from trainers.training.best_epoch import best_report
from trainers.training.companions import macs_of_table, make_companions
from trainers.training.continuing import settle_earlier_checkpoints
from trainers.training.course import Course
from trainers.training.evaluation import Evaluation, Normalizer, evaluate, example_losses
from trainers.training.learner import Learner, RowLearner
from trainers.training.loss_needs import inputs_of
from trainers.training.losses import (
    STEPS_PER_FINITE_CHECK,
    NotFiniteError,
    check_losses,
    check_validation,
    final_metrics,
    further_metrics,
    initial_loss_state,
    mean_loss,
)
from trainers.training.methods import Methods
from trainers.training.network import prepare_rates
from trainers.training.prior_difficulty import StoppedError, measure_prior_difficulty
from trainers.training.reporting import Reporter
from trainers.training.row import Row
from trainers.training.signals import SignalMeter
from trainers.training.step import Step, TrainingImages, learn, prepare
from trainers.weights.fitting import load_initial
from trainers.weights.prepared import read_prepared


class MeasurePriorDifficulty(NamedTuple):
    """Requests a difficulty of each training image that is measured before training.

    The answer is a tensor (N,) on the CPU, or a `StoppedError` or `NotFiniteError`.
    """

    needed: PriorDifficulty
    configuration: Configuration
    folder: Path
    """Folder of the training."""
    should_stop: Callable[[], bool]


class MeasureDifficulty(NamedTuple):
    """Requests the current loss of each training image. The answer is a tensor (N,) on the CPU."""


class Validate(NamedTuple):
    """Requests the metrics on the validation part. The answer is an `Evaluation`."""

    metric: PluginChoice
    """The metric that decides; it is measured besides those that are always measured."""


class MeasureSignals(NamedTuple):
    """Requests the signals of the epoch. The answer is a dict of their values by name."""


class Save(NamedTuple):
    """Requests a checkpoint. The answer, after it is written, is `None`."""

    write: Callable[[], object]
    """Writes the checkpoint, in any thread. The weights must not change meanwhile."""


Request = Step | MeasurePriorDifficulty | MeasureDifficulty | Validate | MeasureSignals | Save


class _InterruptedError(Exception):
    """The reporter asked to end."""


def train(task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device) -> TaskOutcome:
    """Train one configuration, starting from its newest intact checkpoint if there is one.

    Args:
        task: The configuration and the folder of its checkpoints.
        data: Training and validation part.
        reporter: Called after each epoch, when its checkpoint is written.
        device: Device of the training.

    Returns:
        `complete`, `stopped` (by the stopping criterion), `interrupted` (by the reporter) or `failed` (not-finite),
        with the remaining checkpoints. Metrics are those of the last epoch, and the best of all epochs as `..._best`.
    """
    # Set here rather than in callers: the number of threads slightly changes the weights for the same seed.
    with cpu_threads(step_macs(task.configuration, data.task)):
        return _train(task, data, reporter, device)


def step_macs(configuration: Configuration, task: ImageTask) -> float:
    """Multiply-accumulates of the most expensive step of a training."""
    return 3 * topology_costs(configuration.topology, task).macs * largest(configuration.recipe.batch_size)


def wanted_signals(task: TrainTask) -> frozenset[Signal]:
    """Signals that a training must measure: those in the task, and those that its plug-ins read."""
    configuration = task.configuration
    plugins = [*Methods.of(configuration.recipe.curriculum).plugins]
    if configuration.stopping is not None:
        plugins.append(create("stopping", configuration.stopping.name, configuration.stopping.settings))
    read = [needed_signals(plugin) for plugin in plugins]
    return frozenset(task.signals).union(*read)


def make_row(configuration: Configuration, data: ImageData, device: torch.device) -> Row:
    """A newly initialised model, ready for training, with the weights that the configuration starts from.

    Raises:
        ValueError: The recipe does not fit the model, or its loss lacks what it reads.
        trainers.weights.errors.WeightsError: These weights cannot be read.
        UnsuitableRatesError: The recipe's rates do not suit the model or the optimizer.
    """
    recipe, task = configuration.recipe, data.task
    # Known blocks receive drop-path factors with each step; other models draw their own, at a fixed rate.
    rate = 0.0 if isinstance(recipe.drop_path, Ramp) else recipe.drop_path
    model = build_model(configuration.topology, task, seed=configuration.seed, device=device, drop_path=rate)
    rates = prepare_rates(model, recipe, configuration.topology, task)
    if configuration.weights is not None:
        load_initial(model, read_prepared(configuration.weights), configuration.topology, data.class_names)
    row = Row(model, recipe, rates)
    if row.num_blocks == 0 and isinstance(recipe.drop_path, Ramp):
        raise ValueError(
            f"recipe.drop_path may change during training only if the model has blocks (`plugins.protocols."
            f"TransformerBlock`), but {type(model).__name__} has none. Use a plain number."
        )
    row.companions = make_companions(configuration, data, model, device)
    row.loss_state = initial_loss_state(recipe, len(data.train), task.num_classes, device)
    if LossInput.PEER in inputs_of(recipe.loss):
        row.peer = _make_peer(configuration, data, device, rate)
    return row


def _make_peer(configuration: Configuration, data: ImageData, device: torch.device, drop_path: float) -> Row:
    """A second model of the topology with other random weights, which is trained with the first."""
    recipe = configuration.recipe.model_copy(update={"ema": None, "swa": None})
    seed = derive_seed(configuration.seed, "peer")
    model = build_model(configuration.topology, data.task, seed=seed, device=device, drop_path=drop_path)
    peer = Row(model, recipe, prepare_rates(model, recipe, configuration.topology, data.task))
    peer.loss_state = initial_loss_state(recipe, len(data.train), data.task.num_classes, device)
    return peer


def _train(task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device) -> TaskOutcome:
    configuration = task.configuration
    row = make_row(configuration, data, device)
    course = Course.lay_out(configuration, data, row.model, device)
    source = training_images(data, device)
    meter = SignalMeter(wanted_signals(task), row, data.validation, source, seed=configuration.seed)
    learner = RowLearner(row, meter)
    training = _SingleTraining(learner, data, source)
    requests = follow(task, data.task, course, learner, reporter)
    answer: object = None
    while True:
        try:
            request = requests.send(answer)
        except StopIteration as ended:
            outcome: TaskOutcome = ended.value
            return outcome
        answer = training.answer(request)


def follow(
    task: TrainTask, image_task: ImageTask, course: Course, learner: Learner, reporter: Reporter
) -> Generator[Request, Any, TaskOutcome]:
    """Run a training as a generator that yields requests, receives the answers and returns the outcome.

    Args:
        task: The configuration and the folder of its checkpoints.
        image_task: Image size, channels and classes of the data.
        course: The steps.
        learner: Owner of the weights that answer the requests; checkpoints are restored into it.
        reporter: Called after each epoch, when its checkpoint is written.
    """
    digest = checkpoints.configuration_digest(task.configuration)
    history: list[EpochReport] = []
    damaged: list[str] = []
    fencing.claim(task.fence)
    accepted = checkpoints.accepted_digests(task.configuration)
    if task.earlier_epochs:
        accepted |= settle_earlier_checkpoints(task)
    checkpoint = checkpoints.load_newest(task.folder, accepted=accepted, damaged=damaged)
    if checkpoint is not None:
        learner.restore(checkpoint)
        history.extend(checkpoint.history)
        damaged = list(checkpoint.damaged)
    learner.begin()
    for report in history:
        reporter.report(report)
    metric = DecidingMetric.of(task.configuration.metric)
    stopper: Stopper | None = None
    if task.configuration.stopping is not None:
        stopper = create("stopping", task.configuration.stopping.name, task.configuration.stopping.settings)
    reason: str | None = None
    try:
        if len(history) < task.configuration.last_epoch:
            course = yield from _with_prior_difficulties(course, task, reporter)
        while len(history) < task.configuration.last_epoch:
            if stopper is not None and history:
                points = [report.point_by(metric) for report in history]
                reason = stopper.reason_to_stop(planned(points, num_epochs=len(course.plan), best=task.best_score))
            if reason is not None:
                break
            report = yield from _epoch(course, learner, history, reporter)
            history.append(report)
            yield Save(
                partial(
                    _save,
                    task,
                    weights=learner.weights(),
                    averages=learner.averages(),
                    optimizer=learner.optimizer_tensors(),
                    history=history,
                    configuration=digest,
                    damaged=damaged,
                    best=best_report(history, metric).epoch,
                )
            )
            reporter.report(report)
    except NotFiniteError as error:
        return TaskOutcome(
            state="failed", error="not-finite", reason=str(error), checkpoints=checkpoints.saved(task.folder)
        )
    except (_InterruptedError, StoppedError):
        return TaskOutcome(
            state="interrupted",
            reason=f"asked to end in epoch {len(history) + 1} of {task.configuration.last_epoch}",
            checkpoints=checkpoints.saved(task.folder),
        )
    checkpoints.prune(task.folder, keep=task.keep_checkpoints, best=best_report(history, metric).epoch)
    return TaskOutcome(
        state="complete" if reason is None else "stopped",
        reason=reason,
        metrics=final_metrics(history, task.configuration.topology, image_task, metric),
        details={"damaged_checkpoints": damaged} if damaged else {},
        checkpoints=checkpoints.saved(task.folder),
    )


def _with_prior_difficulties(course: Course, task: TrainTask, reporter: Reporter) -> Generator[Request, Any, Course]:
    """The course with the difficulties of images that its methods need before training.

    Raises:
        StoppedError: The reporter asked to end.
        NotFiniteError: A difficulty is not finite.
    """
    for needed in course.methods.prior_difficulties:
        values = yield MeasurePriorDifficulty(needed, task.configuration, task.folder, reporter.should_stop)
        if isinstance(values, Exception):
            raise values
        course = course.with_prior_difficulty(needed, values)
    return course


def _save(task: TrainTask, **given: Any) -> None:
    """Write a checkpoint, unless a newer attempt at the training has begun."""
    fencing.check(task.fence)
    checkpoints.save(task.folder, keep=task.keep_checkpoints, **given)


def _epoch(
    course: Course, learner: Learner, history: Sequence[EpochReport], reporter: Reporter
) -> Generator[Request, Any, EpochReport]:
    """Train for one epoch and validate.

    Raises:
        NotFiniteError: A training or validation loss is NaN or infinite.
        _InterruptedError: The reporter asked to end.
    """
    epoch = len(history) + 1
    started = time.perf_counter()
    losses: list[Tensor] = []
    sizes: list[int] = []
    rate, training_macs = 0.0, float(course.difficulty_macs(epoch, history))
    difficulty: Tensor | None = None
    if course.measures_difficulty(epoch, history):
        difficulty = yield MeasureDifficulty()
    if epoch == 1:
        training_macs += macs_of_table(course.configuration, len(course.labels))
    for step in course.steps(epoch, difficulty, history):
        if reporter.should_stop():
            raise _InterruptedError
        losses.append((yield step))
        sizes.append(len(step.indices))
        rate = step.settings.learning_rate
        training_macs += course.macs(step)
        if len(losses) % STEPS_PER_FINITE_CHECK == 0:
            check_losses(losses, epoch)
    check_losses(losses, epoch)
    learner.finish_epoch(epoch / course.num_epochs)
    validation: Evaluation = yield Validate(course.configuration.metric)
    check_validation(validation.loss, validation.metrics, epoch)
    signals: dict[str, float] = yield MeasureSignals()
    return EpochReport(
        epoch=epoch,
        train_loss=mean_loss(losses, sizes),
        val_loss=validation.loss,
        val_accuracy=validation.accuracy,
        metrics=further_metrics(validation.metrics),
        learning_rate=rate,
        num_images=sum(sizes),
        training_macs=training_macs,
        wall_time_s=time.perf_counter() - started,
        signals=signals,
    )


def cut_short(
    task: TrainTask, history: Sequence[EpochReport], image_task: ImageTask, *, state: Literal["complete", "stopped"]
) -> TaskOutcome:
    """The outcome of a training that its scheduler ended after the last report, without a request to the training.

    Args:
        task: The task of the training.
        history: All reports, oldest first, at least one.
        image_task: Image size, channels and classes of the data.
        state: `complete` if the last report is that of the last epoch.
    """
    metric = DecidingMetric.of(task.configuration.metric)
    checkpoints.prune(task.folder, keep=task.keep_checkpoints, best=best_report(history, metric).epoch)
    return TaskOutcome(
        state=state,
        metrics=final_metrics(history, task.configuration.topology, image_task, metric),
        checkpoints=checkpoints.saved(task.folder),
    )


class _SingleTraining:
    """Answers the requests of a training that is computed alone."""

    def __init__(self, learner: RowLearner, data: ImageData, source: TrainingImages) -> None:
        self._row = learner.row
        self._meter = learner.meter
        self._data = data
        self._source = source

    def answer(self, request: Request) -> object:
        """The answer to a request."""
        if isinstance(request, Step):
            return self._step(request)
        if isinstance(request, Save):
            request.write()
            return None
        if isinstance(request, MeasureSignals):
            return self._meter.measure()
        if isinstance(request, MeasurePriorDifficulty):
            return answer_prior_difficulty(request, self._data, self._source)
        with self._row.evaluated() as model:
            if isinstance(request, Validate):
                return evaluate(model, self._data.validation, self._source.normalizer, metric=request.metric)
            return example_losses(model, self._data.train, self._source.normalizer)

    def _step(self, step: Step) -> Tensor:
        batches = prepare([self._row], [step], self._source)
        watch = (lambda _, gradient: self._meter.take(gradient)) if self._meter.watches_steps else None
        (answer,) = learn(batches, watch)
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer_prior_difficulty(
    request: MeasurePriorDifficulty, data: ImageData, source: TrainingImages
) -> Tensor | StoppedError | NotFiniteError:
    """The answer to a request for a difficulty that is measured before training."""
    try:
        return measure_prior_difficulty(
            request.needed,
            request.configuration,
            data,
            source,
            folder=request.folder,
            should_stop=request.should_stop,
        )
    except (StoppedError, NotFiniteError) as error:
        return error


def training_images(data: ImageData, device: torch.device) -> TrainingImages:
    """The training part, on a device if it fits there."""
    images = data.train.images
    return TrainingImages(
        images=images.to(device) if fits_on(device, images.numel()) else images,
        labels=data.train.labels.to(device),
        num_classes=data.task.num_classes,
        normalizer=Normalizer(data.mean, data.std, device),
        class_counts=data.train.labels.bincount(minlength=data.task.num_classes).float().to(device),
        digest=data.digest,
        true_labels=None if data.train.true_labels is None else data.train.true_labels.to(device),
    )
