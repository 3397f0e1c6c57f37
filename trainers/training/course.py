"""The steps of a training, created one at a time on request, for single and packed training."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from plugins.protocols import (
    EpochSchedule,
    LossInput,
    NeedsCurvature,
    Now,
    OrderContext,
    Schedule,
    Selection,
    TwoGradients,
)
from plugins.registry import create, load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.ramps import Ramp, value_at, whole_at
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from trainers.config import Configuration, EpochReport
from trainers.data.images import ImageData
from trainers.hardware.devices import derive_seed, make_generator
from trainers.models.building import topology_costs, training_options
from trainers.training.companions import macs_per_visit
from trainers.training.loss_needs import inputs_of
from trainers.training.methods import Methods
from trainers.training.plan import EpochPlan, batch_scale, learning_rate, num_steps, plan_epochs, steps_before
from trainers.training.step import Step


@dataclass(frozen=True, kw_only=True)
class Course:
    """The steps of a training. Random numbers depend on seed and epoch, so a resumed training has the same steps."""

    configuration: Configuration
    task: ImageTask
    device: torch.device
    labels: Tensor
    """Classes of the training images, shape (N,), int64, in the order of the data."""
    methods: Methods
    schedule: Schedule | EpochSchedule
    plan: tuple[EpochPlan, ...]

    @classmethod
    def lay_out(cls, configuration: Configuration, data: ImageData, model: nn.Module, device: torch.device) -> "Course":
        """The course of a training of `model`.

        Raises:
            ValueError: Methods conflict, or the model does not support an option, image size or dropout of the recipe.
        """
        recipe = configuration.recipe
        methods = Methods.of(recipe.curriculum)
        course = cls(
            configuration=configuration,
            task=data.task,
            device=device,
            labels=data.train.labels,
            methods=methods,
            schedule=create("schedules", recipe.schedule.name, recipe.schedule.settings),
            plan=plan_epochs(
                methods.order.passes(configuration.epochs), num_images=len(data.train), num_epochs=configuration.epochs
            ),
        )
        _check_model(model, recipe, methods)
        for size in _sizes(recipe.image_size):
            course.check_image_size(size)
        return course

    @property
    def num_epochs(self) -> int:
        """Number of reporting epochs."""
        return len(self.plan)

    def measures_difficulty(self, epoch: int) -> bool:
        """Whether the example order needs the losses of the images at the start of an epoch."""
        is_partial = any(size < len(self.labels) for size in self.plan[epoch - 1].sizes)
        return self.methods.order.needs_difficulty and is_partial and epoch > 1

    def steps(self, epoch: int, difficulty: Tensor | None, history: Sequence[EpochReport]) -> Iterator[Step]:
        """The steps of an epoch, created on request.

        Args:
            epoch: Number of the epoch, starting at 1.
            difficulty: Loss of each image, if measured.
            history: Reports of the previous epochs.
        """
        seed = self.configuration.seed
        clock = self._clock(epoch, history)
        signals = _signals_of(history)
        order = make_generator(seed, "order", epoch)
        drop_path = make_generator(seed, "drop-path", epoch)
        number = 0
        for size in self.plan[epoch - 1].sizes:
            now = Now(epoch=epoch, num_epochs=self.num_epochs, progress=clock.progress, signals=signals)
            selection = self.methods.order.select(
                size, OrderContext(now=now, labels=self.labels, difficulty=difficulty, generator=order)
            )
            indices, weights = self._visits(selection)
            start = 0
            while start < size:
                now = replace(now, progress=clock.progress)
                settings = self._settings(now, clock)
                left = size - start
                stop = start + -(-left // math.ceil(left / settings.batch_size))
                yield Step(
                    indices=indices[start:stop],
                    weights=None if weights is None else weights[start:stop],
                    settings=settings,
                    now=now,
                    augmentation_seed=derive_seed(seed, "augment", epoch, number),
                    mixing=self._mixing_generator(settings, epoch, number),
                    drop_path=drop_path,
                    dropout_seed=derive_seed(seed, "dropout", epoch, number) if settings.dropout > 0 else 0,
                )
                clock.tick(stop - start)
                start = stop
                number += 1

    def macs(self, step: Step) -> int:
        """Multiply-accumulates of a step: one forward pass and one backward pass, which costs as much as two.

        An optimizer with two gradients per step takes twice as many. If it estimates the curvature every few steps,
        the estimate's share in a step is counted. The networks that the loss reads are added.
        """
        settings = step.settings
        forward = self.forward_macs(settings.image_size, {**settings.model_options, **self._training_options})
        beside = self._companion_macs(settings.image_size)
        return round((3 * forward * self._num_gradients * self._num_models + beside) * len(step.indices))

    def forward_macs(self, image_size: int, options: Mapping[str, int]) -> int:
        """Multiply-accumulates of one image's forward pass in training."""
        key = (image_size, frozenset(options.items()))
        if key not in self._known_macs:
            task = self.task.model_copy(update={"image_size": image_size})
            self._known_macs[key] = topology_costs(self.configuration.topology, task, **options).macs
        return self._known_macs[key]

    @cached_property
    def _training_options(self) -> dict[str, int]:
        return training_options(self.configuration.topology)

    def _companion_macs(self, image_size: int) -> int:
        """Multiply-accumulates per image of the networks that the loss reads."""
        if image_size not in self._known_companion_macs:
            self._known_companion_macs[image_size] = macs_per_visit(self.configuration, self.task, image_size)
        return self._known_companion_macs[image_size]

    @property
    def difficulty_macs(self) -> int:
        """Multiply-accumulates to measure the difficulty of all images."""
        return self.forward_macs(self.task.image_size, {}) * len(self.labels)

    def check_image_size(self, size: int) -> None:
        """Raise ValueError if the model cannot be trained on images of this size."""
        topology = parse_topology(self.configuration.topology)
        space = load("spaces", self.configuration.topology.partition(":")[0])
        if size > self.task.image_size:
            raise ValueError(
                f"recipe.image_size must be at most the {self.task.image_size} pixels of the data, but got {size}. "
                "Lower it or raise data.image_size."
            )
        problem = space.problem(topology, self.task.model_copy(update={"image_size": size}))
        if problem is not None:
            raise ValueError(f"recipe.image_size: images of {size} pixels do not fit the topology: {problem}")

    @cached_property
    def has_fixed_steps(self) -> bool:
        """Whether the number of steps is known in advance because the batch size is constant."""
        is_ramp = isinstance(self.configuration.recipe.batch_size, Ramp)
        return not is_ramp and "batch_size" not in self.methods.changes

    @cached_property
    def _known_macs(self) -> dict[tuple[int, frozenset[tuple[str, int]]], int]:
        return {}

    @cached_property
    def _known_companion_macs(self) -> dict[int, int]:
        return {}

    @cached_property
    def _num_models(self) -> int:
        return 2 if LossInput.PEER in inputs_of(self.configuration.recipe.loss) else 1

    @cached_property
    def _num_gradients(self) -> float:
        """Number of gradients per step, on average."""
        choice = self.configuration.recipe.optimizer
        optimizer = create("optimizers", choice.name, choice.settings)
        estimates = 1 / optimizer.observation_period if isinstance(optimizer, NeedsCurvature) else 0
        return (2 if isinstance(optimizer, TwoGradients) else 1) + estimates

    @cached_property
    def _class_weights(self) -> tuple[float, ...] | None:
        """Inverse class frequencies, scaled to a mean of 1 over the images; `None` without class weights."""
        if self.configuration.recipe.class_weights is None:
            return None
        counts = torch.bincount(self.labels, minlength=self.task.num_classes).double()
        weights = torch.where(counts > 0, len(self.labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
        return tuple(weights.tolist())

    def _clock(self, epoch: int, history: Sequence[EpochReport]) -> "_Clock":
        if self.has_fixed_steps:
            batch_size = whole_at(self.configuration.recipe.batch_size, 0.0)
            total = num_steps(self.plan, batch_size)
            return _Clock(done=steps_before(self.plan, epoch, batch_size), total=total, counts_steps=True)
        visited = sum(report.num_images for report in history)
        return _Clock(done=visited, total=sum(one.num_images for one in self.plan), counts_steps=False)

    def _settings(self, now: Now, clock: "_Clock") -> StepSettings:
        """The settings of the recipe at this point, adjusted by its methods."""
        recipe, progress = self.configuration.recipe, now.progress
        batch_size = whole_at(recipe.batch_size, progress)
        size = self.task.image_size if recipe.image_size is None else whole_at(recipe.image_size, progress)
        initial = StepSettings(
            batch_size=batch_size,
            image_size=size,
            learning_rate=learning_rate(
                clock.done,
                unit=1 if clock.counts_steps else batch_size,
                total=clock.total,
                base=value_at(recipe.learning_rate, progress),
                warmup=recipe.warmup,
                schedule=self.schedule,
                num_epochs=self.num_epochs,
            )
            * self._batch_scale(batch_size),
            weight_decay=value_at(recipe.weight_decay, progress),
            gradient_clip=None if recipe.gradient_clip is None else value_at(recipe.gradient_clip, progress),
            label_smoothing=value_at(recipe.label_smoothing, progress),
            dropout=value_at(recipe.dropout, progress),
            drop_path=value_at(recipe.drop_path, progress),
            augmentation=recipe.augmentation,
            augmentation_strength=value_at(recipe.augmentation_strength, progress),
            mixing=recipe.mixing,
            mixing_strength=value_at(recipe.mixing_strength, progress),
            class_weights=self._class_weights,
        )
        adjusted = self.methods.adjust(now, initial)
        if adjusted.batch_size != batch_size and "learning_rate" not in self.methods.changes:
            scale = self._batch_scale(adjusted.batch_size) / self._batch_scale(batch_size)
            adjusted = replace(adjusted, learning_rate=adjusted.learning_rate * scale)
        if adjusted.image_size != size:
            self.check_image_size(adjusted.image_size)
        return adjusted

    def _batch_scale(self, batch_size: int) -> float:
        recipe = self.configuration.recipe
        return batch_scale(recipe.learning_rate_scaling, batch_size, base=recipe.base_batch_size)

    def _visits(self, selection: Selection) -> tuple[Tensor, Tensor | None]:
        """Indices and weights of a pass, on the device."""
        weights = None if selection.weights is None else selection.weights.float().to(self.device)
        return selection.indices.to(self.device), weights

    def _mixing_generator(self, settings: StepSettings, epoch: int, number: int) -> torch.Generator | None:
        if settings.mixing.name == "none" or settings.mixing_strength == 0.0:
            return None
        return make_generator(self.configuration.seed, "mix", epoch, number)


@dataclass(kw_only=True)
class _Clock:
    """Progress of the training."""

    done: int
    total: int
    counts_steps: bool
    """Whether `done` and `total` are optimizer steps; otherwise they are image visits."""

    @property
    def progress(self) -> float:
        """Completed fraction of the training, in [0, 1)."""
        return self.done / self.total

    def tick(self, num_images: int) -> None:
        """Count a step."""
        self.done += 1 if self.counts_steps else num_images


def _signals_of(history: Sequence[EpochReport]) -> dict[str, float]:
    """Signals of the last finished epoch, for methods."""
    if not history:
        return {}
    last = history[-1]
    return {
        "train_loss": last.train_loss,
        "val_loss": last.val_loss,
        "val_accuracy": last.val_accuracy,
        **last.metrics,
        **last.signals,
    }


def _sizes(size: int | Ramp | None) -> tuple[int, ...]:
    """Image sizes that a recipe uses, as far as known in advance."""
    if size is None:
        return ()
    return tuple(sorted({round(value) for value in size.values()})) if isinstance(size, Ramp) else (size,)


def _check_model(model: nn.Module, recipe: Recipe, methods: Methods) -> None:
    """Raise ValueError if the model's forward pass lacks an option that the recipe needs."""
    prefix = "model_options."
    needed = {name.removeprefix(prefix): name for name in sorted(methods.changes) if name.startswith(prefix)}
    known = set(inspect.signature(model.forward).parameters)
    for option in needed:
        if option not in known:
            owner = methods.owner(needed[option])
            raise ValueError(
                f"the curriculum {owner!r} needs a model whose forward pass has the option {option!r}, but "
                f"{type(model).__name__} has none. Choose another curriculum."
            )
    drops = isinstance(recipe.dropout, Ramp) or recipe.dropout > 0 or "dropout" in methods.changes
    if drops and "dropout" not in known:
        raise ValueError(
            f"recipe.dropout needs a model whose forward pass has the option 'dropout', but {type(model).__name__} has "
            "none. Set it to 0."
        )
