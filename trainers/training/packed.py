"""Computes several trainings of one topology together. Each is reported, stopped and saved independently."""

import logging
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from search_spaces.ramps import largest
from trainers.config import TaskOutcome, TrainTask
from trainers.data.images import ImageData, ImageSplit
from trainers.hardware.devices import computing_in, useful_threads
from trainers.models.blocks import unfused_attention
from trainers.training.batch import Batch, Step, chunks, prepare, step_key
from trainers.training.compiling import say_packs_are_not_compiled
from trainers.training.course import Course
from trainers.training.evaluation import Normalizer, evaluate, example_losses, judge, logits_of, losses_of
from trainers.training.failures import describe_failure, failed_outcome, free_memory, is_out_of_memory
from trainers.training.learner import RowLearner
from trainers.training.loop import (
    MeasureDifficulty,
    MeasurePriorDifficulty,
    MeasureSignals,
    Request,
    Validate,
    answer_prior_difficulty,
    follow,
)
from trainers.training.memory import can_be_halved, halve
from trainers.training.packing import can_be_packed
from trainers.training.reporting import Reporter
from trainers.training.row import Row, pack_problem
from trainers.training.saving import CheckpointWriter
from trainers.training.set_up import make_row, step_macs, training_images, wanted_signals
from trainers.training.signals import SignalMeter
from trainers.training.step import learn

_STACKED_ON_CPU = 8
"""Maximum number of models that a CPU computes at once; larger stacks are not faster."""
_SMALL_STEP_MACS = 24 * 10**6
"""Largest forward work of one model's step for which a CPU stacks models. For larger models, cache misses cost more
than shared operations save, so the models of a pack learn one after another, or one per thread."""
_PIXELS_ON_CPU = 1 << 22
"""Number of float32 pixels to prepare at a time on a CPU: 16 MiB."""
_SAVING_THREADS = 2

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


def train_packed(
    tasks: Sequence[TrainTask],
    data: ImageData,
    reporters: Sequence[Reporter],
    device: torch.device,
) -> Iterator[tuple[int, TaskOutcome]]:
    """Train several configurations together, each starting from its newest intact checkpoint if there is one.

    Each training uses the same images, augmentations and random numbers as in `trainers.training.loop.train`, and its
    results and checkpoints are equal up to rounding: a training that began in a pack can continue alone, and vice
    versa. A training that ends leaves the pack without affecting the others. The wall time of an epoch includes the
    time spent on the other trainings.

    Args:
        tasks: The trainings. Each pair must pass `trainers.training.packing.can_be_packed`.
        data: Training and validation part.
        reporters: One reporter per task, called in this thread.
        device: Device of the training.

    Yields:
        The position and outcome of each task as soon as it ends. The outcome is that of `trainers.training.loop.train`
        with `details["pack_size"]`. The others continue when the next outcome is requested. An error in one training
        affects only its outcome.

    Raises:
        ValueError: The tasks cannot be packed.
    """
    _check(tasks, reporters)
    if any(task.compile for task in tasks):
        say_packs_are_not_compiled()
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    with (
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        CheckpointWriter(_SAVING_THREADS) as writer,
        computing_in(tasks[0].precision),
    ):
        try:
            torch.set_num_threads(1)
            pack = _Pack(tasks, data, device, pool, threads, writer)
            trainings = [_Training(position, task, reporters[position], pack) for position, task in enumerate(tasks)]
            for position, outcome in _run(trainings, pack):
                torch.set_num_threads(threads)
                yield position, outcome.model_copy(update={"details": {**outcome.details, "pack_size": len(tasks)}})
                torch.set_num_threads(1)
        finally:
            torch.set_num_threads(threads)


def _check(tasks: Sequence[TrainTask], reporters: Sequence[Reporter]) -> None:
    if not tasks or len(tasks) != len(reporters):
        raise ValueError(
            f"a pack needs at least one task and one reporter per task, but got {len(tasks)} tasks and "
            f"{len(reporters)} reporters."
        )
    for number, task in enumerate(tasks):
        for other in tasks[:number]:
            why = can_be_packed(other, task)
            if why is not None:
                raise ValueError(f"the tasks of a pack must differ in numbers only, but {why}. Train them separately.")


def _run(trainings: "Sequence[_Training]", pack: "_Pack") -> Iterator[tuple[int, TaskOutcome]]:
    """Answer requests of one kind at a time. Steps are taken when all trainings request one."""
    going = list(trainings)
    for training in going:
        training.advance(None)
    while going:
        for training in going:
            if training.outcome is not None:
                yield training.position, training.outcome
        going = [training for training in going if training.outcome is None]
        for kind in (MeasurePriorDifficulty, MeasureDifficulty, Validate, MeasureSignals, Step):
            asking = [training for training in going if isinstance(training.question[1], kind)]
            if asking:
                answers = pack.answer([training.question for training in asking])
                for training, answer in zip(asking, answers, strict=True):
                    training.advance(answer)
                break


