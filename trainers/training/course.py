"""The steps of a training, created one at a time on request, for single and packed training."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from plugins.protocols import (
    EpochSchedule,
    ExampleOrder,
    ExampleWeights,
    NeedsCurvature,
    Now,
    OrderContext,
    PriorDifficulty,
    Schedule,
    TwoGradients,
    needed_prior_difficulty,
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
from trainers.training.batch import Step
from trainers.training.companions import macs_of_table, macs_per_visit
from trainers.training.loss_needs import trains_two
from trainers.training.methods import Methods
from trainers.training.plan import EpochPlan, batch_scale, learning_rate, num_steps, plan_epochs, steps_before

_LEAST_WEIGHT = 1e-8
"""Smallest weight of an image in the loss, so that a step whose images all have the weight 0 has a finite loss."""
_RAMP_POINTS = 10
"""Moments of a training at which a changing image size is read to estimate its work."""


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
    prior_difficulties: Mapping[PriorDifficulty, Tensor] = field(default_factory=dict)
    """Difficulties of the training images that were measured before training, each of shape (N,)."""

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
        problem = methods.epochs_problem(configuration.epochs)
        if problem is not None:
            raise ValueError(problem)
        for size in _sizes(recipe.image_size):
            course.check_image_size(size)
        for largest in _sizes(recipe.image_size) or (data.task.image_size,):
            for size in methods.image_sizes(largest):
                course.check_image_size(size)
        for needed in methods.prior_difficulties:
            course.check_difficulty_topology(needed)
        return course

    @property
    def num_epochs(self) -> int:
        """Number of reporting epochs."""
        return len(self.plan)

    def with_prior_difficulty(self, needed: PriorDifficulty, values: Tensor) -> "Course":
        """The same course with a difficulty (N,) that was measured before training."""
        return replace(self, prior_difficulties={**self.prior_difficulties, needed: values})

    def measures_difficulty(self, epoch: int, history: Sequence[EpochReport]) -> bool:
        """Whether a method needs the current losses of the images at the start of an epoch."""
        if epoch == 1:
            return False
        now = self._now(epoch, history, self._clock(epoch))
        weighting = any(method.needs_difficulty_in(now) for method in self.methods.weighting)
        return weighting or self._order_needs_difficulty(epoch)

    def steps(self, epoch: int, difficulty: Tensor | None, history: Sequence[EpochReport]) -> Iterator[Step]:
        """The steps of an epoch, created on request.

        Args:
            epoch: Number of the epoch, starting at 1.
            difficulty: Current loss of each image, if measured.
            history: Reports of the previous epochs.
        """
        seed = self.configuration.seed
        clock = self._clock(epoch)
        order = make_generator(seed, "order", epoch)
        drop_path = make_generator(seed, "drop-path", epoch)
        number = 0
        for size in self.plan[epoch - 1].sizes:
            now = self._now(epoch, history, clock)
            indices, weights = self._visits(size, now, difficulty, order)
            for start, stop, at, settings in self._batches(size, now, clock):
                yield Step(
                    indices=indices[start:stop],
                    weights=None if weights is None else weights[start:stop],
                    settings=settings,
                    now=at,
                    augmentation_seed=derive_seed(seed, "augment", epoch, number),
                    mixing=self._mixing_generator(settings, epoch, number),
                    drop_path=drop_path,
                    dropout_seed=derive_seed(seed, "dropout", epoch, number) if settings.dropout > 0 else 0,
                )
                number += 1

    def macs(self, step: Step) -> int:
        """Multiply-accumulates of a step: one forward pass and one backward pass, which costs as much as two.

        An optimizer with two gradients per step takes twice as many. If it estimates the curvature every few steps,
        the estimate's share in a step is counted. The networks that the loss reads are added.
        """
        return self._step_macs(step.settings, len(step.indices))

    def forward_macs(self, image_size: int, options: Mapping[str, int], *, level: int = 0) -> int:
        """Multiply-accumulates of one image's forward pass in training, at level 1 of the smaller network."""
        key = (level, image_size, frozenset(options.items()))
        if key not in self._known_macs:
            task = self.task.model_copy(update={"image_size": image_size})
            topology = self.configuration.topology if level == 0 or self.smaller is None else self.smaller
            self._known_macs[key] = topology_costs(topology, task, **options).macs
        return self._known_macs[key]

    @cached_property
    def smaller(self) -> str | None:
        """The smaller network that a method trains, as `space:text`."""
        return self.methods.smaller_topology(self.configuration.topology)

    @cached_property
    def _training_options(self) -> dict[str, int]:
        return training_options(self.configuration.topology)

    def _companion_macs(self, image_size: int) -> int:
        """Multiply-accumulates per image of the networks that the loss reads."""
        if image_size not in self._known_companion_macs:
            self._known_companion_macs[image_size] = macs_per_visit(self.configuration, self.task, image_size)
        return self._known_companion_macs[image_size]

    def prior_macs(self) -> int:
        """Multiply-accumulates to measure the difficulties that are needed before training."""
        return sum(self._prior_macs(needed) for needed in self.methods.prior_difficulties)

    def difficulty_macs(self, epoch: int, history: Sequence[EpochReport]) -> int:
        """Multiply-accumulates to measure the current loss of each image for an epoch, if it is needed."""
        if not self.measures_difficulty(epoch, history):
            return 0
        return self.forward_macs(self.task.image_size, {}) * len(self.labels)

    def planned_macs(self, *, with_prior: bool = True) -> int:
        """Multiply-accumulates of the whole training, with those to measure difficulties.

        Args:
            with_prior: Whether those to measure difficulties before training count.
        """
        total = macs_of_table(self.configuration, len(self.labels)) + (self.prior_macs() if with_prior else 0)
        visited = 0
        for epoch, planned in enumerate(self.plan, start=1):
            clock = _Clock(done=visited, total=sum(one.num_images for one in self.plan), counts_steps=False)
            total += self.difficulty_macs(epoch, ())
            for size in planned.sizes:
                for start, stop, _, settings in self._batches(size, self._now(epoch, (), clock), clock):
                    total += self._step_macs(settings, stop - start)
            visited += planned.num_images
        return total

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

    def check_difficulty_topology(self, needed: PriorDifficulty) -> None:
        """Raise ValueError if the model that measures a difficulty cannot be trained on the images."""
        if needed.topology is None:
            return
        space = load("spaces", needed.topology.partition(":")[0])
        problem = space.problem(parse_topology(needed.topology), self.task)
        if problem is not None:
            raise ValueError(
                f"recipe.curriculum: `difficulty_topology` must fit the images, but for {needed.topology}, {problem} "
                "Choose another topology."
            )

    @cached_property
    def has_fixed_steps(self) -> bool:
        """Whether the number of steps is known in advance because the batch size is constant."""
        is_ramp = isinstance(self.configuration.recipe.batch_size, Ramp)
        return not is_ramp and "batch_size" not in self.methods.changes

    def _step_macs(self, settings: StepSettings, num_images: int) -> int:
        options = {**settings.model_options, **self._training_options}
        forward = self.forward_macs(settings.image_size, options, level=settings.level)
        beside = self._companion_macs(settings.image_size)
        return round((3 * forward * self._num_gradients + beside) * num_images)

    def _prior_macs(self, needed: PriorDifficulty) -> int:
        """Multiply-accumulates to measure a difficulty before training: short trainings, then one pass."""
        topology = needed.topology or self.configuration.topology
        trained = topology_costs(topology, self.task, **training_options(topology)).macs
        measured = topology_costs(topology, self.task).macs * (3 if needed.kind == "grand" else 1)
        return needed.runs * (3 * needed.epochs * trained + measured) * len(self.labels)

    @cached_property
    def _known_macs(self) -> dict[tuple[int, int, frozenset[tuple[str, int]]], int]:
        return {}

    @cached_property
    def _known_companion_macs(self) -> dict[int, int]:
        return {}

    @cached_property
    def _num_gradients(self) -> float:
        return _num_gradients(self.configuration.recipe)

    @cached_property
    def _class_weights(self) -> tuple[float, ...] | None:
        """Inverse class frequencies, scaled to a mean of 1 over the images; `None` without class weights."""
        if self.configuration.recipe.class_weights is None:
            return None
        counts = torch.bincount(self.labels, minlength=self.task.num_classes).double()
        weights = torch.where(counts > 0, len(self.labels) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
        return tuple(weights.tolist())

    def _clock(self, epoch: int) -> "_Clock":
        if self.has_fixed_steps:
            batch_size = whole_at(self.configuration.recipe.batch_size, 0.0)
            total = num_steps(self.plan, batch_size)
            return _Clock(done=steps_before(self.plan, epoch, batch_size), total=total, counts_steps=True)
        visited = sum(one.num_images for one in self.plan[: epoch - 1])  # including those of steps that were left out
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

    def _now(self, epoch: int, history: Sequence[EpochReport], clock: "_Clock") -> Now:
        past = tuple(_signals_of(report) for report in history)
        return Now(
            epoch=epoch,
            num_epochs=self.num_epochs,
            progress=clock.progress,
            signals=past[-1] if past else {},
            past=past,
        )

    def _batches(self, size: int, now: Now, clock: "_Clock") -> Iterator[tuple[int, int, Now, StepSettings]]:
        """Start, stop, moment and settings of each batch of a pass. They differ by at most one image in size."""
        start = 0
        while start < size:
            now = replace(now, progress=clock.progress)
            settings = self._settings(now, clock)
            left = size - start
            stop = start + -(-left // math.ceil(left / settings.batch_size))
            yield start, stop, now, settings
            clock.tick(stop - start)
            start = stop

    def _visits(
        self, size: int, now: Now, difficulty: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Indices and weights of a pass, on the device."""
        seed = derive_seed(self.configuration.seed, "order")

        def context(method: ExampleOrder | ExampleWeights, current: Tensor | None) -> OrderContext:
            needed = needed_prior_difficulty(method)
            known = current if needed is None else self.prior_difficulties[needed]
            return OrderContext(now=now, labels=self.labels, difficulty=known, generator=generator, seed=seed)

        order = self.methods.order
        current = difficulty if self._order_needs_difficulty(now.epoch) else None
        indices, weights = order.select(size, context(order, current))
        for method in self.methods.weighting:
            more = method.weigh(context(method, difficulty))
            if more is not None:
                own = more.float()[indices]
                weights = own if weights is None else weights.float() * own
        if weights is not None:
            weights = weights.float().clamp(min=_LEAST_WEIGHT).to(self.device)
        return indices.to(self.device), weights

    def _order_needs_difficulty(self, epoch: int) -> bool:
        is_partial = any(size < len(self.labels) for size in self.plan[epoch - 1].sizes)
        return self.methods.order.needs_difficulty and is_partial and epoch > 1

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


def planned_image_macs(configuration: Configuration, task: ImageTask) -> float:
    """Multiply-accumulates per image visit of a training, on average, before its curriculum changes the steps."""
    recipe = configuration.recipe
    num_points = _RAMP_POINTS if isinstance(recipe.image_size, Ramp) else 1
    options, num_gradients = training_options(configuration.topology), _num_gradients(recipe)
    total = 0.0
    for point in range(num_points):
        progress = (point + 0.5) / num_points
        size = task.image_size if recipe.image_size is None else whole_at(recipe.image_size, progress)
        resized = task.model_copy(update={"image_size": size})
        forward = topology_costs(configuration.topology, resized, **options).macs
        total += 3 * forward * num_gradients + macs_per_visit(configuration, task, size)
    return total / num_points


def _num_gradients(recipe: Recipe) -> float:
    """Number of gradients per step, on average, of all models in training."""
    choice = recipe.optimizer
    optimizer = create("optimizers", choice.name, choice.settings)
    estimates = 1 / optimizer.observation_period if isinstance(optimizer, NeedsCurvature) else 0
    num_models = 2 if trains_two(recipe.loss) else 1
    return ((2 if isinstance(optimizer, TwoGradients) else 1) + estimates) * num_models


def _signals_of(report: EpochReport) -> dict[str, float]:
    """Losses, accuracy and signals of an epoch, for methods."""
    return {
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        **report.metrics,
        **report.signals,
    }


def _sizes(size: int | Ramp | None) -> tuple[int, ...]:
    """Image sizes that a recipe uses, as far as known in advance."""
    if size is None:
        return ()
    return tuple(sorted({round(value) for value in size.values()})) if isinstance(size, Ramp) else (size,)


def _without_dropout(methods: Methods) -> str:
    """What to do if a model has no dropout."""
    if "dropout" not in methods.changes:
        return "Set it to 0."
    return (
        f"The curriculum {methods.owner('dropout')!r} changes it: choose another, or settings with which it does not."
    )


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
            f"none. {_without_dropout(methods)}"
        )
