"""Trainings that pass through a smaller network: its weights, and what is computed when it grows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plugins.curricula.masked_growth import mask_factor
from plugins.protocols import Signal
from plugins.registry import create, parse_topology
from search_spaces.smaller import halved, with_fewer_blocks
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TrainTask
from trainers.models.building import build_model, topology_costs
from trainers.training.batch import prepare
from trainers.training.checkpoints import load_weights
from trainers.training.course import Course
from trainers.training.levels import LevelledRow
from trainers.training.packing import can_be_packed
from trainers.training.set_up import make_row, training_images
from trainers.training.step import learn
from trainers.weights.nested import PairedBlocks, PartOfBlocks

DEEP = {
    "as-vit": "as-vit:4,4,2,1|2,4,2,3|2,2,2,2|2,1,2,1|16,8",
    "autoformer": "autoformer:2,2|2,2|2,2|2,2|16,8",
    "pit": "pit:2,1|1,2|3,2|4,4,8",
}
OPTIONS = "qk_norm,layer_scale,grn,sigmoid_attention,deep_supervision"
GROWTH = {"name": "masked-growth", "share": 0.5, "until": 0.5, "ramp": 0.4}
CYCLE = {"name": "v-cycle", "start": 0.1, "until": 0.7}
METHODS = [pytest.param(GROWTH, id="growth"), pytest.param(CYCLE, id="cycle")]


def config_of(
    method: dict[str, Any], space: str = "autoformer", *, epochs: int = 4, options: str = "", **recipe: Any
) -> Configuration:
    made = configuration(epochs=epochs, recipe={"batch_size": 45, "curriculum": method, **recipe})
    return made.model_copy(update={"topology": DEEP[space] + (f"|{options}" if options else "")})


def networks(topology: str, small: str) -> tuple[nn.Module, nn.Module]:
    """Both networks in float64, with random weights everywhere: also in norms, biases and scales."""
    models = tuple(build_model(one, digits().task, seed=3, device=CPU).double().eval() for one in (topology, small))
    for model in models:
        generator = torch.Generator().manual_seed(4)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return models[0], models[1]


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def pixels(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- topologies ---


def test_smaller_topologies_have_fewer_blocks_or_half_the_width() -> None:
    as_vit, autoformer, pit = (parse_topology(DEEP[space]) for space in DEEP)
    assert with_fewer_blocks(as_vit, 0.5).id == "as-vit:4,4,2,1|2,4,2,2|2,2,2,1|2,1,2,1|16,8"
    assert with_fewer_blocks(pit, 0.3).id == "pit:1,1|1,2|1,2|4,4,8"
    assert halved(as_vit, "both").id == "as-vit:4,4,2,1|2,4,2,2|2,2,2,1|2,1,2,1|16,4"
    assert halved(autoformer, "depth").id == "autoformer:2,2|2,2|16,8"
    assert halved(autoformer, "width").id == "autoformer:2,2|2,2|2,2|2,2|8,8"
    assert halved(pit, "both").id == "pit:1,1|1,2|2,2|4,2,8"


@pytest.mark.parametrize(
    ("method", "topology", "reason"),
    [
        (GROWTH, "pit:1,1|1,2|1,2|4,4,8", "'masked-growth' needs a topology with a smaller form: .* all would stay"),
        (CYCLE, "autoformer:1,2|2,2|16,8", "'v-cycle' needs .* but block 2 of .* has other ones than block 1"),
        (CYCLE, "autoformer:2,2|2,2|6,8", "half of the width must be a multiple of 2, .* has the width 6"),
        ({**CYCLE, "reduction": "depth"}, "pit:1,1|1,2|1,2|4,4,8", "halve the width"),
    ],
)
def test_a_topology_without_a_smaller_form_is_refused(
    method: dict[str, Any], topology: str, reason: str, tmp_path: Path
) -> None:
    config = config_of(method).model_copy(update={"topology": topology})
    with pytest.raises(ValueError, match=reason):
        run(config, tmp_path)


# --- weights ---


@pytest.mark.parametrize("options", ["", OPTIONS])
@pytest.mark.parametrize("reduction", ["both", "width", "depth"])
@pytest.mark.parametrize("space", list(DEEP))
def test_a_widened_network_computes_what_the_smaller_one_does(space: str, reduction: Any, options: str) -> None:
    """With copied blocks, it does so if each adds half: the smaller network's blocks are applied twice."""
    topology = DEEP[space] + (f"|{options}" if options else "")
    large, small = networks(topology, halved(parse_topology(topology), reduction).id)
    relation = PairedBlocks(large, small, interpolation=1.0)
    widened = relation.expand(named(small), named(large))
    assert widened.keys() == named(large).keys()
    for name, value in relation.reduce(widened).items():
        torch.testing.assert_close(value, named(small)[name], rtol=1e-9, atol=1e-9)
    if reduction == "width":
        found = torch.func.functional_call(large, widened, (pixels(),))
        torch.testing.assert_close(found, small(pixels()), rtol=1e-7, atol=1e-7)