class _Training:
    """One task of a pack, between a request and its answer."""

    def __init__(self, position: int, task: TrainTask, reporter: Reporter, pack: "_Pack") -> None:
        self.position = position
        self.outcome: TaskOutcome | None = None
        self._learner: RowLearner | None = None
        self._request: Request | None = None
        self._requests = self._begin(task, reporter, pack)

    @property
    def question(self) -> tuple[RowLearner, Request]:
        """The current request and its learner."""
        assert self._learner is not None
        assert self._request is not None
        return self._learner, self._request

    def _begin(self, task: TrainTask, reporter: Reporter, pack: "_Pack") -> Generator[Request, Any, TaskOutcome]:
        configuration, data = task.configuration, pack.data
        row = make_row(configuration, data, pack.device)
        problem = pack_problem(row)
        if problem is not None:
            raise ValueError(problem)
        course = Course.lay_out(configuration, data, row.model, pack.device)
        meter = SignalMeter(wanted_signals(task), row, data.validation, pack.source, seed=configuration.seed)
        self._learner = RowLearner(row, meter)
        return (yield from follow(task, data.task, course, self._learner, pack.writer, reporter))

    def advance(self, answer: object) -> None:
        """Send the answer to the last request, and receive the next request or the outcome."""
        try:
            if isinstance(answer, Exception):
                self._request = self._requests.throw(answer)
            else:
                self._request = self._requests.send(answer)
        except StopIteration as ended:
            self.outcome = ended.value
        except Exception as error:  # one training may raise any exception; the others continue
            self.outcome = failed_outcome(describe_failure(error))
        if self.outcome is not None:
            self._learner = self._request = None  # frees its memory for the others


