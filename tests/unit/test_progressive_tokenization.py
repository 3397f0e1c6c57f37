"""Token grids that change during training: model, costs, loop and curriculum."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plugins.registry import PluginSettingsError, create
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from search_spaces.costs import attention_window
from search_spaces.recipes import Recipe
from tests.rounding import assert_rounded, path_length
from tests.steps import now, step_settings
from tests.unit.test_as_vit_space import SEED, topologies
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.models.as_vit import build_as_vit
from trainers.models.as_vit_layers import PatchEmbedding, PatchMerging, WindowAttention
from trainers.models.blocks import FEW_TOKENS
from trainers.models.building import build_model
from trainers.training import set_up
from trainers.training.evaluation import Normalizer, evaluate

IMAGENET = ImageTask(image_size=224, in_channels=3, num_classes=1000)
PROGRESSIVE = {"curriculum": {"name": "progressive-tokenization", "coarse": 0.25, "middle": 0.25}}


# --- the model ---


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("kernel", [4, 5, 6, 7, 8])
def test_a_coarser_grid_is_the_same_convolution_with_a_larger_stride_and_dilation(kernel: int, factor: int) -> None:
    embed = PatchEmbedding(3, 6, kernel=kernel, stride=4, normalization=False)
    nn.init.normal_(embed.proj.weight)
    nn.init.normal_(embed.proj.bias)
    images = torch.randn(2, 3, 32, 64)
    total = factor * (kernel - 1) + 1 - 4 * factor
    padded = F.pad(images, (total // 2, (total + 1) // 2) * 2)
    expected = F.conv2d(padded, embed.proj.weight, embed.proj.bias, stride=4 * factor, dilation=factor)
    assert expected.shape[2:] == (8 // factor, 16 // factor)
    assert_rounded(embed(images, factor).permute(0, 3, 1, 2), expected, path_length(embed, num_tokens=0))


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("side", [1, 3, 7])
def test_an_odd_grid_is_halved_as_if_a_row_and_a_column_of_zeros_were_there(side: int, kernel: int) -> None:
    merging = PatchMerging(4, 8, kernel=kernel, normalization=False)
    nn.init.normal_(merging.reduction.weight)
    tokens = torch.randn(2, side, side, 4)
    assert torch.equal(merging(tokens), merging(F.pad(tokens, (0, 0, 0, 1, 0, 1))))
    assert merging(tokens).shape == (2, (side + 1) // 2, (side + 1) // 2, 8)


@pytest.mark.parametrize(
    ("side", "split", "window"), [(8, 2, 4), (7, 2, 4), (14, 4, 4), (14, 8, 2), (2, 8, 1), (1, 1, 1), (7, 1, 7)]
)
def test_windows_are_rounded_up_so_that_there_are_at_most_as_many_as_the_split(
    side: int, split: int, window: int
) -> None:
    assert attention_window(side, split) == window
    assert -(-side // window) <= split


@pytest.mark.parametrize(("side", "split"), [(7, 2), (14, 4), (5, 4), (18, 2)])
def test_tokens_of_a_window_that_is_not_full_attend_to_each_other_alone(side: int, split: int) -> None:
    attention = WindowAttention(6, heads=2, split=split).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    window = attention_window(side, split)
    tokens = torch.randn(2, side, side, 6, dtype=torch.float64)
    mixed = attention(tokens)
    plain = WindowAttention(6, heads=2, split=1).double()
    plain.load_state_dict(attention.state_dict())
    for row in range(0, side, window):
        for column in range(0, side, window):
            part = (slice(None), slice(row, row + window), slice(column, column + window))
            assert_rounded(mixed[part], plain(tokens[part]), path_length(plain, num_tokens=window**2))
    assert window**2 <= FEW_TOKENS or side == 18  # both ways of computing attention are met


@settings(max_examples=20, deadline=None)
@given(topology=topologies(), image_size=st.sampled_from([32, 64, 96, 160, 224]), factor=st.sampled_from([2, 4]))
def test_closed_form_costs_of_a_coarser_grid_are_those_of_the_model(topology, image_size: int, factor: int) -> None:
    task = ImageTask(image_size=image_size, in_channels=3, num_classes=7)
    model = build_as_vit(topology, task).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 3, image_size, image_size), stride_factor=factor)
    costs = AsViTSpace.costs(topology, task, stride_factor=factor)
    assert costs.macs == counter.get_total_flops() / 2
    assert costs.parameters == AsViTSpace.costs(topology, task).parameters


@pytest.mark.parametrize(
    ("depths", "width", "macs_g"),
    [
        ((3, 1, 4, 2), 88, (5.13, 1.05, 0.27)),
        ((3, 1, 5, 2), 116, (8.75, 1.91, 0.51)),
        ((5, 2, 5, 2), 180, (22.36, 4.71, 1.24)),
    ],
    ids=["S", "B", "L"],
)
def test_the_published_models_cost_what_they_should_on_coarser_grids(
    depths: tuple[int, ...], width: int, macs_g: tuple[float, ...]
) -> None:
    topology = AsViTSpace.parse(SEED).with_size(depths=depths, width=width)
    found = [AsViTSpace.costs(topology, IMAGENET, stride_factor=factor).macs / 1e9 for factor in (1, 2, 4)]
    assert found == pytest.approx(macs_g, abs=0.007)  # L on the coarsest grid is 1.247; the others round to these


@pytest.mark.parametrize(
    ("phases", "saving"),
    [
        ((40 / 300, 30 / 300), 20.5),
        ((0.0, 1 / 4), 19.7),
        ((0.0, 1 / 2), 39.5),
        ((0.0, 0.7), 55.3),
        ((1 / 4, 1 / 4), 43.3),
        ((1 / 3, 1 / 3), 57.8),
    ],
)
def test_the_published_model_l_saves_its_share_of_training(phases: tuple[float, float], saving: float) -> None:
    topology = AsViTSpace.parse(SEED).with_size(depths=(5, 2, 5, 2), width=180)
    curriculum = create("curricula", "progressive-tokenization", {"coarse": phases[0], "middle": phases[1]})
    options = [curriculum.adjust(now(epoch / 300), step_settings()).model_options for epoch in range(300)]
    costs = [AsViTSpace.costs(topology, IMAGENET, **given).macs for given in options]
    plain = 300 * AsViTSpace.costs(topology, IMAGENET).macs
    assert 100 * (1 - sum(costs) / plain) == pytest.approx(saving, abs=0.06)  # rounded to a tenth


# --- the curriculum ---


def test_the_grid_is_coarse_then_middle_then_whole() -> None:
    curriculum = create("curricula", "progressive-tokenization", {"coarse": 0.25, "middle": 0.5})
    options = [curriculum.adjust(now(step / 8), step_settings()).model_options for step in range(8)]
    factors = [given.get("stride_factor") for given in options]
    assert factors == [4, 4, 2, 2, 2, 2, None, None]


def test_phases_that_leave_no_step_with_all_tokens_are_refused() -> None:
    with pytest.raises(PluginSettingsError, match=r"must add up to less than 1, .* but got 0\.5 \+ 0\.5"):
        create("curricula", "progressive-tokenization", {"coarse": 0.5, "middle": 0.5})


# --- the loop ---


def test_training_sees_the_grid_of_its_phase_and_validation_all_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        model = build_model(*args, **kwargs)
        last = model.stages[0].blocks
        last[0].register_forward_pre_hook(lambda _, args: seen.append((model.training, args[0].shape[1])))
        return model

    monkeypatch.setattr(set_up, "build_model", build)
    run(configuration(epochs=4, recipe=PROGRESSIVE | {"batch_size": 45}), tmp_path)
    assert [side for training, side in seen if training] == [2, 2, 4, 4, 8, 8, 8, 8]
    assert {side for training, side in seen if not training} == {8}


def test_training_macs_are_counted_by_phase(tmp_path: Path) -> None:
    data, recorder = digits(), Recorder()
    outcome = run(configuration(epochs=4, recipe=PROGRESSIVE | {"batch_size": 45}), tmp_path, recorder)
    topology = AsViTSpace.parse(TOPOLOGY.partition(":")[2])
    expected = [
        3.0 * len(data.train) * AsViTSpace.costs(topology, data.task, stride_factor=factor).macs
        for factor in (4, 2, 1, 1)
    ]
    assert [report.training_macs for report in recorder.reports] == expected
    assert outcome.metrics["training_macs"] == sum(expected)
    assert outcome.metrics["macs"] == AsViTSpace.costs(topology, data.task).macs


def test_measuring_difficulty_is_counted_as_one_forward_pass_of_each_image(tmp_path: Path) -> None:
    recorder = Recorder()
    run(configuration(epochs=2, recipe={"curriculum": {"name": "paced", "start": 0.5, "step": 9}}), tmp_path, recorder)
    first, second = (report.training_macs for report in recorder.reports)
    assert second / first == pytest.approx(4 / 3)


def test_a_training_interrupted_in_every_phase_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    recipe = PROGRESSIVE | {"drop_path": 0.3, "augmentation": "shift"}
    config, straight = configuration(epochs=4, recipe=recipe), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    for epoch in range(1, 5):
        run(config, tmp_path / "broken", InterruptedInside(epoch))
    resumed = Recorder()
    outcome = run(config, tmp_path / "broken", resumed)
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)


def test_with_no_coarse_step_it_is_plain_training(tmp_path: Path) -> None:
    whole = {"curriculum": {"name": "progressive-tokenization", "coarse": 0.0, "middle": 0.0}}
    plain = run(configuration(), tmp_path / "plain")
    assert equal(weights_of(run(configuration(recipe=whole), tmp_path / "whole")), weights_of(plain))


def test_the_reported_accuracy_is_measured_with_all_tokens(tmp_path: Path) -> None:
    data = digits()
    outcome = run(
        configuration(epochs=2, recipe={"curriculum": {**PROGRESSIVE["curriculum"], "middle": 0.7}}), tmp_path
    )
    model = build_model(TOPOLOGY, data.task, seed=99, device=CPU)
    model.load_state_dict(weights_of(outcome))
    assert evaluate(model, data.validation, Normalizer(data.mean, data.std, CPU)).loss == outcome.metrics["val_loss"]


def test_a_model_without_the_option_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32 * 32, 10)

        def forward(self, images: torch.Tensor, **_: None) -> torch.Tensor:
            return self.head(images.flatten(1))

    monkeypatch.setattr(set_up, "build_model", lambda *_, **__: Fixed())
    run(configuration(epochs=1), tmp_path / "plain")
    with pytest.raises(ValueError, match="needs a model whose forward pass has the option 'stride_factor', but Fixed"):
        run(configuration(epochs=1, recipe=PROGRESSIVE), tmp_path)


def test_a_recipe_searches_its_fractions() -> None:
    from search_spaces.recipes import parse_recipe_space

    space = parse_recipe_space(
        {"curriculum": ["none", {"name": "progressive-tokenization", "middle": {"low": 0.0, "high": 0.5}}]}
    )
    point = {"recipe.curriculum": "progressive-tokenization", "recipe.curriculum.progressive-tokenization.middle": 0.3}
    recipe: Recipe = space.decode(point)
    (method,) = recipe.curriculum
    assert create("curricula", method.name, method.settings).middle == 0.3
