"""The methods of a recipe: conflicts, undeclared changes, plug-ins of older forms, and orders with weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from plugins.protocols import Now, OrderContext, PluginCard, Selection, Signal
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from search_spaces.step_settings import StepSettings
from tests.steps import now, step_settings
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.models.building import build_model
from trainers.training import methods
from trainers.training.course import Course
from trainers.training.methods import MethodConflictError, Methods

CARD = PluginCard(source="this test", cost="nothing")


@dataclass(frozen=True)
class Setter:
    """Sets one field to a value."""

    card: ClassVar[PluginCard] = CARD
    field: str
    value: Any
    declared: str | None = None

    @property
    def changes(self) -> frozenset[str]:
        return frozenset({self.declared or self.field})

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        return replace(settings, **{self.field: self.value})


class Twice:
    """Visits the first half of the images twice, the second visit with half the weight."""

    card: ClassVar[PluginCard] = CARD
    needs_difficulty: ClassVar[bool] = False

    def __init__(self) -> None:
        self.seen: list[OrderContext] = []

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        return (1.0,) * round(num_epochs)

    def select(self, size: int, context: OrderContext) -> Selection:
        self.seen.append(context)
        half = torch.arange(size // 2)
        return Selection(torch.cat([half, half]), torch.cat([torch.ones(size // 2), torch.full((size // 2,), 0.5)]))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[PluginChoice, ...]]:
    """Makes objects plug-ins of the kind `curricula`, and returns their choices."""

    def install(**plugins: object) -> tuple[PluginChoice, ...]:
        def made(kind: str, name: str, settings: Any = None) -> Any:
            return plugins[name] if name in plugins else create(kind, name, settings)

        monkeypatch.setattr(methods, "create", made)
        return tuple(PluginChoice(name=name) for name in plugins)

    return install


def test_methods_are_applied_in_the_order_of_the_list(installed: Callable[..., tuple[PluginChoice, ...]]) -> None:
    choices = installed(first=Setter("dropout", 0.1), second=Setter("drop_path", 0.2))
    adjusted = Methods.of(choices).adjust(now(), step_settings())
    assert (adjusted.dropout, adjusted.drop_path) == (0.1, 0.2)


def test_two_methods_that_set_the_same_field_are_rejected_by_name(
    installed: Callable[..., tuple[PluginChoice, ...]],
) -> None:
    choices = installed(first=Setter("dropout", 0.1), second=Setter("dropout", 0.2))
    with pytest.raises(MethodConflictError, match="'first' and 'second' both set dropout"):
        Methods.of(choices)


def test_two_orders_are_rejected_by_name() -> None:
    with pytest.raises(MethodConflictError, match="'cyclical' and 'paced'"):
        Methods.of([PluginChoice(name="cyclical"), PluginChoice(name="paced")])
    assert len(Methods.of([PluginChoice(name="none"), PluginChoice(name="paced")]).plugins) == 1


def test_a_change_that_is_not_declared_is_an_error(installed: Callable[..., tuple[PluginChoice, ...]]) -> None:
    found = Methods.of(installed(sly=Setter("batch_size", 8, declared="dropout")))
    with pytest.raises(ValueError, match=r"'sly'.* it set batch_size, which"):
        found.adjust(now(), step_settings())
    with pytest.raises(ValueError, match=r"'wrong'.* but got 'colour'"):
        Methods.of(installed(wrong=Setter("dropout", 0.1, declared="colour")))


class Weights:
    """Weights the images by their number, times a factor."""

    card: ClassVar[PluginCard] = CARD

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def needs_difficulty_in(self, now: Now) -> bool:
        return False

    def weigh(self, context: OrderContext) -> torch.Tensor | None:
        return self.factor * torch.arange(len(context.labels)) if context.now.epoch == 1 else None


def test_weights_of_an_order_and_of_methods_are_multiplied(installed: Callable[..., tuple[PluginChoice, ...]]) -> None:
    config = configuration(epochs=2)
    choices = installed(twice=Twice(), once=Weights(1.0), triple=Weights(3.0))
    config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"curriculum": choices})})
    course = Course.lay_out(config, digits(), build_model(TOPOLOGY, digits().task, seed=0, device=CPU), CPU)
    assert len(course.methods.plugins) == 3
    first, second = (list(course.steps(epoch, None, ())) for epoch in (1, 2))
    indices = torch.cat([step.indices for step in first])
    half = len(indices) // 2
    expected = 3.0 * indices**2 * torch.cat([torch.ones(half), torch.full((half,), 0.5)])
    found = torch.cat([step.weights for step in first if step.weights is not None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert found.min() > 0  # so that a step of images with the weight 0 has a finite loss
    assert second[0].weights is not None
    assert second[0].weights.max() == 1.0


class OldSelect(Twice):
    def select(self, size: int, *, difficulty: Any, labels: Any, generator: Any) -> Any:  # type: ignore[override]
        return torch.arange(size)


class OldOptions(Twice):
    def model_options(self, progress: float) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(
    ("plugin", "message"),
    [(OldSelect(), r"'old' must have `select\(size, context\)`"), (OldOptions(), "`model_options` of vitsearch 0.1")],
)
def test_a_plugin_of_the_first_version_is_refused_with_advice(
    plugin: object, message: str, installed: Callable[..., tuple[PluginChoice, ...]]
) -> None:
    with pytest.raises(ValueError, match=message):
        Methods.of(installed(old=plugin))


def test_an_order_may_repeat_and_weigh_images_and_sees_signals(
    tmp_path: Path, installed: Callable[..., tuple[PluginChoice, ...]]
) -> None:
    order = Twice()
    config = configuration(epochs=2)
    recipe = config.recipe.model_copy(update={"curriculum": installed(twice=order)})
    config = config.model_copy(update={"recipe": recipe})
    plain, recorder = Recorder(), Recorder()
    run(configuration(epochs=2), tmp_path / "plain", plain)
    outcome = run(config, tmp_path / "twice", recorder, signals=(Signal.GRADIENT_NORM,))
    assert outcome.state == "complete"
    assert [report.num_images for report in recorder.reports] == [len(digits().train)] * 2
    assert recorder.reports[0].train_loss != plain.reports[0].train_loss
    first, second = order.seen
    assert (first.now.epoch, first.now.progress, dict(first.now.signals)) == (1, 0.0, {})
    assert second.now.progress == 0.5
    assert second.now.signals["gradient_norm"] == recorder.reports[0].signals["gradient_norm"]
    assert second.now.signals["val_loss"] == recorder.reports[0].val_loss