class _Pack:
    """Holds the data on the device and answers simultaneous requests of trainings of one topology."""

    def __init__(
        self,
        tasks: Sequence[TrainTask],
        data: ImageData,
        device: torch.device,
        pool: ThreadPoolExecutor,
        threads: int,
        writer: CheckpointWriter,
    ) -> None:
        configuration = tasks[0].configuration
        self.data = data
        self.device = device
        self.writer = writer
        self._pool = pool
        self._threads = threads
        self.source = training_images(data, device)
        self.normalizer: Normalizer = self.source.normalizer
        self._step_macs = step_macs(configuration, data.task)
        forward_macs = self._step_macs / 3
        if device.type == "cpu":
            pixels = int(largest(configuration.recipe.batch_size)) * data.train.images[0].numel()
            self._stack_size = _STACKED_ON_CPU if forward_macs <= _SMALL_STEP_MACS else 1
            self._num_prepared = max(threads * self._stack_size, _PIXELS_ON_CPU // pixels)
        else:
            self._stack_size = self._num_prepared = len(tasks)

    def answer(self, questions: Sequence[tuple[RowLearner, Request]]) -> Sequence[object]:
        """Answers to requests of one kind, or the exceptions that they raised."""
        learners = [learner for learner, _ in questions]
        requests = [request for _, request in questions]
        if isinstance(requests[0], MeasurePriorDifficulty):
            measure = _caught(partial(answer_prior_difficulty, data=self.data, source=self.source))
            return [measure(request) for request in requests if isinstance(request, MeasurePriorDifficulty)]
        if isinstance(requests[0], MeasureSignals):
            return self._side_by_side(_caught(lambda learner: learner.meter.measure()), learners)
        if isinstance(requests[0], Step):
            return self._steps(learners, [request for request in requests if isinstance(request, Step)])
        rows = [learner.row for learner in learners]
        if isinstance(requests[0], Validate):
            metric = requests[0].metric  # that of all: see `can_be_packed`
            return self._evaluate(
                rows, self.data.validation, partial(evaluate, metric=metric), partial(judge, metric=metric)
            )
        return self._evaluate(rows, self.data.train, example_losses, losses_of)

    def _steps(self, learners: Sequence[RowLearner], steps: Sequence[Step]) -> list[object]:
        answers: dict[int, object] = {}
        meters = {id(learner.row): learner.meter for learner in learners if learner.meter.watches_steps}
        by_key: dict[Hashable, list[int]] = {}
        for number, (learner, step) in enumerate(zip(learners, steps, strict=True)):
            by_key.setdefault(step_key(learner.row, step), []).append(number)
        for members in by_key.values():
            for wave in chunks(members, self._num_prepared):
                rows = [learners[number].row for number in wave]
                batches = prepare(rows, [steps[number] for number in wave], self.source)
                learn_chunk = partial(self._learn, meters=meters)
                results = self._side_by_side(learn_chunk, list(chunks(batches, self._chunk_size(len(wave)))))
                answers |= zip(wave, (answer for result in results for answer in result), strict=True)
        return [answers[number] for number in range(len(steps))]

    def _chunk_size(self, num_batches: int) -> int:
        """Number of models to compute at once; small enough on a CPU that every thread has work."""
        every = -(-num_batches // self._threads) if self.device.type == "cpu" else num_batches
        return min(self._stack_size, every)

    def _learn(self, batches: Sequence[Batch], meters: Mapping[int, SignalMeter]) -> list[Tensor | Exception]:
        """Losses of the batches. If they cannot be computed together, smaller stacks are tried, then half batches."""
        try:
            watch = partial(_watch, batches, meters) if meters else None
            return learn(batches, watch)
        except Exception as error:
            if len(batches) == 1 and not can_be_halved(batches[0].row, len(batches[0].labels), error):
                return [error]
            lacks_memory, reason = is_out_of_memory(error), describe_failure(error).reason
        free_memory()
        if len(batches) == 1:
            halve(batches[0].row, len(batches[0].labels))  # models of a pack draw nothing themselves
            return self._learn(batches, meters)
        if lacks_memory:
            half = -(-len(batches) // 2)
            self._stack_size = min(self._stack_size, half)
            return self._learn(batches[:half], meters) + self._learn(batches[half:], meters)
        answers = [answer for batch in batches for answer in self._learn([batch], meters)]
        if self._stack_size > 1 and not any(isinstance(answer, Exception) for answer in answers):
            self._stack_size = 1
            logger.warning("The models of a pack cannot be computed together, so they take turns: %s.", reason)
        return answers

    def _evaluate(
        self,
        rows: Sequence[Row],
        split: ImageSplit,
        alone: Callable[[nn.Module, ImageSplit, Normalizer], Answer],
        read: Callable[[Tensor, Tensor], Answer],
    ) -> list[Answer | Exception]:
        """The result of `alone` for each model; on a GPU, that of `read` on the logits of all models at once."""
        if self.device.type != "cpu" and len(rows) > 1:
            try:
                answers: list[Answer | Exception] = []
                for members in chunks(rows, self._stack_size):
                    logits = torch.cat(list(logits_of(StackedModel(members), split.images, self.normalizer)))
                    labels = split.labels.to(logits.device)
                    answers += [read(logits[:, number], labels) for number in range(len(members))]
                return answers
            except torch.OutOfMemoryError:
                logger.warning(
                    "Not enough memory to evaluate %d models at once: evaluating them one by one.", len(rows)
                )
            free_memory()
        return self._side_by_side(_caught(partial(_evaluate_alone, alone, split, self.normalizer)), rows)

    def _side_by_side(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results of `work` for all items, in order; on a CPU computed in several threads, each with one core."""
        if self.device.type == "cpu" and self._threads > 1 and len(items) > 1:
            return list(self._pool.map(work, items))
        torch.set_num_threads(useful_threads(self._step_macs, self._threads))
        try:
            return [work(item) for item in items]
        finally:
            torch.set_num_threads(1)


def _watch(batches: Sequence[Batch], meters: Mapping[int, SignalMeter], number: int, gradient: Tensor) -> None:
    meter = meters.get(id(batches[number].row))
    if meter is not None:
        meter.take(gradient)


def _evaluate_alone(
    alone: Callable[[nn.Module, ImageSplit, Normalizer], Answer], split: ImageSplit, normalizer: Normalizer, row: Row
) -> Answer:
    with row.evaluated() as model:
        return alone(model, split, normalizer)


def _caught(work: Callable[[Item], Result]) -> Callable[[Item], Result | Exception]:
    def attempt(item: Item) -> Result | Exception:
        try:
            return work(item)
        except Exception as error:  # becomes the outcome of its training
            return error

    return attempt


class StackedModel(nn.Module):
    """Evaluates several models as one: from images (B, C, S, S) to logits (B, K, classes)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self._row = rows[0]
        self.inner = rows[0].model
        self._parameters_of_all = self._row.layout.views(torch.stack([row.values_to_evaluate() for row in rows]))

    def forward(self, images: Tensor) -> Any:
        with unfused_attention():
            return vmap(self._row.call, in_dims=(0, None), out_dims=1)(self._parameters_of_all, images)
