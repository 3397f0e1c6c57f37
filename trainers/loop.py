"""The training loop. All randomness comes from the seed and the epoch, so a resumed training is the same training."""

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import Curriculum, ModelPhases, Schedule, Stopper
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from trainers import checkpoints
from trainers.augment import augment
from trainers.building import build_model, topology_costs
from trainers.config import Configuration, EpochReport, TaskOutcome, TrainTask
from trainers.data import ImageData
from trainers.devices import autocast, cpu_threads, derive_seed, make_generator
from trainers.evaluation import Normalizer, evaluate, example_losses
from trainers.plan import EpochPlan, learning_rate, num_batches, num_steps, plan_epochs

_STEPS_PER_FINITE_CHECK = 16
"""Reading a loss waits for the GPU, so it is not done at every step."""


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


class _NotFiniteError(Exception):
    """A loss is NaN or infinite; the message says where."""


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
    digest = checkpoints.configuration_digest(configuration)
    training = _Training.start(configuration, data, device)
    history = training.resume(task.folder, digest)
    for report in history:
        reporter.report(report)
    stopper: Stopper | None = None
    if configuration.stopping is not None:
        stopper = create("stopping", configuration.stopping.name, configuration.stopping.settings)
    reason: str | None = None
    try:
        while len(history) < len(training.plan):
            reason = stopper.reason_to_stop([report.point for report in history]) if stopper and history else None
            if reason is not None:
                break
            history.append(training.run_epoch(len(history) + 1, reporter))
            checkpoints.save(
                task.folder,
                weights=training.model.state_dict(),
                optimizer=checkpoints.optimizer_tensors(training.optimizer),
                history=history,
                configuration=digest,
                keep=task.keep_checkpoints,
            )
            reporter.report(history[-1])
    except _NotFiniteError as error:
        return TaskOutcome(
            state="failed", error="not-finite", reason=str(error), checkpoints=checkpoints.saved(task.folder)
        )
    except _InterruptedError:
        return TaskOutcome(
            state="interrupted",
            reason=f"asked to end in epoch {len(history) + 1} of {len(training.plan)}",
            checkpoints=checkpoints.saved(task.folder),
        )
    checkpoints.prune(task.folder, keep=task.keep_checkpoints)
    return TaskOutcome(
        state="complete" if reason is None else "stopped",
        reason=reason,
        metrics=_final_metrics(history, configuration.topology, data.task),
        checkpoints=checkpoints.saved(task.folder),
    )


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW without decay on biases, norms and other parameters of fewer than two dimensions."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True)


