"""The training loop. All randomness comes from the seed and the epoch, so a resumed training is the same training."""

import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import Stopper
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from trainers.config import EpochReport, TaskOutcome, TrainTask
from trainers.data.images import ImageData
from trainers.hardware.devices import autocast, cpu_threads
from trainers.models.building import build_model, topology_costs
from trainers.training import checkpoints, fencing
from trainers.training.augment import augment
from trainers.training.checkpoints import Checkpoint
from trainers.training.course import (
    STEPS_PER_FINITE_CHECK,
    Course,
    MeasureDifficulty,
    NotFiniteError,
    Request,
    Save,
    Step,
    Validate,
    check_losses,
    check_validation_loss,
    final_metrics,
    mean_loss,
)
from trainers.training.evaluation import Evaluation, Normalizer, evaluate, example_losses


class Reporter(Protocol):
    """What a training tells while it runs, and what it is told."""

    def report(self, report: EpochReport) -> None:
        """Take the report of a finished epoch; after a resume those of earlier epochs come again."""
        ...

    def should_stop(self) -> bool:
        """Whether to end now, to be gone on with later; asked between batches."""
        ...


class SilentReporter:
    """Takes reports without doing anything, and never stops."""

    def report(self, report: EpochReport) -> None:
        """Nothing."""

    def should_stop(self) -> bool:
        """False."""
        return False


class Learner(Protocol):
    """Weights and optimizer state of one training."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take both from a checkpoint."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The model's state dict, valid until the next step."""
        ...

    def optimizer_tensors(self) -> Mapping[str, Tensor]:
        """The optimizer's state in the form of `checkpoints.optimizer_tensors`, valid until the next step."""
        ...


class _InterruptedError(Exception):
    """The reporter asked to end."""


def train(task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device) -> TaskOutcome:
    """Train one configuration, from its newest whole checkpoint if there is one.

    Args:
        task: What to train and where its checkpoints are.
        data: Training and validation part.
        reporter: Told after each epoch, once its checkpoint is written.
        device: Where to compute.

    Returns:
        `complete`, `stopped` (by the stopping criterion), `interrupted` (by the reporter) or `failed` (not-finite),
        with the checkpoints that are left. Metrics are the last epoch's, and the best of all as `..._best`.
    """
    recipe, topology = task.configuration.recipe, task.configuration.topology
    # Here and not in a caller: with another number of threads the same seed gives slightly other weights.
    with cpu_threads(3 * topology_costs(topology, data.task).macs * recipe.batch_size):
        return _train(task, data, reporter, device)


def _train(task: TrainTask, data: ImageData, reporter: Reporter, device: torch.device) -> TaskOutcome:
    configuration = task.configuration
    recipe = configuration.recipe
    model = build_model(
        configuration.topology, data.task, seed=configuration.seed, device=device, drop_path=recipe.drop_path
    )
    course = Course.lay_out(configuration, data, model, device)
    learner = _SingleLearner(model, recipe, data, device)
    requests = follow(task, data.task, course, learner, reporter)
    answer: object = None
    while True:
        try:
            request = requests.send(answer)
        except StopIteration as ended:
            outcome: TaskOutcome = ended.value
            return outcome
        answer = learner.answer(request)


def follow(
    task: TrainTask, image_task: ImageTask, course: Course, learner: Learner, reporter: Reporter
) -> Generator[Request, Any, TaskOutcome]:
    """A training as a generator: it asks for what must be computed, is sent the answers, and returns its outcome.

    Args:
        task: What to train and where its checkpoints are.
        image_task: Of the data.
        course: The steps.
        learner: Whose weights the answers are computed with; a checkpoint is restored into it.
        reporter: Told after each epoch, once its checkpoint is written.
    """
    digest = checkpoints.configuration_digest(task.configuration)
    history: list[EpochReport] = []
    damaged: list[str] = []
    fencing.claim(task.fence)
    accepted = checkpoints.accepted_digests(task.configuration)
    checkpoint = checkpoints.load_newest(task.folder, accepted=accepted, damaged=damaged)
    if checkpoint is not None:
        learner.restore(checkpoint)
        history.extend(checkpoint.history)
        damaged = list(checkpoint.damaged)
    for report in history:
        reporter.report(report)
    stopper: Stopper | None = None
    if task.configuration.stopping is not None:
        stopper = create("stopping", task.configuration.stopping.name, task.configuration.stopping.settings)
    reason: str | None = None
    try:
        while len(history) < len(course.plan):
            reason = stopper.reason_to_stop([report.point for report in history]) if stopper and history else None
            if reason is not None:
                break
            report = yield from _epoch(len(history) + 1, course, reporter)
            history.append(report)
            yield Save(
                partial(
                    _save,
                    task,
                    weights=learner.weights(),
                    optimizer=learner.optimizer_tensors(),
                    history=history,
                    configuration=digest,
                    damaged=damaged,
                )
            )
            reporter.report(report)
    except NotFiniteError as error:
        return TaskOutcome(
            state="failed", error="not-finite", reason=str(error), checkpoints=checkpoints.saved(task.folder)
        )
    except _InterruptedError:
        return TaskOutcome(
            state="interrupted",
            reason=f"asked to end in epoch {len(history) + 1} of {len(course.plan)}",
            checkpoints=checkpoints.saved(task.folder),
        )
    checkpoints.prune(task.folder, keep=task.keep_checkpoints)
    return TaskOutcome(
        state="complete" if reason is None else "stopped",
        reason=reason,
        metrics=final_metrics(history, task.configuration.topology, image_task),
        details={"damaged_checkpoints": damaged} if damaged else {},
        checkpoints=checkpoints.saved(task.folder),
    )