def test_pairs_are_averaged_and_mixed_by_the_authors_formulas() -> None:
    """W' = F_out W F_in with means over outputs `i, i + m` and sums over inputs, blocks 1 and 2 averaged; then
    `(1 - a) W + a T_out W' T_in`, where T copies outputs and halves inputs."""
    large, small = networks(DEEP["autoformer"], halved(parse_topology(DEEP["autoformer"]), "both").id)
    relation = PairedBlocks(large, small, interpolation=0.25)
    own = named(large)
    reduced = relation.reduce(own)
    fold_out = torch.cat([torch.eye(16), torch.eye(16)], 1).double() / 2  # 32 hidden channels to 16
    fold_in = torch.cat([torch.eye(8), torch.eye(8)], 0).double()  # 16 channels from 8
    first, second = (own[f"blocks.{number}.mlp.fc1.weight"] for number in (0, 1))
    expected = (fold_out @ first @ fold_in + fold_out @ second @ fold_in) / 2
    torch.testing.assert_close(reduced["blocks.0.mlp.fc1.weight"], expected, rtol=1e-9, atol=1e-12)
    mixed = relation.expand(reduced, own)["blocks.1.mlp.fc1.weight"]
    unfolded = (2 * fold_out.T) @ expected @ (fold_in.T / 2)
    torch.testing.assert_close(mixed, 0.75 * second + 0.25 * unfolded, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", ["", OPTIONS])
@pytest.mark.parametrize("space", list(DEEP))
def test_added_blocks_without_outputs_leave_what_is_computed_unchanged(space: str, options: str) -> None:
    topology = DEEP[space] + (f"|{options}" if options else "")
    large, small = networks(topology, with_fewer_blocks(parse_topology(topology), 0.5).id)
    relation = PartOfBlocks(large, small)
    grown = relation.expand(named(small), named(large))
    assert relation.added
    silent = {name: torch.zeros_like(value) if name in relation.added else value for name, value in grown.items()}
    expected = small(pixels())
    found = torch.func.functional_call(large, silent, (pixels(),))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(torch.func.functional_call(large, grown, (pixels(),)), expected, rtol=1e-3)


# --- steps ---


def test_the_factor_of_added_blocks_rises_after_the_first_part() -> None:
    factors = [mask_factor(progress, start=0.3, ramp=0.2) for progress in (0.0, 0.3, 0.35, 0.4, 0.5, 0.9)]
    assert factors == pytest.approx([0.0, 0.0, 0.25, 0.5, 1.0, 1.0])
    assert mask_factor(0.3, start=0.3, ramp=0.0) == 1.0


def course_of(method: dict[str, Any], *, epochs: int) -> Course:
    config = config_of(method, epochs=epochs)
    model = build_model(config.topology, digits().task, seed=0, device=CPU)
    return Course.lay_out(config, digits(), model, CPU)


def levels(method: dict[str, Any], *, epochs: int) -> list[int]:
    course = course_of(method, epochs=epochs)
    return [next(iter(course.steps(epoch, None, []))).settings.level for epoch in range(1, epochs + 1)]


def test_each_method_trains_the_smaller_network_in_its_epochs() -> None:
    assert levels(GROWTH, epochs=5) == [1, 1, 1, 0, 0]
    assert levels({**GROWTH, "until": 0.05}, epochs=5) == [1, 0, 0, 0, 0]
    assert levels(CYCLE, epochs=10) == [0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert levels({**CYCLE, "until": 0.2}, epochs=3) == [0, 1, 0]


@pytest.mark.parametrize("epochs", range(2, 11))
@pytest.mark.parametrize("method", [{"name": "masked-growth"}, {"name": "masked-growth", "until": 0.45, "ramp": 0.55}])
def test_blocks_are_added_with_a_factor_of_0_after_any_number_of_epochs(method: dict[str, Any], epochs: int) -> None:
    course = course_of(method, epochs=epochs)
    steps = [step for epoch in range(1, epochs + 1) for step in course.steps(epoch, None, [])]
    first = next(number for number, step in enumerate(steps) if step.settings.level == 0)
    factors = [step.settings.grown for step in steps[first:]]
    assert factors[0] == 0
    assert factors == sorted(factors)
    ramp = min(method.get("ramp", 0.2), 1 - steps[first].now.progress)
    assert 1 - factors[-1] <= 1 / (ramp * len(steps)) + 1e-9  # at most one step from the full size


@pytest.mark.parametrize("method", METHODS)
def test_a_training_with_too_few_epochs_is_refused(method: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="end with the whole one, but cannot in 1 epochs"):
        run(config_of(method, epochs=1), tmp_path)


def test_the_gradient_of_scaled_blocks_is_that_of_their_factors() -> None:
    """A step is computed at `mask * values`, so its gradient is `mask` times the gradient there."""
    config = config_of(GROWTH, batch_size=30)
    row, data = make_row(config, digits(), CPU), digits()
    assert isinstance(row, LevelledRow)
    step = next(iter(Course.lay_out(config, data, row.model, CPU).steps(1, None, [])))
    row.at(step.settings)
    row.at(replace(step.settings, level=0, grown=0.3))
    values = row.values.clone()
    (batch,) = prepare([row], [step], training_images(data, CPU))
    gradients: list[Tensor] = []
    learn([batch], lambda _, gradient: gradients.append(gradient.clone()))
    plain = build_model(config.topology, data.task, seed=0, device=CPU)
    factors = {name: 0.3 if name in row._relation.added else 1.0 for name in row.names}
    scaled = dict(zip(row.names, row.layout.views(values), strict=True))
    plain.load_state_dict({name: factors[name] * scaled[name] for name in plain.state_dict()})
    loss = nn.functional.cross_entropy(plain(batch.images), batch.labels)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    found = dict(zip(row.names, row.layout.views(gradients[0]), strict=True))
    for (name, _), gradient in zip(plain.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], factors[name] * gradient, rtol=1e-4, atol=1e-6)


# --- trainings ---


@pytest.mark.parametrize("space", list(DEEP))
@pytest.mark.parametrize("method", METHODS)
def test_a_training_interrupted_in_every_epoch_is_the_same(method: dict[str, Any], space: str, tmp_path: Path) -> None:
    config = config_of(method, space, ema=0.9, drop_path=0.2, spike_guard=20)
    straight, resumed = Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    assert expected.state == "complete", expected.reason
    for epoch in range(1, 5):
        run(config, tmp_path / "broken", InterruptedInside(epoch, batch=1))
    outcome = run(config, tmp_path / "broken", resumed)
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)
    assert equal(*(load_weights(one.checkpoints[-1].path, average="ema") for one in (outcome, expected)))


