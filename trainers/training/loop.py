"""The training loop. All randomness depends on seed and epoch, so a resumed training gives the same result."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from plugins.metrics.deciding import DecidingMetric
from plugins.protocols import LossInput, PriorDifficulty, Stopper, planned
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from trainers.config import CheckpointRecord, Configuration, EpochReport, TaskOutcome, TrainTask
from trainers.data.images import ImageData
from trainers.hardware.devices import computing_in, cpu_threads
from trainers.training import checkpoints, fencing
from trainers.training.batch import Step, TrainingImages, prepare
from trainers.training.best_epoch import best_report
from trainers.training.companions import macs_of_table
from trainers.training.compiling import CompiledForward, compile_problem
from trainers.training.continuing import settle_earlier_checkpoints
from trainers.training.course import Course
from trainers.training.evaluation import Evaluation, evaluate, example_losses
from trainers.training.failures import free_memory
from trainers.training.learner import Learner, RowLearner
from trainers.training.loss_needs import inputs_of
from trainers.training.losses import (
    STEPS_PER_FINITE_CHECK,
    NotFiniteError,
    check_losses,
    check_validation,
    final_metrics,
    further_metrics,
    mean_loss,
)
from trainers.training.memory import can_be_halved, draw_again, halve, state_of_draws
from trainers.training.prior_difficulty import StoppedError, measure_prior_difficulty
from trainers.training.ranks import ALONE, CannotTakePartError, Ranks
from trainers.training.reporting import Reporter
from trainers.training.row import Row, rank_problem
from trainers.training.saving import CheckpointWriter, Saver, Snapshot
from trainers.training.set_up import make_row, step_macs, training_images, wanted_signals
from trainers.training.signals import SignalMeter
from trainers.training.spikes import SpikeGuard
from trainers.training.step import learn


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


Request = Step | MeasurePriorDifficulty | MeasureDifficulty | Validate | MeasureSignals


class _InterruptedError(Exception):
    """The reporter asked to end."""


def train(
    task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device, ranks: Ranks = ALONE
) -> TaskOutcome:
    """Train one configuration, starting from its newest intact checkpoint if there is one.

    Args:
        task: The configuration and the folder of its checkpoints.
        data: Training and validation part.
        reporter: Called after each epoch, when its checkpoint is written.
        device: Device of the training.
        ranks: The processes that compute the training together, each with this function and the same task. The losses
            are those of one process up to rounding. Only the first one writes to the folder and calls its reporter.

    Returns:
        `complete`, `stopped` (by the stopping criterion), `interrupted` (by the reporter) or `failed` (not-finite),
        with the remaining checkpoints. Metrics are those of the last epoch, and the best of all epochs as `..._best`.

    Raises:
        trainers.training.ranks.RankLostError: Another rank died, failed or does not answer.
    """
    # Set here rather than in callers: the number of threads slightly changes the weights for the same seed.
    with cpu_threads(step_macs(task.configuration, data.task) / ranks.count), computing_in(task.precision):
        return _train(task, data, reporter, device, ranks)


def _train(task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device, ranks: Ranks) -> TaskOutcome:
    configuration = task.configuration
    row = make_row(configuration, data, device)
    _join(row, ranks)
    if task.compile:
        problem = compile_problem(configuration.recipe)
        for one in row.members():
            one.forward = CompiledForward(one.model, problem=problem)
    course = Course.lay_out(configuration, data, row.model, device)
    source = training_images(data, device)
    wanted = wanted_signals(task) if ranks.is_first else frozenset()
    meter = SignalMeter(wanted, row, data.validation, source, seed=configuration.seed)
    learner = RowLearner(row, meter)
    training = _SingleTraining(learner, data, source)
    answer: object = None
    with CheckpointWriter() as writer:
        requests = follow(task, data.task, course, learner, writer, reporter, ranks)
        while True:
            try:
                request = requests.send(answer)
            except StopIteration as ended:
                outcome: TaskOutcome = ended.value
                return outcome
            try:
                answer = training.answer(request)
            except Exception as error:  # `follow` passes on the last report, then raises it again
                requests.throw(error)


def _join(row: Row, ranks: Ranks) -> None:
    """Let ranks compute the gradients of a model.

    Raises:
        ValueError: The model needs all images of a step in one place.
    """
    problem = None if ranks.count == 1 else rank_problem(row)
    if ranks.count > 1 and LossInput.MATE in inputs_of(row.recipe.loss):
        problem = (
            f"the loss `{row.recipe.loss.name}` computes two models together on one GPU. Set `gpus_per_trial` to 1."
        )
    if problem is not None:
        raise ValueError(problem)
    for one in row.members():
        one.ranks = ranks


def follow(
    task: TrainTask,
    image_task: ImageTask,
    course: Course,
    learner: Learner,
    writer: CheckpointWriter,
    reporter: Reporter,
    ranks: Ranks = ALONE,
) -> Generator[Request, Any, TaskOutcome]:
    """Run a training as a generator that yields requests, receives the answers and returns the outcome.

    A checkpoint is written while the next epoch trains. Once it is written, the report of its epoch is passed on:
    between two steps, and before the next epoch ends. So no reported epoch is ever lost.

    Args:
        task: The configuration and the folder of its checkpoints.
        image_task: Image size, channels and classes of the data.
        course: The steps.
        learner: Owner of the weights that answer the requests; checkpoints are restored into it.
        writer: Writes the checkpoints.
        reporter: Called after each epoch, when its checkpoint is written.
        ranks: The processes that compute the training. All take the decisions of the first one.
    """
    digest = checkpoints.configuration_digest(task.configuration)
    history: list[EpochReport] = []
    damaged: list[str] = []
    checkpoint = _newest_checkpoint(task, damaged, ranks)
    if checkpoint is not None:
        learner.restore(checkpoint)
        history.extend(checkpoint.history)
        damaged = list(checkpoint.damaged)
    learner.begin()
    if ranks.is_first:
        for report in history:
            reporter.report(report)
    metric = DecidingMetric.of(task.configuration.metric)
    stopper: Stopper | None = None
    if task.configuration.stopping is not None:
        stopper = create("stopping", task.configuration.stopping.name, task.configuration.stopping.settings)
    reason: str | None = None
    threshold = task.configuration.recipe.spike_guard
    guard = None if threshold is None else SpikeGuard(threshold, checkpoint)
    saver = Saver(writer, reporter)
    try:
        if len(history) < task.configuration.last_epoch:
            course = yield from _with_prior_difficulties(course, task, reporter)
        while len(history) < task.configuration.last_epoch:
            if stopper is not None and history:
                curve = planned(
                    [report.point_by(metric) for report in history],
                    num_epochs=len(course.plan),
                    best=task.best_score,
                    earlier=task.earlier_scores,
                )
                reason = stopper.reason_to_stop(curve)
            if reason is not None:
                break
            report = yield from _epoch(course, learner, history, guard, saver, reporter, ranks)
            history.append(report)
            if not ranks.is_first:
                continue
            write = partial(
                _save,
                task,
                learner.snapshot(),
                guard_state={} if guard is None else guard.tensors(),
                history=tuple(history),
                configuration=digest,
                damaged=tuple(damaged),
                spikes=() if guard is None else tuple(guard.returns),
                best=best_report(history, metric).epoch,
            )
            saver.save(write, report)
        saver.settle()
    except NotFiniteError as error:
        saver.settle()
        return TaskOutcome(
            state="failed",
            error="not-finite",
            reason=str(error),
            details={"loss_spikes": guard.returns} if guard is not None and guard.returns else {},
            checkpoints=_saved(task, ranks),
        )
    except (_InterruptedError, StoppedError):
        saver.settle()
        return TaskOutcome(
            state="interrupted",
            reason=f"asked to end in epoch {len(history) + 1} of {task.configuration.last_epoch}",
            checkpoints=_saved(task, ranks),
        )
    except Exception:
        saver.settle()
        raise
    finally:
        saver.close()
    if ranks.is_first:
        checkpoints.prune(
            task.folder,
            keep=task.keep_checkpoints,
            best=best_report(history, metric).epoch,
            check=partial(fencing.check, task.fence),
        )
    return TaskOutcome(
        state="complete" if reason is None else "stopped",
        reason=reason,
        metrics=final_metrics(history, task.configuration.topology, image_task, metric),
        details={
            **({"damaged_checkpoints": damaged} if damaged else {}),
            **({"loss_spikes": guard.returns} if guard is not None and guard.returns else {}),
            **learner.details(),
        },
        checkpoints=_saved(task, ranks),
    )


def _newest_checkpoint(task: TrainTask, damaged: list[str], ranks: Ranks) -> checkpoints.Checkpoint | None:
    """The checkpoint from which a training continues. The first rank finds it, and the others read the same one."""
    found = None
    if ranks.is_first:
        fencing.claim(task.fence)
        accepted = checkpoints.accepted_digests(task.configuration)
        if task.earlier_epochs:
            accepted |= settle_earlier_checkpoints(task)
        found = checkpoints.load_newest(task.folder, accepted=accepted, damaged=damaged)
    epoch = ranks.tell(None if found is None else found.epoch)
    if ranks.is_first or epoch is None:
        return found
    try:
        return checkpoints.load_epoch(task.folder, epoch)
    except checkpoints.CheckpointError as error:  # the first rank could, so another attempt may work
        reason = f"rank {ranks.rank} must read the checkpoint that rank 0 has read, but: {error}"
        raise CannotTakePartError(reason) from error


def _saved(task: TrainTask, ranks: Ranks) -> tuple[CheckpointRecord, ...]:
    """The remaining checkpoints, which the first rank records."""
    return checkpoints.saved(task.folder) if ranks.is_first else ()


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


def _save(task: TrainTask, state: Snapshot, *, guard_state: Mapping[str, Tensor], **given: Any) -> None:
    """Write a checkpoint, unless a newer attempt at the training has begun."""
    state.wait()
    fencing.check(task.fence)
    checkpoints.save(
        task.folder,
        weights=state.weights,
        averages=state.averages,
        optimizer={**state.optimizer, **guard_state},
        keep=task.keep_checkpoints,
        check=partial(fencing.check, task.fence),
        **given,
    )


def _epoch(
    course: Course,
    learner: Learner,
    history: Sequence[EpochReport],
    guard: SpikeGuard | None,
    saver: Saver,
    reporter: Reporter,
    ranks: Ranks,
) -> Generator[Request, Any, EpochReport]:
    """Train for one epoch and validate. All ranks return the report of the first one.

    Raises:
        NotFiniteError: A training or validation loss is NaN or infinite.
        _InterruptedError: The reporter asked to end.
    """
    epoch = len(history) + 1
    started, reporting_s = time.perf_counter(), saver.reporting_s
    beginning = None if guard is None else learner.snapshot()
    training_macs = 0.0
    if epoch == 1:
        training_macs += macs_of_table(course.configuration, len(course.labels)) + course.prior_macs()
    while True:
        steps = yield from _steps(course, history, guard, saver, reporter, ranks)
        training_macs += steps.macs
        if steps.is_whole:
            break
        assert beginning is not None
        learner.restore(beginning.as_checkpoint(epoch - 1))
        learner.begin()
    if ranks.decides(
        saver.settle() and reporter.should_stop()
    ):  # this report must be able to end the training before another epoch
        raise _InterruptedError
    learner.finish_epoch(epoch / course.num_epochs)
    validation: Evaluation = yield Validate(course.configuration.metric)
    check_validation(validation.loss, validation.metrics, epoch)
    signals: dict[str, float] = yield MeasureSignals()
    if guard is not None:
        guard.finish_epoch()
    report = EpochReport(
        epoch=epoch,
        train_loss=mean_loss(steps.losses, steps.sizes),
        val_loss=validation.loss,
        val_accuracy=validation.accuracy,
        metrics=further_metrics(validation.metrics),
        learning_rate=steps.learning_rate,
        num_images=sum(steps.sizes),
        training_macs=training_macs,
        wall_time_s=time.perf_counter() - started - (saver.reporting_s - reporting_s),
        signals=signals,
    )
    return report if ranks.count == 1 else EpochReport.model_validate(ranks.tell(report.model_dump(mode="json")))


class _Steps(NamedTuple):
    """The steps of an epoch that were taken."""

    losses: list[Tensor]
    sizes: list[int]
    """Number of images of each step."""
    learning_rate: float
    """Learning rate of the last step."""
    macs: float
    is_whole: bool
    """Whether the epoch is finished; otherwise it must begin again."""


def _steps(
    course: Course,
    history: Sequence[EpochReport],
    guard: SpikeGuard | None,
    saver: Saver,
    reporter: Reporter,
    ranks: Ranks,
) -> Generator[Request, Any, _Steps]:
    """Take the steps of the next epoch. Raises as `_epoch` does."""
    epoch = len(history) + 1
    numbers: list[int] = []
    losses: list[Tensor] = []
    sizes: list[int] = []
    rate, macs = 0.0, float(course.difficulty_macs(epoch, history))
    difficulty: Tensor | None = None
    if course.measures_difficulty(epoch, history):
        difficulty = yield MeasureDifficulty()
    for number, step in enumerate(course.steps(epoch, difficulty, history), start=1):
        saver.poll()
        if ranks.decides(reporter.should_stop()):
            raise _InterruptedError
        if guard is not None and guard.leaves_out(number):
            continue
        losses.append((yield step))
        numbers.append(number)
        sizes.append(len(step.indices))
        rate = step.settings.learning_rate
        macs += course.macs(step)
        if len(losses) % STEPS_PER_FINITE_CHECK == 0 and _is_spike(guard, numbers, losses, epoch, ranks):
            return _Steps(losses, sizes, rate, macs, is_whole=False)
    is_whole = len(losses) % STEPS_PER_FINITE_CHECK == 0 or not _is_spike(guard, numbers, losses, epoch, ranks)
    return _Steps(losses, sizes, rate, macs, is_whole)


def _is_spike(
    guard: SpikeGuard | None, numbers: Sequence[int], losses: Sequence[Tensor], epoch: int, ranks: Ranks
) -> bool:
    """Examine the losses of an epoch since the last call, and return whether the epoch must begin again.

    Raises:
        NotFiniteError: A loss is NaN or infinite.
    """
    newest = (len(losses) - 1) % STEPS_PER_FINITE_CHECK + 1
    values = ranks.tell(torch.stack(list(losses[-newest:])).tolist())
    if guard is not None and guard.must_return(numbers[-newest:], values, epoch):
        return True
    check_losses(values, numbers[-newest:], epoch)
    return False


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
        details=checkpoints.notes_of_newest(task.folder),
        checkpoints=checkpoints.saved(task.folder),
    )


class _SingleTraining:
    """Answers the requests of a training that is computed alone."""

    def __init__(self, learner: RowLearner, data: ImageData, source: TrainingImages) -> None:
        self._row = learner.row
        self._ranks = learner.row.ranks
        self._meter = learner.meter
        self._data = data
        self._source = source

    def answer(self, request: Request) -> object:
        """The answer to a request."""
        if isinstance(request, Step):
            return self._step(request)
        if isinstance(request, MeasureSignals):
            return self._ranks.tell(self._meter.measure())
        if isinstance(request, MeasurePriorDifficulty):
            return _prior_difficulty_of_first(request, self._data, self._source, self._ranks)
        normalizer, ranks = self._source.normalizer, self._ranks
        with self._row.evaluated() as model:
            if isinstance(request, Validate):
                found = evaluate(model, self._data.validation, normalizer, metric=request.metric, ranks=ranks)
                return Evaluation(*ranks.tell(found))
            return example_losses(model, self._data.train, normalizer, ranks=ranks)

    def _step(self, step: Step) -> Tensor:
        if len(step.indices) < self._ranks.count:
            raise ValueError(
                f"a batch must have an image for each of the {self._ranks.count} GPUs of a trial, but one has "
                f"{len(step.indices)}. Raise recipe.batch_size or lower `gpus_per_trial`."
            )
        row = self._row.at(step.settings)
        (batch,) = prepare([row], [step], self._source)
        watch = (lambda _, gradient: self._meter.take(gradient)) if self._meter.watches_steps else None
        drawn = state_of_draws(batch.keep)
        answers: Sequence[Tensor | Exception] = ()
        try:
            answers = learn([batch], watch)
        except Exception as error:
            if not can_be_halved(row, len(batch.labels), error):
                raise
        if not answers:  # here, the error no longer keeps tensors alive
            free_memory()
            halve(row, len(batch.labels))
            draw_again(batch.keep, drawn)
            answers = learn([batch], watch)
        (answer,) = answers
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


def _prior_difficulty_of_first(
    request: MeasurePriorDifficulty, data: ImageData, source: TrainingImages, ranks: Ranks
) -> Tensor | StoppedError | NotFiniteError:
    """The answer of the first rank, for which the others wait as long as it makes progress."""
    if ranks.count == 1:
        return answer_prior_difficulty(request, data, source)
    told: dict[str, Any] | None = None
    if ranks.is_first:

        def should_stop() -> bool:
            ranks.tell(None)
            return request.should_stop()

        answer = answer_prior_difficulty(request._replace(should_stop=should_stop), data, source)
        told = {"values": answer.tolist()} if isinstance(answer, Tensor) else {type(answer).__name__: str(answer)}
        ranks.tell(told)
    while told is None:
        told = ranks.tell(None)
    if "values" in told:
        return torch.tensor(told["values"], dtype=torch.float64)
    (problem,) = told.items()
    return {kind.__name__: kind for kind in (StoppedError, NotFiniteError)}[problem[0]](problem[1])