def _save(task: TrainTask, **given: Any) -> None:
    """Write a checkpoint, unless a newer attempt at the training has begun."""
    fencing.check(task.fence)
    checkpoints.save(task.folder, keep=task.keep_checkpoints, **given)


def _epoch(epoch: int, course: Course, reporter: Reporter) -> Generator[Request, Any, EpochReport]:
    """Train for one epoch and validate.

    Raises:
        NotFiniteError: A training or validation loss is NaN or infinite.
        _InterruptedError: The reporter asked to end.
    """
    started = time.perf_counter()
    losses: list[Tensor] = []
    sizes: list[int] = []
    rate = training_macs = 0.0
    difficulty: Tensor | None = None
    if course.measures_difficulty(epoch):
        difficulty = yield MeasureDifficulty()
        training_macs += course.difficulty_macs
    for step in course.steps(epoch, difficulty):
        if reporter.should_stop():
            raise _InterruptedError
        losses.append((yield step))
        sizes.append(len(step.indices))
        rate = step.rate
        training_macs += course.macs(step)
        if len(losses) % STEPS_PER_FINITE_CHECK == 0:
            check_losses(losses, epoch)
    check_losses(losses, epoch)
    validation: Evaluation = yield Validate()
    check_validation_loss(validation.loss, epoch)
    return EpochReport(
        epoch=epoch,
        train_loss=mean_loss(losses, sizes),
        val_loss=validation.loss,
        val_accuracy=validation.accuracy,
        learning_rate=rate,
        num_images=sum(sizes),
        training_macs=training_macs,
        wall_time_s=time.perf_counter() - started,
    )


def cut_short(
    task: TrainTask, history: Sequence[EpochReport], image_task: ImageTask, *, state: Literal["complete", "stopped"]
) -> TaskOutcome:
    """The outcome of a training that whoever drives it ended after its last report, without asking it.

    Args:
        task: What was trained.
        history: All its reports, oldest first, at least one.
        image_task: Of the data.
        state: `complete` where the last report is that of the last epoch.
    """
    checkpoints.prune(task.folder, keep=task.keep_checkpoints)
    return TaskOutcome(
        state=state,
        metrics=final_metrics(history, task.configuration.topology, image_task),
        checkpoints=checkpoints.saved(task.folder),
    )


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with decay on the weights of linear layers and convolutions alone.

    Biases, norms, class tokens and positions have none, as in DeiT's training.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = {name: name.endswith("weight") and parameter.ndim >= 2 for name, parameter in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True)


class _SingleLearner:
    """One model with its optimizer: computes what its training asks for."""

    def __init__(self, model: nn.Module, recipe: Recipe, data: ImageData, device: torch.device) -> None:
        self._model = model
        self._recipe = recipe
        self._data = data
        self._device = device
        self._images = data.train.images.to(device)
        self._labels = data.train.labels.to(device)
        self._normalizer = Normalizer(data.mean, data.std, device)
        self._optimizer = build_optimizer(model, recipe)
        self._parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def restore(self, checkpoint: Checkpoint) -> None:
        self._model.load_state_dict(checkpoint.weights)
        checkpoints.restore_optimizer(self._optimizer, checkpoint.optimizer)

    def weights(self) -> dict[str, Tensor]:
        return self._model.state_dict()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return checkpoints.optimizer_tensors(self._optimizer)

    def answer(self, request: Request) -> object:
        """What the request asks for."""
        if isinstance(request, Step):
            return self._step(request)
        if isinstance(request, Validate):
            return evaluate(self._model, self._data.validation, self._normalizer)
        if isinstance(request, MeasureDifficulty):
            return example_losses(self._model, self._data.train, self._normalizer)
        request.write()
        return None

    def _step(self, step: Step) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = step.rate
        if not self._model.training:
            self._model.train()
        recipe = self._recipe
        pixels = self._normalizer.scale(self._images[step.indices])
        pixels = augment(pixels, recipe.augmentation, seed=step.augmentation_seed)
        with autocast(self._device):
            logits = self._model(self._normalizer.normalize(pixels), generator=step.drop_path, **step.options)
        loss = F.cross_entropy(
            at_least_float32(logits), self._labels[step.indices], label_smoothing=recipe.label_smoothing
        )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, recipe.gradient_clip, foreach=True)
        self._optimizer.step()
        return loss.detach()


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits in the dtype that losses are computed in: their own, or float32 where it is coarser."""
    return logits if logits.dtype == torch.float64 else logits.float()
