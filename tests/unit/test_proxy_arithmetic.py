"""Curves and kernels of functions with known results."""

import math

import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import Candidate
from plugins.proxies.circle_scores import curves_of_models
from plugins.proxies.gauss_length import GaussLength
from plugins.proxies.input_circle import (
    circle_angles,
    circle_basis,
    curve_derivatives,
    extrinsic_curvature,
    gauss_length,
    length_distortion,
)
from plugins.proxies.repeats import repeat_seeds, summarize
from plugins.proxies.tangent_kernel import condition_number, per_image_kernel, tangent_kernel
from plugins.registry import create, parse_topology
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import Costs, ImageTask
from tests.rounding import assert_rounded, difference_bound, path_length, rounded
from trainers.models.as_vit import build_as_vit
from trainers.tasks.scoring import make_candidate

ANGLES = circle_angles(10, like=torch.zeros(1, dtype=torch.float64))
BASIS = circle_basis((3, 4, 4), generator=torch.Generator().manual_seed(0))


def _scaled_circle(points: Tensor) -> Tensor:
    return 5.0 * points.flatten(1)


def test_the_directions_of_a_circle_are_orthonormal() -> None:
    flat = BASIS.flatten(1)
    assert_rounded(flat @ flat.T, torch.eye(2, dtype=torch.float64), 4 * 48)  # orthogonalised, and multiplied


def test_a_circle_of_radius_5_has_speed_5_curvature_one_fifth_and_turns_by_the_angle() -> None:
    derivatives = curve_derivatives(_scaled_circle, ANGLES, BASIS, order=2)
    assert_rounded(derivatives[:2], curve_derivatives(_scaled_circle, ANGLES, BASIS, order=1), 2)
    assert_rounded(derivatives[2], -derivatives[0], 2 * 2)
    num_terms = 4 * 48 + 10  # the basis, the squares of 48 features, 10 points
    assert length_distortion(derivatives[1]).item() == rounded(10 * 5, num_terms)
    assert extrinsic_curvature(*derivatives[1:]).item() == rounded(10 / 5, num_terms)
    assert gauss_length(*derivatives[1:]).item() == rounded(10, num_terms)


def test_the_lengths_are_those_of_their_formulas() -> None:
    velocity, acceleration = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vv, aa = velocity.square().sum(-1), acceleration.square().sum(-1)
    va = (velocity * acceleration).sum(-1)
    # `vv aa - va^2` cancels by the squared sine of the angle between the two.
    condition = float((vv * aa / (vv * aa - va**2)).max())
    assert_rounded(
        extrinsic_curvature(velocity, acceleration),
        (vv**-1.5 * (vv * aa - va**2).sqrt()).sum(),
        2 * 9 + 6,
        condition=condition,
    )
    turned = acceleration / vv.sqrt()[:, None] - velocity * (va / vv**1.5)[:, None]
    assert_rounded(gauss_length(velocity, acceleration), turned.norm(dim=-1).sum(), 2 * 9 + 6, condition=condition)


def test_a_curve_that_stands_still_has_no_curvature() -> None:
    derivatives = curve_derivatives(lambda points: 0.0 * points.flatten(1), ANGLES, BASIS, order=2)
    assert math.isnan(extrinsic_curvature(*derivatives[1:]).item())
    assert math.isnan(gauss_length(*derivatives[1:]).item())


CURVED = {
    "length-distortion": (1, length_distortion),
    "extrinsic-curvature": (2, extrinsic_curvature),
    "gauss-length": (2, gauss_length),
}


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("seed", [0, 3])
def test_a_curve_score_is_the_mean_over_fresh_networks_of_their_curves_by_autograd(name: str, seed: int) -> None:
    """At 96 pixels the model uses torch's fused attention, which has no forward-mode derivative."""
    images = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    task = ImageTask(image_size=96, in_channels=1, num_classes=2)
    candidate = make_candidate(parse_topology("as-vit:8,2,3|4,1,2|3,1,4|4,1,6|16,4"), images, task, seed=seed)
    order, measure = CURVED[name]
    values, num_terms = [], 0
    for one in repeat_seeds(seed, 2):
        basis = circle_basis((1, 96, 96), generator=torch.Generator().manual_seed(one))
        model = candidate.build(seed=one, normalization=False)
        features = model.forward_features
        num_terms = (order + 1) * path_length(model, num_tokens=24**2)
        angles = circle_angles(4, like=basis)
        values.append(float(measure(*curve_derivatives(features, angles, basis, order=order)[1:])))
    score = create("proxies", name, {"repeats": 2, "num_points": 4}).score(candidate)
    spread = abs(values[0] - values[1]) / 2**0.5
    # The curvature cancels as the acceleration turns into the direction of the velocity.
    mean = sum(values) / 2
    assert score.value == rounded(mean, num_terms, condition=100)
    assert score.spread == pytest.approx(spread, rel=0, abs=mean * difference_bound(num_terms, condition=100))


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_few_points_tell_the_whole_curve_within_rounding_or_all_are_computed(scale: float) -> None:
    task = ImageTask(image_size=32, in_channels=1, num_classes=2)
    topology = AsViTSpace.parse("8,2,3|4,1,2|3,1,4|4,1,6|16,4")
    single, double = (build_as_vit(topology, task, dtype=dtype) for dtype in (torch.float32, torch.float64))
    basis = scale * circle_basis((1, 32, 32), generator=torch.Generator().manual_seed(0))
    (expected,) = curves_of_models([double], [basis], ANGLES, order=2)
    calls = []
    features_along = single.features_along

    def counted(directions: Tensor, weights: Tensor) -> Tensor:
        calls.append(weights.shape[1])
        return features_along(directions, weights)

    single.features_along = counted  # type: ignore[method-assign]
    (found,) = curves_of_models([single], [basis.float()], ANGLES.float(), order=2)
    assert sum(calls) == (4 if scale == 1 else 4 + len(ANGLES))
    for ours, theirs in zip(found, expected, strict=True):
        assert_rounded(ours.float(), theirs, path_length(single, num_tokens=64))


