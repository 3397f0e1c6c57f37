"""Rules for every optimizer, and the behaviour of ours."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from plugins.optimizers.block_matrices import block_matrices, other_segments
from plugins.optimizers.sam import worst_nearby
from plugins.protocols import (
    NeedsCurvature,
    Optimizer,
    OptimizerState,
    ParameterLayout,
    PluginCard,
    RatedPart,
    TwoGradients,
)
from plugins.registry import PluginSettingsError, available, create
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from tests.steps import flat_row, is_padding, layout_of, step_settings
from trainers.training.row import Row

NAMES = sorted(available("optimizers"))
NUM_STEPS = 6


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), _Mlp(width)


class TinyVit(nn.Module):
    """Parameters of all kinds and of odd sizes; it is never computed."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(_Block(width), _Block(width))
        self.reduction = nn.Linear(width, 7)
        self.head = nn.Linear(7, 3)


MODEL = TinyVit()
LAYOUT = layout_of(MODEL)
PADDING = is_padding(LAYOUT)


def random_parameters(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in MODEL.named_parameters()}


VALUES = random_parameters(0)
GRADIENTS = [random_parameters(seed) for seed in range(1, NUM_STEPS + 1)]
RATES = [1e-3, 2e-3, 3e-3, 3e-3, 2e-3, 0.0]


def settings_of(step: int, **given: float) -> StepSettings:
    return step_settings(**{"learning_rate": RATES[step], "weight_decay": 0.1} | given)


@pytest.fixture(params=NAMES)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    return create("optimizers", request.param)


def take_steps(
    optimizer: Optimizer, layout: ParameterLayout = LAYOUT, values: Tensor | None = None
) -> tuple[Tensor, OptimizerState]:
    """Values and state after a few steps."""
    row = flat_row(layout, VALUES) if values is None else values
    state = optimizer.start(layout, row)
    for step, gradient in enumerate(GRADIENTS):
        optimizer.update(layout, row, flat_row(layout, gradient), state, settings_of(step))
    return row, state


def by_name(layout: ParameterLayout, row: Tensor) -> dict[str, Tensor]:
    return dict(zip(layout.names, layout.views(row), strict=True))


def assert_same(found: Tensor, expected: Mapping[str, Tensor], **tolerance: float) -> None:
    for name, view in by_name(LAYOUT, found).items():
        torch.testing.assert_close(view, expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_it_has_a_card(optimizer: Optimizer) -> None:
    assert isinstance(optimizer.card, PluginCard)
    assert optimizer.card.source
    assert optimizer.card.cost


def test_the_state_is_made_of_rows_and_numbers(optimizer: Optimizer) -> None:
    values = flat_row(LAYOUT, VALUES)
    for tensor in optimizer.start(LAYOUT, values).values():
        assert tensor.shape in (values.shape, ())
        assert tensor.is_floating_point()


def test_starting_changes_no_value(optimizer: Optimizer) -> None:
    values = flat_row(LAYOUT, VALUES)
    optimizer.start(LAYOUT, values)
    assert torch.equal(values, flat_row(LAYOUT, VALUES))


def test_a_step_is_in_place(optimizer: Optimizer) -> None:
    values = flat_row(LAYOUT, VALUES)
    before = values.clone()
    state = optimizer.start(LAYOUT, values)
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}
    kept = dict(state)
    optimizer.update(LAYOUT, values, flat_row(LAYOUT, GRADIENTS[0]), state, settings_of(0))
    assert torch.all((values != before) | PADDING)
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses
    assert all(state[name] is tensor for name, tensor in kept.items())


def test_a_step_leaves_the_padding_at_zero(optimizer: Optimizer) -> None:
    values, state = take_steps(optimizer)
    assert PADDING.any()
    for row in [values, *(tensor for tensor in state.values() if tensor.ndim)]:
        assert torch.all(row[PADDING] == 0)
        assert torch.all(row.isfinite())


def test_a_learning_rate_of_zero_moves_nothing(optimizer: Optimizer) -> None:
    values = flat_row(LAYOUT, VALUES)
    state = optimizer.start(LAYOUT, values)
    optimizer.update(LAYOUT, values, flat_row(LAYOUT, GRADIENTS[0]), state, settings_of(0, learning_rate=0.0))
    assert torch.equal(values, flat_row(LAYOUT, VALUES))


