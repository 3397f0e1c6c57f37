"""Scores computed from features and weights of fresh networks, and scores within a pool, against plain NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.spec.proxy_choices import expand_all
from plugins.protocols import Candidate, TrainingProxy
from plugins.proxies.block_importance import BlockImportance, relative_change
from plugins.proxies.effective_rank import feature_rank
from plugins.proxies.few_step_loss import FewStepLoss
from plugins.proxies.image_sensitivity import ImageSensitivity, relative_spread
from plugins.proxies.l_swag import LSwag, steadiness, upper_sum
from plugins.proxies.libra import Libra, choose_by_information, entropy_of_columns
from plugins.proxies.passes import RecordedPass, record_pass
from plugins.proxies.size_residual import SizeResidual, beyond_size
from plugins.proxies.swap import Swap
from plugins.proxies.token_diversity import token_difference
from plugins.proxies.travelled_1 import WEIGHTS, Travelled1
from plugins.proxies.tvt import map_similarity, teacher_map
from plugins.proxies.weight_statistics import WeightStatistics
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from tests.rounding import rounded
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
TOPOLOGY = "autoformer:2,2|1,4|2,3|12,8"


def _candidate(num_images: int = 5, seed: int = 0) -> Candidate:
    images = torch.randn(num_images, 1, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return make_candidate(parse_topology(TOPOLOGY), images, TASK, seed=seed, labels=torch.arange(num_images) % 10)


@pytest.fixture(scope="module")
def recorded() -> RecordedPass:
    return record_pass(_candidate(), seed=11)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_features_that_fill_k_directions_evenly_have_rank_k() -> None:
    basis = torch.eye(6, dtype=torch.float64)[:3]
    features = torch.cat([basis, -basis]).reshape(1, 6, 6)
    assert feature_rank(features) == rounded(3, 36)
    assert feature_rank(features * torch.tensor([1.0] + [0.0] * 5)) == rounded(1, 36)


def test_token_diversity_is_one_minus_the_mean_cosine_of_all_pairs() -> None:
    features = _random(2, 5, 4)
    units = (features / features.norm(dim=-1, keepdim=True)).numpy()
    cosines = [float(image[i] @ image[j]) for image in units for i in range(5) for j in range(5) if i != j]
    assert token_difference(features) == rounded(1 - float(np.mean(cosines)), 40)
    assert token_difference(features[:, :1].expand(2, 5, 4)) == pytest.approx(0, abs=1e-12)
    assert token_difference(features[:, :1]) is None


def test_relative_spread_is_the_root_mean_square_distance_of_all_pairs() -> None:
    rows = _random(6, 3)
    pairs = [float((rows[i] - rows[j]).square().sum()) for i in range(6) for j in range(6) if i != j]
    expected = math.sqrt(np.mean(pairs) / float(rows.square().sum(1).mean()))
    assert relative_spread(rows) == rounded(expected, 36)


def test_image_sensitivity_is_1_if_the_images_are_noise_and_0_if_they_are_equal(recorded: RecordedPass) -> None:
    many = record_pass(_candidate(64), seed=11)
    assert ImageSensitivity().measure(many) == pytest.approx(1, abs=0.2)
    same = make_candidate(parse_topology(TOPOLOGY), recorded.candidate.images[:1].expand(5, -1, -1, -1), TASK, seed=0)
    assert ImageSensitivity().measure(record_pass(same, seed=11)) == pytest.approx(0, abs=1e-6)


def test_image_sensitivity_and_l_swag_need_two_images() -> None:
    one = record_pass(_candidate(1), seed=11)
    for proxy in (ImageSensitivity(), LSwag()):
        with pytest.raises(ValueError, match="needs at least 2"):
            proxy.measure(one)


def test_a_block_that_adds_nothing_has_no_importance_and_the_others_are_skipped_exactly() -> None:
    candidate = _candidate()
    recorded = record_pass(candidate, seed=11)
    blocks: list[Any] = list(recorded.model.get_submodule("blocks"))  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in (blocks[1].attn.proj, blocks[1].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    images = candidate.images[:2]
    with torch.no_grad():
        whole = recorded.model.forward_features(images)  # type: ignore[operator]
    changes = []
    for index in range(len(blocks)):
        kept = nn.ModuleList(block for at, block in enumerate(blocks) if at != index)
        recorded.model.blocks = nn.ModuleList([*kept[:index], _Skip(), *kept[index:]])
        with torch.no_grad():
            changes.append(relative_change(whole, recorded.model.forward_features(images)))  # type: ignore[operator]
        recorded.model.blocks = nn.ModuleList(blocks)
    assert changes[1] == 0
    assert BlockImportance().measure(record_pass(candidate, seed=11)) > 0
    assert BlockImportance().measure(recorded) == rounded(float(np.mean(changes)), 100)


class _Skip(nn.Module):
    def forward(self, tokens: Tensor, *_: object) -> Tensor:
        return tokens


def test_a_layer_is_steady_if_its_gradients_vary_little() -> None:
    assert steadiness(torch.tensor([0.5, 0.25], dtype=torch.float64)) == rounded(math.log(6), 4)
    assert steadiness(torch.zeros(3)) == 0
    assert math.isnan(steadiness(torch.tensor([1.0, math.inf])))
    tiny = torch.tensor([1.0, 1e-30], dtype=torch.float64)
    size = math.sqrt(0.5)
    assert steadiness(tiny) == rounded(math.log(1 + 1 / (1e-3 * size)), 4)


def test_only_the_upper_part_of_the_layers_counts() -> None:
    assert upper_sum([1.0, 5.0, 2.0, 4.0, 3.0], 0.5) == 12
    assert upper_sum([1.0, 5.0, 2.0], 0.0) == 8
    assert math.isnan(upper_sum([1.0, math.nan], 0.5))


def test_l_swag_is_the_sum_over_layers_times_the_patterns(recorded: RecordedPass) -> None:
    total = 0.0
    for name in recorded.layers:
        first, second = (part.weights[name].numpy() for part in recorded.gradients)
        deviations = abs(first - second) / 2
        floor = 1e-3 * math.sqrt((deviations**2).mean())
        total += math.log((1 / np.maximum(deviations, floor)).sum())
    expected = total * Swap().measure(recorded)
    assert LSwag(quantile=0.0).measure(recorded) == pytest.approx(expected, rel=1e-9)
    assert LSwag().measure(recorded) < expected


def test_weight_statistics_weigh_attention_against_the_mlps() -> None:
    model = _candidate().build(seed=1)
    sums = {}
    for part in ("attn", "mlp"):
        layers = [
            layer for name, layer in model.named_modules() if f".{part}." in name and isinstance(layer, nn.Linear)
        ]
        sums[part] = sum(math.log(1 + float((layer.weight.detach() ** 2).sum())) for layer in layers)
    assert WeightStatistics(attention=1.0).of_network(model) == pytest.approx(sums["attn"], rel=1e-12)
    assert WeightStatistics(attention=0.25).of_network(model) == pytest.approx(
        0.25 * sums["attn"] + 0.75 * sums["mlp"], rel=1e-12
    )
    with pytest.raises(ValueError, match="blocks of a transformer"):
        WeightStatistics().of_network(nn.Linear(2, 2))


def test_a_student_with_the_teachers_map_is_most_similar_with_or_without_a_class_token() -> None:
    teacher = teacher_map(_random(3, 2, 32, 32))
    target = F.interpolate(teacher, size=(4, 4), mode="bilinear", antialias=True).flatten(1)
    assert map_similarity(2 * target + 1, teacher) == pytest.approx(1)
    assert map_similarity(-target, teacher) == pytest.approx(0)
    assert map_similarity(torch.cat([torch.full((3, 1), 9.0), target], 1), teacher) == pytest.approx(1)
    assert map_similarity(torch.ones(3, 16), teacher) == 0.5
    with pytest.raises(ValueError, match="square grid of tokens"):
        map_similarity(torch.ones(3, 18), teacher)


# --- a score that trains ---


def test_more_steps_lower_the_loss_and_the_first_one_is_written_out() -> None:
    candidate = _candidate(4)
    losses = [FewStepLoss(steps=steps).of_network(candidate.build(seed=1), candidate) for steps in (1, 20)]
    model = candidate.build(seed=1)
    loss = F.cross_entropy(model(candidate.images[:2]), candidate.labels[:2])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    total = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            step = gradient * min(1.0, 1 / (total + 1e-6))
            parameter -= 1e-3 * step / (step.abs() + 1e-8)  # Adam's first step
        expected = float(F.cross_entropy(model(candidate.images), candidate.labels))
    assert losses[0] == pytest.approx(expected, rel=1e-9)
    assert losses[1] < losses[0]


def test_the_work_of_a_few_steps_is_counted() -> None:
    assert FewStepLoss().training_macs(100, 16) == 100 * 16 * 16
    assert FewStepLoss(steps=1, repeats=2).training_macs(100, 5) == 2 * 100 * (3 * 3 + 5)


def test_all_proxies_are_training_free_unless_one_that_trains_is_named() -> None:
    names = [choice.name for choice in expand_all([PluginChoice(name="all")])]
    assert "tvt" in names
    assert "few-step-loss" not in names
    both = expand_all([PluginChoice(name="all"), PluginChoice(name="few-step-loss")])
    assert [choice.name for choice in both].count("few-step-loss") == 1
    assert isinstance(FewStepLoss(), TrainingProxy)


# --- scores within a pool ---


def test_a_score_that_is_size_has_no_residual_and_noise_is_left() -> None:
    rng = np.random.default_rng(0)
    params, macs = np.exp(rng.normal(size=(2, 30)))
    noise = rng.normal(size=30)
    assert np.abs(beyond_size(3 * np.log(params) - np.log(macs) + 5, params, macs)).max() == 0
    found = beyond_size(np.log(params) + noise, params, macs)
    assert abs(np.corrcoef(found, np.log(params))[0, 1]) < 1e-10
    assert found.std() == pytest.approx(1)
    design = np.column_stack([np.ones(30), np.log(params), np.log(macs)])
    expected = noise - design @ np.linalg.lstsq(design, noise, rcond=None)[0]
    assert found == pytest.approx(expected / expected.std())


def test_topologies_without_a_size_or_score_have_no_residual() -> None:
    found = beyond_size([1.0, 2.0, math.nan, 4.0, 9.0], [1.0, 2.0, 3.0, 0.0, 5.0], [1.0, 3.0, 2.0, 4.0, 6.0])
    assert np.isnan(found).tolist() == [False, False, True, True, False]
    assert np.isnan(beyond_size([1.0], [-1.0], [1.0])).all()


def test_a_size_residual_does_not_change_with_a_multiple_of_the_sizes() -> None:
    rng = np.random.default_rng(1)
    scores = {part: rng.normal(size=20).tolist() for part in SizeResidual.parts}
    scores |= {part: np.exp(rng.normal(size=20)).tolist() for part in ("params", "flops")}
    larger = {**scores, "params": [1e6 * value for value in scores["params"]]}
    assert SizeResidual().combine(scores) == pytest.approx(SizeResidual().combine(larger))


def test_information_prefers_the_score_that_repeats_the_first() -> None:
    first = np.arange(1.0, 17.0)
    unrelated = np.random.default_rng(0).permutation(first)
    ranks = np.array([first, unrelated, first[::-1]])
    assert choose_by_information(ranks, added=2, num_classes=4) == [0, 2, 1]
    assert entropy_of_columns(np.array([[1, 1, 2, 2], [1, 1, 2, 2]])) == pytest.approx(math.log(2))
    assert entropy_of_columns(np.array([[1, 1, 2, 2], [1, 2, 1, 2]])) == pytest.approx(math.log(4))


def test_libra_is_the_mean_rank_of_the_chosen_scores() -> None:
    rng = np.random.default_rng(0)
    scores = {part: rng.normal(size=16).tolist() for part in Libra.parts}
    scores["zico"] = [2 * value for value in scores["l-swag"]]
    found = Libra(added=1).combine(scores)
    assert found == pytest.approx([(sorted(scores["zico"]).index(value) + 1) / 16 for value in scores["zico"]])


def test_travelled_1_is_the_weighted_sum_of_ranks_with_the_weights_of_the_space() -> None:
    rng = np.random.default_rng(0)
    scores = {part: rng.permutation(10.0 * np.arange(8)).tolist() for part in Travelled1.parts}
    for space, weights in WEIGHTS.items():
        assert sum(weights.values()) == pytest.approx(1, abs=0.01)
        expected = [sum(weights[name] * (scores[name][place] / 10 + 1) for name in weights) / 8 for place in range(8)]
        assert Travelled1(space=space).combine(scores) == pytest.approx(expected)  # type: ignore[arg-type]