@pytest.mark.parametrize("optimizer", ["schedule-free-adamw", "sam", "muon", "sophia"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_is_resumed_with_every_form_of_optimizer(
    method: dict[str, Any], optimizer: str, tmp_path: Path
) -> None:
    config = config_of(method, optimizer=optimizer)
    straight, resumed = Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    assert expected.state == "complete", expected.reason
    for epoch in (2, 4):
        run(config, tmp_path / "broken", InterruptedInside(epoch))
    assert equal(weights_of(run(config, tmp_path / "broken", resumed)), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)


def test_the_smaller_network_costs_less_and_is_counted(tmp_path: Path) -> None:
    data, found = digits(), {}
    for name, method in (("growth", GROWTH), ("cycle", CYCLE)):
        recorder = Recorder()
        run(config_of(method), tmp_path / name, recorder)
        found[name] = [report.training_macs / (3 * len(data.train)) for report in recorder.reports]
    whole, part, half = (
        topology_costs(topology, data.task).macs
        for topology in (
            DEEP["autoformer"],
            with_fewer_blocks(parse_topology(DEEP["autoformer"]), 0.5).id,
            halved(parse_topology(DEEP["autoformer"]), "both").id,
        )
    )
    assert found == {"growth": [part, part, whole, whole], "cycle": [whole, half, half, whole]}
    assert half < part < whole


@pytest.mark.parametrize("space", list(DEEP))
def test_epochs_of_the_smaller_network_are_evaluated_as_if_it_were_the_whole_one(space: str, tmp_path: Path) -> None:
    """The first epochs of masked growth are those of a training of the smaller topology with the same weights."""
    config = config_of(GROWTH, space, schedule="constant", warmup=0.0, gradient_clip=None)
    grown, alone = Recorder(), Recorder()
    run(config, tmp_path / "grown", grown)
    row = make_row(config, digits(), CPU)
    assert isinstance(row, LevelledRow)
    start = {name: value.clone() for name, value in row.weights().items()}
    small = with_fewer_blocks(parse_topology(config.topology), 0.5).id
    plain = config.model_copy(
        update={"topology": small, "recipe": config.recipe.model_copy(update={"curriculum": _none()})}
    )
    with pytest.MonkeyPatch.context() as patched:
        from trainers.training import set_up

        def started(*arguments: Any, **given: Any) -> nn.Module:
            model = build_model(*arguments, **given)
            model.load_state_dict({name: start[name] for name in model.state_dict()})
            return model

        patched.setattr(set_up, "build_model", started)
        run(plain, tmp_path / "alone", alone)
    for one, other in zip(grown.reports[:2], alone.reports[:2], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-5)
    assert grown.reports[3].train_loss != pytest.approx(alone.reports[3].train_loss, rel=1e-5)


def _none() -> Any:
    return configuration().recipe.curriculum


@pytest.mark.parametrize("method", METHODS)
def test_signals_are_measured_at_both_levels_and_change_nothing(method: dict[str, Any], tmp_path: Path) -> None:
    watched, silent = Recorder(), Recorder()
    run(config_of(method), tmp_path / "watched", watched, signals=tuple(Signal))
    run(config_of(method), tmp_path / "silent", silent)
    names = set(watched.reports[1].signals)
    assert {"gradient_norm", "gradient_noise", "weight_persistence", "layer_change", "sharpness"} <= names
    assert all(set(report.signals) == names for report in watched.reports[2:])
    assert [report.val_loss for report in watched.reports] == [report.val_loss for report in silent.reports]


@pytest.mark.parametrize("method", METHODS)
def test_a_training_says_why_it_is_not_packed_and_refuses_two_models(method: dict[str, Any], tmp_path: Path) -> None:
    tasks = [TrainTask(configuration=config_of(method), folder=tmp_path / name) for name in ("one", "other")]
    assert can_be_packed(*tasks) == f"curriculum {method['name']!r} cannot be computed with stacked weights"
    with pytest.raises(ValueError, match=r"must not be combined with a loss that trains two models, but .* `mutual`"):
        run(config_of(method, loss="mutual"), tmp_path / "peer")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("masked-growth", {"until": 0.9, "ramp": 0.2}, "`until` and `ramp` must add up to at most 1"),
        ("masked-growth", {"share": 1.0}, "share"),
        ("v-cycle", {"start": 0.6}, "`start` must be below `until`"),
        ("v-cycle", {"interpolation": 0.0}, "interpolation"),
        ("v-cycle", {"reduction": "heads"}, "reduction"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("curricula", name, settings)