@dataclass(kw_only=True)
class _Training:
    """One training between two epochs."""

    configuration: Configuration
    data: ImageData
    device: torch.device
    images: Tensor
    labels: Tensor
    model: nn.Module
    optimizer: torch.optim.AdamW
    normalizer: Normalizer
    curriculum: Curriculum
    schedule: Schedule
    plan: tuple[EpochPlan, ...]
    total_steps: int
    forward_macs: Mapping[frozenset[tuple[str, int]], int]
    """Of one image, by the options that the curriculum gives the model; those without options are always there."""

    @classmethod
    def start(cls, configuration: Configuration, data: ImageData, device: torch.device) -> "_Training":
        """A training before its first epoch.

        Raises:
            ValueError: The curriculum gives the model options that it does not have.
        """
        recipe = configuration.recipe
        model = build_model(
            configuration.topology, data.task, seed=configuration.seed, device=device, drop_path=recipe.drop_path
        )
        curriculum: Curriculum = create("curricula", recipe.curriculum.name, recipe.curriculum.settings)
        plan = plan_epochs(
            curriculum.passes(configuration.epochs),
            num_images=len(data.train),
            num_epochs=configuration.epochs,
            batch_size=recipe.batch_size,
        )
        total_steps = num_steps(plan, recipe.batch_size)
        phases = {frozenset(_model_options(curriculum, step / total_steps).items()) for step in range(total_steps)}
        _check_options(model, {name for phase in phases for name, _ in phase}, recipe.curriculum.name)
        return cls(
            configuration=configuration,
            data=data,
            device=device,
            images=data.train.images.to(device),
            labels=data.train.labels.to(device),
            model=model,
            optimizer=build_optimizer(model, recipe),
            normalizer=Normalizer(data.mean, data.std, device),
            curriculum=curriculum,
            schedule=create("schedules", recipe.schedule.name, recipe.schedule.settings),
            plan=plan,
            total_steps=total_steps,
            forward_macs={
                phase: topology_costs(configuration.topology, data.task, **dict(phase)).macs
                for phase in {frozenset(), *phases}
            },
        )

    def resume(self, folder: Path, digest: str) -> list[EpochReport]:
        """Take weights and optimizer state of the newest checkpoint; the reports of the epochs behind it."""
        checkpoint = checkpoints.load_newest(folder, configuration=digest)
        if checkpoint is None:
            return []
        self.model.load_state_dict(checkpoint.weights)
        checkpoints.restore_optimizer(self.optimizer, checkpoint.optimizer)
        return list(checkpoint.history)

    def run_epoch(self, epoch: int, reporter: Reporter) -> EpochReport:
        """Train for one epoch and evaluate.

        Raises:
            _NotFiniteError: A training or validation loss is NaN or infinite.
            _InterruptedError: The reporter asked to end.
        """
        started = time.perf_counter()
        recipe, seed = self.configuration.recipe, self.configuration.seed
        plan = self.plan[epoch - 1]
        batches = self._batches(epoch, plan)
        drop_path = make_generator(seed, "drop-path", epoch)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        losses: list[Tensor] = []
        sizes: list[int] = []
        rate = training_macs = 0.0
        if self._measures_difficulty(epoch):
            training_macs += self.forward_macs[frozenset()] * len(self.data.train)
        for step, indices in enumerate(batches):
            if reporter.should_stop():
                raise _InterruptedError
            rate = learning_rate(
                plan.first_step + step,
                total=self.total_steps,
                base=recipe.learning_rate,
                warmup=recipe.warmup,
                schedule=self.schedule,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            options = _model_options(self.curriculum, (plan.first_step + step) / self.total_steps)
            pixels = self.normalizer.scale(self.images[indices])
            pixels = augment(pixels, recipe.augmentation, seed=derive_seed(seed, "augment", epoch, step))
            with autocast(self.device):
                logits = self.model(self.normalizer.normalize(pixels), generator=drop_path, **options)
            loss = F.cross_entropy(logits.float(), self.labels[indices], label_smoothing=recipe.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip, foreach=True)
            self.optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(indices))
            training_macs += 3 * self.forward_macs[frozenset(options.items())] * len(indices)
            if len(losses) % _STEPS_PER_FINITE_CHECK == 0:
                _check_finite(losses, epoch)
        _check_finite(losses, epoch)
        weights = torch.tensor(sizes, dtype=torch.float64)
        train_loss = float(torch.stack(losses).cpu().double() @ weights / weights.sum())
        validation = evaluate(self.model, self.data.validation, self.normalizer)
        if not math.isfinite(validation.loss):
            raise _NotFiniteError(f"the validation loss is {validation.loss} after epoch {epoch}. {_ADVICE}")
        return EpochReport(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            learning_rate=rate,
            num_images=plan.num_images,
            training_macs=training_macs,
            wall_time_s=time.perf_counter() - started,
        )

    def _measures_difficulty(self, epoch: int) -> bool:
        is_partial = any(size < len(self.data.train) for size in self.plan[epoch - 1].sizes)
        return self.curriculum.needs_difficulty and is_partial and epoch > 1

    def _batches(self, epoch: int, plan: EpochPlan) -> Iterator[Tensor]:
        """Indices of each step's images, on the device; the model is put into training mode."""
        order = make_generator(self.configuration.seed, "order", epoch)
        difficulty = None
        if self._measures_difficulty(epoch):
            difficulty = example_losses(self.model, self.data.train, self.normalizer)
        self.model.train()
        for size in plan.sizes:
            chosen = self.curriculum.select(
                size, difficulty=difficulty, labels=self.data.train.labels, generator=order
            ).to(self.device)
            yield from torch.tensor_split(chosen, num_batches(size, self.configuration.recipe.batch_size))


def _model_options(curriculum: Curriculum, progress: float) -> Mapping[str, int]:
    """What the curriculum tells the model at `progress` of the steps."""
    return curriculum.model_options(progress) if isinstance(curriculum, ModelPhases) else {}


def _check_options(model: nn.Module, options: set[str], curriculum: str) -> None:
    missing = sorted(options - set(inspect.signature(model.forward).parameters))
    if missing:
        raise ValueError(
            f"the curriculum {curriculum!r} needs a model whose forward pass has the option {missing[0]!r}, but "
            f"{type(model).__name__} has none. Choose another curriculum."
        )


_ADVICE = "Lower the learning rate, or use a gradient clip and a longer warm-up."


def _check_finite(losses: Sequence[Tensor], epoch: int) -> None:
    """Raise _NotFiniteError for the first of an epoch's newest losses that is NaN or infinite."""
    newest = losses[-_STEPS_PER_FINITE_CHECK:]
    values = torch.stack(list(newest)).tolist()
    for step, value in enumerate(values, start=len(losses) - len(newest) + 1):
        if not math.isfinite(value):
            raise _NotFiniteError(f"the training loss is {value} at step {step} of epoch {epoch}. {_ADVICE}")


def _final_metrics(history: Sequence[EpochReport], topology: str, task: ImageTask) -> dict[str, float]:
    last = history[-1]
    wall_time_s = sum(report.wall_time_s for report in history)
    costs = topology_costs(topology, task)
    return {
        "val_accuracy": last.val_accuracy,
        "val_loss": last.val_loss,
        "train_loss": last.train_loss,
        "val_accuracy_best": max(report.val_accuracy for report in history),
        "val_loss_best": min(report.val_loss for report in history),
        "epochs": float(len(history)),
        "wall_time_s": wall_time_s,
        "throughput_images_per_s": sum(report.num_images for report in history) / wall_time_s,
        "training_macs": sum(report.training_macs for report in history),
        "parameters": float(costs.parameters),
        "macs": float(costs.macs),
    }
