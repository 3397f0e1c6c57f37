"""The methods of a recipe: at most one orders the examples; the others weight them or adjust the settings of steps."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from plugins.protocols import (
    DeclaresImageSizes,
    ExampleOrder,
    ExampleWeights,
    ExcludesOptimizers,
    Now,
    PriorDifficulty,
    StepMethod,
    TrainsSmaller,
    needed_prior_difficulty,
)
from plugins.registry import create, load, parse_topology
from search_spaces.recipes import PluginChoice
from search_spaces.step_settings import StepSettings

NO_ORDER = "none"
"""Example order of a recipe without a method that orders examples."""


class MethodConflictError(ValueError):
    """Two methods of a recipe set the same field, or both order the examples."""


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The methods of a recipe, checked for conflicts."""

    order: ExampleOrder
    adjusting: tuple[tuple[str, StepMethod], ...]
    """Names and methods, in the order of the recipe."""
    weighting: tuple[ExampleWeights, ...] = ()
    """Methods that weight the examples."""

    @classmethod
    def of(cls, choices: Sequence[PluginChoice]) -> "Methods":
        """The methods that a recipe names.

        Raises:
            MethodConflictError: Two of them order the examples, or set the same field.
            ValueError: A plug-in is not a method, or has the interface of an older version.
        """
        made = [(choice.name, create("curricula", choice.name, choice.settings)) for choice in choices]
        for name, plugin in made:
            _check_form(name, plugin)
        orders = [(name, plugin) for name, plugin in made if isinstance(plugin, ExampleOrder) and name != NO_ORDER]
        if len(orders) > 1:
            names = " and ".join(repr(name) for name, _ in orders)
            raise MethodConflictError(
                f"at most one method of a recipe may order the examples, but {names} both do. Remove one of them."
            )
        order = orders[0][1] if orders else create("curricula", NO_ORDER)
        adjusting = tuple((name, plugin) for name, plugin in made if isinstance(plugin, StepMethod))
        _check_fields(adjusting)
        weighting = tuple(plugin for _, plugin in made if isinstance(plugin, ExampleWeights))
        return cls(order=order, adjusting=adjusting, weighting=weighting)

    @property
    def changes(self) -> frozenset[str]:
        """All fields that the methods may set."""
        return frozenset(field for _, method in self.adjusting for field in method.changes)

    @property
    def plugins(self) -> tuple[object, ...]:
        """All methods of the recipe."""
        methods = (self.order, *self.weighting, *(method for _, method in self.adjusting))
        return tuple({id(method): method for method in methods}.values())

    @property
    def smaller(self) -> TrainsSmaller | None:
        """The method that trains a smaller network, if there is one."""
        return next((method for _, method in self.adjusting if isinstance(method, TrainsSmaller)), None)

    def smaller_topology(self, topology: str) -> str | None:
        """The smaller network that a method trains, as `space:text`; `None` without such a method.

        Raises:
            ValueError: The topology has no smaller form.
        """
        method = self.smaller
        if method is None:
            return None
        try:
            return method.smaller(parse_topology(topology)).id
        except ValueError as error:
            raise ValueError(
                f"the curriculum {self._owner_of_smaller!r} needs a topology with a smaller form: {error}"
            ) from error

    def epochs_problem(self, num_epochs: int) -> str | None:
        """Why a number of epochs is too small for a method that trains a smaller network; `None` if it is not."""
        method = self.smaller
        if method is None:
            return None
        small = [method.trains_smaller_in(epoch, num_epochs) for epoch in range(1, num_epochs + 1)]
        if any(small) and not small[-1]:
            return None
        return (
            f"the curriculum {self._owner_of_smaller!r} must train the smaller network and end with the whole one, but "
            f"cannot in {num_epochs} epochs. Train for more epochs, or change its settings."
        )

    @property
    def _owner_of_smaller(self) -> str:
        return next(name for name, one in self.adjusting if isinstance(one, TrainsSmaller))

    @property
    def prior_difficulties(self) -> tuple[PriorDifficulty, ...]:
        """The difficulties that must be measured before training, each once."""
        needed = (needed_prior_difficulty(method) for method in (self.order, *self.weighting))
        return tuple(dict.fromkeys(one for one in needed if one is not None))

    def image_sizes(self, largest: int) -> tuple[int, ...]:
        """The image sizes that the methods set if the recipe's image size is `largest` pixels, sorted."""
        declaring = [method for _, method in self.adjusting if isinstance(method, DeclaresImageSizes)]
        return tuple(sorted({size for method in declaring for size in method.image_sizes(largest)}))

    def owner(self, field: str) -> str:
        """Name of the method that sets a field."""
        return next(name for name, method in self.adjusting if field in method.changes)

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """Apply all methods to the settings.

        Raises:
            ValueError: A method set a field that it does not declare.
        """
        for name, method in self.adjusting:
            adjusted = method.adjust(now, settings)
            if adjusted is not settings:
                _check_declared(name, method, settings, adjusted)
            settings = adjusted
        return settings


def _check_form(name: str, plugin: Any) -> None:
    if not isinstance(plugin, ExampleOrder | ExampleWeights | StepMethod):
        raise ValueError(
            f"the curriculum {name!r} must have `passes` and `select` (an example order), `weigh` (example weights) or "
            f"`changes` and `adjust` (a step method; `plugins.protocols`), but {type(plugin).__name__} has none of "
            "them. Update its package."
        )
    if hasattr(plugin, "model_options"):
        raise ValueError(
            f"the curriculum {name!r} has `model_options` of vitsearch 0.1; a method now sets them in `adjust`, as "
            "`replace(settings, model_options=...)`. Update its package."
        )
    if isinstance(plugin, ExampleOrder) and len(inspect.signature(plugin.select).parameters) != 2:
        raise ValueError(
            f"the curriculum {name!r} must have `select(size, context)`, but its `select` has the arguments of "
            "vitsearch 0.1. Update its package."
        )


def _check_fields(adjusting: Sequence[tuple[str, StepMethod]]) -> None:
    known = {one.name for one in fields(StepSettings)}
    owners: dict[str, str] = {}
    for name, method in adjusting:
        for field in sorted(method.changes):
            if field.partition(".")[0] not in known:
                raise ValueError(
                    f"the method {name!r} must declare fields of StepSettings in `changes`, but got {field!r}. "
                    "Update its package."
                )
            if field in owners:
                raise MethodConflictError(
                    f"two methods of a recipe must not set the same field, but {owners[field]!r} and {name!r} both set "
                    f"{field}. Remove one of them."
                )
            owners[field] = name


def _check_declared(name: str, method: StepMethod, before: StepSettings, after: StepSettings) -> None:
    declared = {field.partition(".")[0] for field in method.changes}
    for one in fields(StepSettings):
        if one.name not in declared and getattr(before, one.name) != getattr(after, one.name):
            raise ValueError(
                f"the method {name!r} must declare every field that it sets in `changes`, but it set {one.name}, which "
                "it does not declare. Update its package."
            )


def excluded_optimizer(rates: Sequence[PluginChoice], optimizer: str) -> str | None:
    """Why one of the rules must not be combined with an optimizer, in words; `None` if all may."""
    for choice in rates:
        rule = load("rates", choice.name)
        if isinstance(rule, ExcludesOptimizers) and optimizer in rule.excluded_optimizers:
            names = ", ".join(sorted(rule.excluded_optimizers))
            return (
                f"rates {choice.name!r} must not be combined with the optimizers {names}, for which its factors are "
                f"wrong, but the optimizer is {optimizer!r}. Choose another optimizer or other rates."
            )
    return None