def test_steps_against_the_gradient_lower_a_quadratic_loss(optimizer: Optimizer) -> None:
    values = flat_row(LAYOUT, VALUES)
    state = optimizer.start(LAYOUT, values)
    before = values.square().sum()
    for _ in range(20):
        gradient = 2 * values
        if isinstance(optimizer, TwoGradients):
            gradient = 2 * optimizer.probe(LAYOUT, values, gradient, state, settings_of(0))
        optimizer.update(LAYOUT, values, gradient, state, settings_of(0, weight_decay=0.0))
    assert values.square().sum() < before


def test_the_same_steps_give_the_same_numbers_whatever_the_global_generator(optimizer: Optimizer) -> None:
    first, first_state = take_steps(optimizer)
    torch.manual_seed(9)
    generator = torch.get_rng_state()
    second, second_state = take_steps(optimizer)
    assert torch.equal(first, second)
    assert all(torch.equal(first_state[name], second_state[name]) for name in first_state)
    assert torch.equal(generator, torch.get_rng_state())


def test_a_row_of_a_stack_takes_the_step_of_a_row_alone(optimizer: Optimizer) -> None:
    stack = torch.stack([flat_row(LAYOUT, random_parameters(7)), flat_row(LAYOUT, VALUES)])
    take_steps(optimizer, values=stack[1])
    assert torch.equal(stack[1], take_steps(optimizer)[0])
    assert torch.equal(stack[0], flat_row(LAYOUT, random_parameters(7)))


def test_a_training_goes_on_with_a_state_that_was_taken_apart_by_parameter(optimizer: Optimizer) -> None:
    expected, _ = take_steps(optimizer)
    row = flat_row(LAYOUT, VALUES)
    state = optimizer.start(LAYOUT, row)
    for step, gradient in enumerate(GRADIENTS):
        parts = {key: by_name(LAYOUT, tensor) if tensor.ndim else tensor.clone() for key, tensor in state.items()}
        row = flat_row(LAYOUT, by_name(LAYOUT, row))
        state = optimizer.start(LAYOUT, row)
        for key, part in parts.items():
            state[key].copy_(flat_row(LAYOUT, part) if isinstance(part, dict) else part)
        optimizer.update(LAYOUT, row, flat_row(LAYOUT, gradient), state, settings_of(step))
    assert torch.equal(row, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_with_a_rate_of_its_own_moves_as_in_a_training_with_that_rate(name: str) -> None:
    """A fused weight of queries, keys and values, and a bias; each optimizer sees them as separate parts."""
    recipe = Recipe.model_validate({"optimizer": name})
    chosen = {place: LAYOUT.names[place] for place in (1, len(LAYOUT.names) - 1)}
    parts = tuple(
        RatedPart(LAYOUT.starts[place], LAYOUT.starts[place] + LAYOUT.shapes[place].numel(), 2.5) for place in chosen
    )
    rows = [tiny_row(recipe), tiny_row(recipe), tiny_row(recipe, parts)]
    for step, gradient in enumerate(GRADIENTS):
        for row, factor in zip(rows, (1.0, 2.5, 1.0), strict=True):
            row.update(flat_row(LAYOUT, gradient), settings_of(step, learning_rate=factor * RATES[step]))
    plain, faster, rated = (by_name(LAYOUT, row.values_to_evaluate()) for row in rows)
    for parameter in LAYOUT.names:
        expected = faster if parameter in chosen.values() else plain
        torch.testing.assert_close(rated[parameter], expected[parameter], rtol=1e-5, atol=2e-6)
        assert not torch.allclose(plain[parameter], faster[parameter], rtol=1e-4)


def tiny_row(recipe: Recipe, rates: tuple[RatedPart, ...] = ()) -> Row:
    model = TinyVit()
    model.load_state_dict(VALUES)
    return Row(model, recipe, rates)


def test_an_observation_is_due_at_once_and_once_per_period() -> None:
    for name in NAMES:
        optimizer = create("optimizers", name)
        if not isinstance(optimizer, NeedsCurvature):
            continue
        values = flat_row(LAYOUT, VALUES)
        state = optimizer.start(LAYOUT, values)
        due = []
        for _ in range(2 * optimizer.observation_period + 1):
            due.append(optimizer.is_observation_due(state))
            optimizer.update(LAYOUT, values, flat_row(LAYOUT, GRADIENTS[0]), state, settings_of(0))
        assert [step for step, is_due in enumerate(due) if is_due] == [
            0,
            optimizer.observation_period,
            2 * optimizer.observation_period,
        ], name


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(create("optimizers", name), TwoGradients)])
def test_a_probe_changes_neither_values_nor_state(name: str) -> None:
    optimizer = create("optimizers", name)
    values, state = take_steps(optimizer)
    before, state_before = values.clone(), {name: tensor.clone() for name, tensor in state.items()}
    gradient = flat_row(LAYOUT, GRADIENTS[0])
    point = optimizer.probe(LAYOUT, values, gradient, state, settings_of(0))
    assert point.shape == values.shape
    assert not torch.equal(point, values)
    assert torch.all(point[PADDING] == 0)
    assert torch.equal(values, before)
    assert torch.equal(gradient, flat_row(LAYOUT, GRADIENTS[0]))
    assert all(torch.equal(state[name], state_before[name]) for name in state)


