"""What a training asks for, step by step, whoever computes it: one model alone, or several models at once."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plugins.protocols import Curriculum, ModelPhases, Schedule
from plugins.registry import create
from search_spaces.base import ImageTask
from trainers.config import Configuration, EpochReport
from trainers.data.images import ImageData
from trainers.hardware.devices import derive_seed, make_generator
from trainers.models.building import topology_costs
from trainers.training.plan import EpochPlan, learning_rate, num_batches, num_steps, plan_epochs

STEPS_PER_FINITE_CHECK = 16
"""Reading a loss waits for the GPU, so it is not done at every step."""


class Step(NamedTuple):
    """Asks for one optimizer step; answered with its loss, a tensor without dimensions."""

    indices: Tensor
    """The images of the training part, shape (B,), int64, on the device."""
    augmentation_seed: int
    drop_path: torch.Generator
    """Source of the drop-path masks, on the CPU."""
    options: Mapping[str, int]
    """Of the model's `forward`."""
    rate: float
    """Learning rate."""


class MeasureDifficulty(NamedTuple):
    """Asks for the present loss of each training image; answered with a tensor (N,) on the CPU."""


class Validate(NamedTuple):
    """Asks for loss and accuracy on the validation part; answered with an `Evaluation`."""


class Save(NamedTuple):
    """Asks for a checkpoint to be written; answered with `None` once it is."""

    write: Callable[[], object]
    """Does it, in any thread, as long as the weights do not change meanwhile."""


Request = Step | MeasureDifficulty | Validate | Save


class NotFiniteError(Exception):
    """A loss is NaN or infinite; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The steps of a training, laid out before it starts. Its random numbers come from the seed and the epoch."""

    configuration: Configuration
    device: torch.device
    labels: Tensor
    """Classes of the training images, shape (N,), int64, as the data has them."""
    curriculum: Curriculum
    schedule: Schedule
    plan: tuple[EpochPlan, ...]
    total_steps: int
    forward_macs: Mapping[frozenset[tuple[str, int]], int]
    """Of one image, by the options that the curriculum gives the model; those without options are always there."""

    @classmethod
    def lay_out(cls, configuration: Configuration, data: ImageData, model: nn.Module, device: torch.device) -> "Course":
        """The course of a training of `model`.

        Raises:
            ValueError: The curriculum gives the model options that it does not have.
        """
        recipe = configuration.recipe
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
            device=device,
            labels=data.train.labels,
            curriculum=curriculum,
            schedule=create("schedules", recipe.schedule.name, recipe.schedule.settings),
            plan=plan,
            total_steps=total_steps,
            forward_macs={
                phase: topology_costs(configuration.topology, data.task, **dict(phase)).macs
                for phase in {frozenset(), *phases}
            },
        )

    def measures_difficulty(self, epoch: int) -> bool:
        """Whether the curriculum looks at the images' losses at the start of an epoch."""
        is_partial = any(size < len(self.labels) for size in self.plan[epoch - 1].sizes)
        return self.curriculum.needs_difficulty and is_partial and epoch > 1

    def steps(self, epoch: int, difficulty: Tensor | None) -> Iterator[Step]:
        """The steps of an epoch, counted from 1, each made when it is asked for."""
        recipe, seed, plan = self.configuration.recipe, self.configuration.seed, self.plan[epoch - 1]
        drop_path = make_generator(seed, "drop-path", epoch)
        for number, indices in enumerate(self._batches(epoch, difficulty)):
            step = plan.first_step + number
            yield Step(
                indices=indices,
                augmentation_seed=derive_seed(seed, "augment", epoch, number),
                drop_path=drop_path,
                options=_model_options(self.curriculum, step / self.total_steps),
                rate=learning_rate(
                    step,
                    total=self.total_steps,
                    base=recipe.learning_rate,
                    warmup=recipe.warmup,
                    schedule=self.schedule,
                ),
            )

    def macs(self, step: Step) -> int:
        """Multiply-accumulates of a step: one forward and, as expensive as two of them, one backward pass."""
        return 3 * self.forward_macs[frozenset(step.options.items())] * len(step.indices)

    @property
    def difficulty_macs(self) -> int:
        """Multiply-accumulates of measuring the difficulty of all images."""
        return self.forward_macs[frozenset()] * len(self.labels)

    def _batches(self, epoch: int, difficulty: Tensor | None) -> Iterator[Tensor]:
        order = make_generator(self.configuration.seed, "order", epoch)
        for size in self.plan[epoch - 1].sizes:
            chosen = self.curriculum.select(size, difficulty=difficulty, labels=self.labels, generator=order)
            batches = num_batches(size, self.configuration.recipe.batch_size)
            yield from torch.tensor_split(chosen.to(self.device), batches)


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


def check_losses(losses: Sequence[Tensor], epoch: int) -> None:
    """Read the newest losses of an epoch.

    Raises:
        NotFiniteError: For the first of them that is NaN or infinite.
    """
    newest = losses[-STEPS_PER_FINITE_CHECK:]
    values = torch.stack(list(newest)).tolist()
    for step, value in enumerate(values, start=len(losses) - len(newest) + 1):
        if not math.isfinite(value):
            raise NotFiniteError(f"the training loss is {value} at step {step} of epoch {epoch}. {_ADVICE}")


def check_validation_loss(loss: float, epoch: int) -> None:
    """Raise NotFiniteError if it is NaN or infinite."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the validation loss is {loss} after epoch {epoch}. {_ADVICE}")


def mean_loss(losses: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Mean over the images of steps with these mean losses and numbers of images."""
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float(torch.stack(list(losses)).cpu().double() @ weights / weights.sum())


def final_metrics(history: Sequence[EpochReport], topology: str, task: ImageTask) -> dict[str, float]:
    """A training's metrics from the reports of its epochs, at least one."""
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