def test_models_without_derivatives_of_their_own_are_scored_by_autograd() -> None:
    def build(*, seed: int, normalization: bool = True) -> nn.Module:
        return _Features(nn.Flatten())

    task = ImageTask(image_size=4, in_channels=1, num_classes=2)
    candidate = Candidate(
        topology=parse_topology("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,8"),
        task=task,
        costs=Costs(85, 80),
        images=torch.zeros(1, 1, 4, 4, dtype=torch.float64),
        labels=torch.zeros(1, dtype=torch.int64),
        build=build,
        seed=0,
    )
    score = GaussLength(num_points=7).score(candidate)
    assert score.value == rounded(7, 4 * 16 + 7)
    assert score.spread == pytest.approx(0, abs=7 * difference_bound(4 * 16 + 7))


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_number_of_cores_does_not_change_a_score(monkeypatch: pytest.MonkeyPatch, repeats: int) -> None:
    images = torch.randn(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    task = ImageTask(image_size=64, in_channels=1, num_classes=2)
    monkeypatch.setattr("plugins.proxies.tangent_kernel.PIXELS_AT_ONCE", 2 * 64 * 64)
    before, scores, num_terms = torch.get_num_threads(), [], 0
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            candidate = make_candidate(parse_topology("as-vit:8,2,3|4,1,2|3,1,4|4,1,6|16,4"), images, task, seed=0)
            settings = {"repeats": repeats}
            names = ("length-distortion", "ntk-condition")
            scores.append([create("proxies", name, settings).score(candidate).value for name in names])
            num_terms = 2 * path_length(candidate.build(seed=0), num_tokens=256)
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    for found in scores[1:]:
        for value, expected in zip(found, scores[0], strict=True):
            assert value == rounded(expected, num_terms, torch.float32)


def test_the_kernel_of_a_linear_layer_is_that_of_its_inputs() -> None:
    images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    kernel = tangent_kernel(_Features(nn.Linear(4, 7)), images)
    assert_rounded(kernel.float(), 7 * images.flatten(1) @ images.flatten(1).T, 7 + 4)


@pytest.mark.parametrize("text", ["8,2,3|4,1,2|4,1,4|4,1,6|32,8", "5,4,2,2|3,4,3|2,2,2|3,1,6|64,9"])
def test_the_layerwise_kernel_is_that_of_one_gradient_per_image(text: str) -> None:
    task = ImageTask(image_size=64, in_channels=2, num_classes=3)
    model = build_as_vit(AsViTSpace.parse(text), task, dtype=torch.float64)
    images = torch.randn(3, 2, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Forward, backward, and the sum over the weights.
    num_terms = 2 * path_length(model, num_tokens=256) + sum(parameter.numel() for parameter in model.parameters())
    assert_rounded(tangent_kernel(model, images), per_image_kernel(model, images), num_terms)


class _Features(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward_features(self, images: Tensor) -> Tensor:
        out: Tensor = self.layer(images.flatten(1))
        return out


class _SharedLayer(_Features):
    def forward_features(self, images: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(images.flatten(1)))))


class _WeightOutsideItsLayer(_Features):
    def forward_features(self, images: Tensor) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return torch.tanh(images.flatten(1) @ weight.T)


class _OtherWeight(_Features):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.position_weight = nn.Parameter(torch.ones(4))

    def forward_features(self, images: Tensor) -> Tensor:
        return super().forward_features(images * self.position_weight.view(1, 1, 2, 2)).square()


@pytest.mark.parametrize("kind", [_SharedLayer, _WeightOutsideItsLayer, _OtherWeight])
def test_models_that_use_a_weight_in_other_ways_get_the_right_kernel_too(kind: type[_Features]) -> None:
    model = kind(nn.Linear(4, 4).double())
    images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = []
    for image in images:
        model.zero_grad()
        model.forward_features(image[None]).sum().backward()
        named = [(name, value.grad) for name, value in model.named_parameters() if "weight" in name]
        jacobian.append(torch.cat([grad.flatten() for _, grad in named if grad is not None]))
    rows = torch.stack(jacobian)
    # Two layers forward and backward, and the sum over the weights; `_OtherWeight` keeps one of them in float32.
    found = tangent_kernel(model, images)
    dtype = max((parameter.dtype for parameter in model.parameters()), key=lambda dtype: torch.finfo(dtype).eps)
    assert_rounded(found.to(dtype), rows @ rows.T, 4 * (4 + 1) + sum(one.numel() for one in model.parameters()))


def test_the_condition_number_is_the_ratio_of_the_outer_eigenvalues() -> None:
    assert condition_number(torch.diag(torch.tensor([2.0, 8.0, 4.0]))) == rounded(4.0, 3)
    assert math.isnan(condition_number(torch.tensor([[math.inf, 0.0], [0.0, 1.0]])))


def test_one_value_that_is_not_finite_spoils_the_mean() -> None:
    assert summarize([1.0, 3.0]) == (2.0, rounded(math.sqrt(2), 4))
    assert math.isnan(summarize([1.0, math.inf]).value)


def test_more_repeats_only_add_seeds() -> None:
    assert repeat_seeds(7, 5)[:3] == repeat_seeds(7, 3)
    assert len(set(repeat_seeds(7, 5))) == 5
    assert repeat_seeds(8, 3) != repeat_seeds(7, 3)