# --- against torch.optim ---


def groups_of(model: nn.Module) -> list[dict[str, object]]:
    named = dict(model.named_parameters())
    decayed = [named[name] for name in LAYOUT.names[: LAYOUT.num_decayed]]
    others = [named[name] for name in LAYOUT.names[LAYOUT.num_decayed :]]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]


def torchs_values(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Iterator[dict[str, Tensor]]:
    """The parameters after each step of torch's optimizers."""
    for step, gradient in enumerate(GRADIENTS):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATES[step] * group.get("factor", 1.0)
            optimizer.step()
        yield {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def model() -> nn.Module:
    model = TinyVit()
    model.load_state_dict(VALUES)
    return model


def assert_steps_are_torchs(optimizer: Optimizer, steps: Iterator[dict[str, Tensor]], **tolerance: float) -> None:
    row = flat_row(LAYOUT, VALUES)
    state = optimizer.start(LAYOUT, row)
    for step, expected in enumerate(steps):
        optimizer.update(LAYOUT, row, flat_row(LAYOUT, GRADIENTS[step]), state, settings_of(step))
        assert_same(row, expected, **tolerance)


@pytest.mark.parametrize("given", [{}, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}])
def test_adamw_is_torchs(given: dict[str, float], model: nn.Module) -> None:
    betas = (given.get("beta1", 0.9), given.get("beta2", 0.999))
    theirs = torch.optim.AdamW(groups_of(model), betas=betas, eps=given.get("eps", 1e-8), fused=True)
    # To the last bit, which depends on where in a tensor a number lies: hence the row's segments.
    assert_steps_are_torchs(create("optimizers", "adamw", given), torchs_values(model, theirs), rtol=0, atol=0)


@pytest.mark.parametrize("given", [{}, {"momentum": 0.5}, {"nesterov": True}, {"momentum": 0.0}])
def test_sgd_is_torchs(given: dict[str, float], model: nn.Module) -> None:
    theirs = torch.optim.SGD(groups_of(model), lr=0.1, **{"momentum": 0.9} | given)
    assert_steps_are_torchs(create("optimizers", "sgd", given), torchs_values(model, theirs), rtol=1e-6, atol=1e-7)


def test_sgd_without_momentum_has_no_state() -> None:
    assert create("optimizers", "sgd", {"momentum": 0.0}).start(LAYOUT, flat_row(LAYOUT, VALUES)) == {}


def is_matrix(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and ".norm" not in name


MUON_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Five iterations in float32 add up the rounding of their sums, whose order depends on the CPU."""


@pytest.fixture
def muon_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon computes in bfloat16 everywhere; ours does so on a GPU only."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@pytest.mark.usefixtures("muon_in_float32")
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_muon_is_torchs_on_the_matrices_of_blocks_and_adamw_on_the_rest(factor: float, model: nn.Module) -> None:
    named = dict(model.named_parameters())
    matrices = [value for name, value in named.items() if is_matrix(name)]
    decayed = [named[name] for name in LAYOUT.names[: LAYOUT.num_decayed] if not is_matrix(name)]
    others = [named[name] for name in LAYOUT.names[LAYOUT.num_decayed :]]
    assert len(matrices) == 8
    muon = torch.optim.Muon(
        [{"params": matrices, "factor": factor}], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], fused=True
    )
    ours = create("optimizers", "muon", {"split_qkv": False, "learning_rate_factor": factor})
    assert_steps_are_torchs(ours, torchs_values(model, muon, adamw), **MUON_ROUNDING)


@pytest.mark.usefixtures("muon_in_float32")
def test_muon_treats_queries_keys_and_values_as_matrices_of_their_own() -> None:
    whole, split = (take_steps(create("optimizers", "muon", {"split_qkv": flag}))[0] for flag in (False, True))
    whole_by_name, split_by_name = by_name(LAYOUT, whole), by_name(LAYOUT, split)
    differing = {name for name in LAYOUT.names if not torch.equal(whole_by_name[name], split_by_name[name])}
    assert differing == {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"}
    name = "blocks.0.attn.qkv.weight"
    for part in range(3):
        alone = nn.Parameter(VALUES[name].chunk(3)[part].clone())
        muon = torch.optim.Muon([alone], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step, gradient in enumerate(GRADIENTS):
            alone.grad = gradient[name].chunk(3)[part].clone()
            muon.param_groups[0]["lr"] = RATES[step]
            muon.step()
        torch.testing.assert_close(split_by_name[name].chunk(3)[part], alone.detach(), **MUON_ROUNDING)


def test_muon_and_adamw_share_a_row_without_overlap() -> None:
    owners = torch.zeros(LAYOUT.num_numbers, dtype=torch.int64)
    for matrix in block_matrices(LAYOUT, split_qkv=True):
        matrix.view(owners).add_(1)
    assert len(block_matrices(LAYOUT, split_qkv=True)) == 2 * 6
    for segment in other_segments(LAYOUT):
        owners[segment.start : segment.stop] += 1
        assert segment.decays == (segment.stop <= LAYOUT.decay_end)
    assert torch.all((owners == 1) | PADDING)
    assert owners.max() == 1


@pytest.mark.parametrize("name", ["muon", "root"])
def test_optimizers_of_matrices_need_a_model_with_blocks(name: str) -> None:
    layout = layout_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    with pytest.raises(
        ValueError, match=r"must have blocks .* but its parameters are 0\.weight.* Choose the optimizer"
    ):
        create("optimizers", name).start(layout, torch.zeros(layout.num_numbers))


def test_sam_probes_at_the_distance_rho_along_the_gradient() -> None:
    values, gradient = flat_row(LAYOUT, VALUES), flat_row(LAYOUT, GRADIENTS[0])
    point = worst_nearby(values, gradient, rho=0.3)
    assert torch.linalg.vector_norm(point - values).item() == pytest.approx(0.3, rel=1e-4)
    torch.testing.assert_close((point - values) / 0.3, gradient / gradient.norm(), rtol=1e-3, atol=1e-5)
    assert torch.equal(worst_nearby(values, torch.zeros_like(values), rho=0.3), values)


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_sam_takes_the_step_of_its_base(base: str) -> None:
    sam, sam_state = take_steps(create("optimizers", "sam", {"base": base}))
    expected, state = take_steps(create("optimizers", base))
    assert torch.equal(sam, expected)
    assert sam_state.keys() == state.keys()


@pytest.mark.parametrize(
    ("name", "settings", "place"),
    [
        ("adamw", {"beta1": 1.0}, "beta1"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "nesterov"),
        ("muon", {"num_iterations": 0}, "num_iterations"),
        ("sam", {"rho": 0.0}, "rho"),
        ("sam", {"base": "muon"}, "base"),
        ("lion", {"beta2": 1.0}, "beta2"),
        ("lamb", {"eps": 0.0}, "eps"),
        ("schedule-free-adamw", {"beta1": 0.0}, "beta1"),
        ("root", {"quantile": 0.0}, "quantile"),
        ("adabound", {"gamma": 0.0}, "gamma"),
        ("sophia", {"period": 0}, "period"),
        ("tvlars", {"delay_steps": -1}, "delay_steps"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, object], place: str) -> None:
    with pytest.raises(PluginSettingsError, match=place):
        create("optimizers", name, settings)
