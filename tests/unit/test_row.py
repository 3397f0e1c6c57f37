"""The row of parameters of a model in training: layout, averages, and weights evaluated elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import OptimizerState, ParameterLayout, PluginCard
from plugins.registry import create
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from tests.steps import step_settings
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.models.building import build_model
from trainers.training import row as rows
from trainers.training.evaluation import Normalizer, evaluate
from trainers.training.row import Row


@dataclass(frozen=True)
class Averaging:
    """Gradient descent that evaluates the mean of all its iterates (Polyak and Juditsky 1992)."""

    card: ClassVar[PluginCard] = PluginCard(source="this test", cost="one number per parameter")

    def start(self, layout: ParameterLayout, values: Tensor) -> OptimizerState:
        return {"mean": values.clone(), "count": torch.ones((), dtype=torch.float32)}

    def update(
        self, layout: ParameterLayout, values: Tensor, gradient: Tensor, state: OptimizerState, settings: StepSettings
    ) -> None:
        values.sub_(gradient, alpha=settings.learning_rate)
        state["count"].add_(1)
        state["mean"].lerp_(values, 1 / float(state["count"]))

    def evaluated(self, layout: ParameterLayout, values: Tensor, state: OptimizerState) -> Tensor:
        return state["mean"]


@pytest.fixture
def averaging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses the optimizer above, whatever the recipe names."""

    def made(kind: str, name: str, settings: Any = None) -> Any:
        return Averaging() if kind == "optimizers" else create(kind, name, settings)

    monkeypatch.setattr(rows, "create", made)


def make(recipe: dict[str, Any] | None = None) -> Row:
    model = build_model(TOPOLOGY, digits().task, seed=0, device=CPU)
    return Row(model, Recipe.model_validate(recipe or {}))


def test_parameters_are_views_of_the_row_and_begin_at_multiples_of_64_bytes() -> None:
    row = make()
    assert all(start % 16 == 0 for start in row.layout.starts)
    row.values.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in row.model.parameters())
    gradient = row.gather([torch.ones_like(parameter) for parameter in row.parameters()])
    assert int(gradient.sum()) == sum(parameter.numel() for parameter in row.parameters())


def test_a_parameter_that_two_modules_share_stays_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    row = Row(model, Recipe())
    assert len(row.names) == 3
    assert model[1].weight is model[0].weight


def test_ema_is_the_moving_average_of_the_weights_with_a_warm_up_of_its_decay() -> None:
    row = make({"ema": 0.9})
    expected = row.values.clone()
    for number in range(1, 4):
        row.update(
            torch.randn(row.layout.num_numbers, generator=torch.Generator().manual_seed(number)), step_settings()
        )
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * row.values
    (name, *_) = row.names
    view = row.layout.views(expected)[0]
    torch.testing.assert_close(row.averages()["ema"][name], view, rtol=1e-5, atol=1e-7)


def test_several_moving_averages_are_those_of_single_ones() -> None:
    several = make({"ema": {"rates": [0.1, 0.95]}})
    singles = [make({"ema": rate}) for rate in (0.1, 0.95)]
    for row in (several, *singles):
        for number in range(1, 4):
            generator = torch.Generator().manual_seed(number)
            row.update(torch.randn(row.layout.num_numbers, generator=generator), step_settings())
    assert list(several.averages()) == ["ema-0.1", "ema-0.95"]
    for found, single in zip(several.averages().values(), singles, strict=True):
        assert equal(found, single.averages()["ema"])


def test_swa_is_the_mean_of_the_epochs_after_its_start() -> None:
    row = make({"swa": 0.5})
    seen = []
    for epoch in range(1, 5):
        row.values.fill_(float(epoch))
        row.finish_epoch(epoch / 4)
        seen.append("swa" in row.averages())
    assert seen == [False, False, True, True]
    assert float(row.averages()["swa"][row.names[0]].flatten()[0]) == 3.5


@pytest.mark.usefixtures("averaging")
def test_the_weights_that_are_saved_and_evaluated_are_those_that_the_optimizer_names(tmp_path: Path) -> None:
    recorder = Recorder()
    config = configuration(epochs=2, recipe={"learning_rate": 0.05})
    outcome = run(config, tmp_path, recorder)
    model = build_model(TOPOLOGY, digits().task, seed=9, device=CPU)
    model.load_state_dict(weights_of(outcome))
    data = digits()
    found = evaluate(model, data.validation, Normalizer(data.mean, data.std, CPU))
    assert found.loss == pytest.approx(recorder.reports[-1].val_loss, rel=1e-6)


@pytest.mark.usefixtures("averaging")
def test_an_optimizer_that_evaluates_elsewhere_is_resumed_exactly(tmp_path: Path) -> None:
    config, straight, resumed = configuration(recipe={"learning_rate": 0.05}), Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    for epoch in (2, 3):
        run(config, tmp_path / "broken", InterruptedInside(epoch))
    outcome = run(config, tmp_path / "broken", resumed)
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)


class _Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(images).sin())
        return out


@pytest.mark.parametrize("model", [_Tied(), nn.Linear(3, 3)], ids=["tied", "plain"])
def test_a_call_with_other_parameters_replaces_all_of_them(model: nn.Module) -> None:
    row, images = Row(model, Recipe()), torch.randn(2, 3)
    values = torch.randn_like(row.values)
    found = row.call(row.layout.views(values), images)
    assert not torch.equal(found, row.model(images))
    row.values.copy_(values)
    assert torch.equal(found, row.model(images))
