"""Derivatives along a curve, compared with nested forward-mode autograd."""

import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import CurveModel
from plugins.proxies.input_circle import circle_angles, circle_basis, circle_weights, curve_derivatives
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, path_length
from trainers.models import as_vit_curve, taylor
from trainers.models.as_vit import AsViT, build_as_vit
from trainers.models.as_vit_layers import WindowAttention
from trainers.models.taylor import add_attention, check_once, exact_attention, first_order_attention, gelu_

ANGLES = circle_angles(4, like=torch.zeros(1, dtype=torch.float64))[:-1]
TOPOLOGIES = (
    "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8",
    "5,8,2,2|2,4,3,1|3,2,2,2|2,1,2,2|16,4",
    "7,4,2,1|3,2,3,2|2,1,2,1|3,1,3,1|64,9",
)


def _model(text: str, *, std: float, size: int = 32) -> AsViT:
    """With weights and biases of that standard deviation."""
    task = ImageTask(image_size=size, in_channels=2, num_classes=3)
    model = build_as_vit(AsViTSpace.parse(text), task, normalization=False, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def _num_terms(model: AsViT) -> int:
    """On the way to a derivative of the features: each sum is one over three coefficients of every term."""
    return 3 * path_length(model, num_tokens=64)


def _basis(size: int) -> Tensor:
    return 3 * circle_basis((2, size, size), generator=torch.Generator().manual_seed(1))


def _attention(*, score_std: float, dtype: torch.dtype = torch.float64) -> WindowAttention:
    """With queries and keys from weights of that standard deviation, and ordinary values."""
    attention = WindowAttention(10, heads=3, split=1).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        parameter.normal_(std=0.3, generator=generator)
    attention.qkv.weight[:18] *= score_std / 0.3
    attention.qkv.bias[:18] *= score_std / 0.3
    return attention.to(dtype)


def test_as_vit_knows_its_derivatives() -> None:
    assert isinstance(_model(TOPOLOGIES[0], std=0.1), CurveModel)
    assert not isinstance(nn.Linear(1, 1), CurveModel)


@pytest.mark.parametrize("text", TOPOLOGIES)
@pytest.mark.parametrize("std", [0.02, 0.15])
@pytest.mark.parametrize("size", [32, 64])
def test_derivatives_are_those_of_autograd(text: str, std: float, size: int) -> None:
    model, basis = _model(text, std=std, size=size), _basis(size)
    found = model.features_along(basis, circle_weights(ANGLES, order=2))
    expected = curve_derivatives(model.forward_features, ANGLES, basis, order=2)
    for ours, theirs in zip(found, expected, strict=True):
        assert_rounded(ours, theirs, _num_terms(model))


def test_lower_orders_are_the_same_derivatives() -> None:
    model, basis = _model(TOPOLOGIES[0], std=0.15), _basis(32)
    expected = model.features_along(basis, circle_weights(ANGLES, order=2))
    for order in (0, 1):
        found = model.features_along(basis, circle_weights(ANGLES, order=order))
        for ours, theirs in zip(found, expected[: order + 1], strict=True):
            assert_rounded(ours, theirs, _num_terms(model))


def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, basis = _model(TOPOLOGIES[1], std=0.15, size=64), _basis(64)
    expected = model.features_along(basis, circle_weights(ANGLES, order=1))
    monkeypatch.setattr(taylor, "NUMBERS_AT_ONCE", 3000)
    monkeypatch.setattr(as_vit_curve, "TOKENS_AT_ONCE", 1)
    found = model.features_along(basis, circle_weights(ANGLES, order=1))
    for ours, theirs in zip(found, expected, strict=True):
        assert_rounded(ours, theirs, _num_terms(model))


def test_norms_are_passed_over_and_the_model_is_left_unchanged() -> None:
    task = ImageTask(image_size=32, in_channels=2, num_classes=3)
    basis, weights = _basis(32), circle_weights(ANGLES, order=1)
    topology = AsViTSpace.parse(TOPOLOGIES[0])
    plain, normed = (build_as_vit(topology, task, normalization=on, dtype=torch.float64) for on in (False, True))
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    for ours, theirs in zip(normed.features_along(basis, weights), plain.features_along(basis, weights), strict=True):
        assert_rounded(ours, theirs, _num_terms(plain))
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    assert not normed.features_along(basis, weights).requires_grad


def test_gelu_of_a_curve_has_the_derivatives_of_gelu() -> None:
    curve = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, slope, bend = curve.clone()
    at = value.clone().requires_grad_()
    first = torch.autograd.grad(nn.functional.gelu(at).sum(), at, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), at)[0]
    gelu_(curve)
    expected = (nn.functional.gelu(value), first.detach() * slope, first.detach() * bend + second * slope**2 / 2)
    assert_rounded(curve, torch.stack(expected), num_terms=10, condition=4)  # of each product; erf cancels below -1


def _exactly(tokens: Tensor, attention: WindowAttention) -> Tensor:
    """Tokens (K, 1, B, N, D) in float64 with attention's output added."""
    expected = tokens + (exact_attention(tokens, attention) @ attention.proj.weight.t()).view_as(tokens)
    expected[0] += attention.proj.bias
    return expected


@pytest.mark.parametrize("num", [1, 2, 3])
def test_what_first_order_attention_leaves_out_is_of_second_order(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where rounding is far below what is left out: 100 times larger scores leave out 10,000 times more."""
    tokens = torch.randn(num, 1, 4, 40, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(taylor, "_scores_are_negligible", lambda *_: True)
    errors = []
    for score_std in (0.002, 0.02):
        attention = _attention(score_std=score_std)
        found = first_order_attention(tokens, attention)
        assert found is not None
        errors.append(float((found - _exactly(tokens, attention)).abs().max()))
    assert errors[1] / errors[0] == pytest.approx(100**2, rel=0.05)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_attention_of_small_scores_is_first_order_within_rounding(num: int) -> None:
    tokens = torch.randn(num, 1, 4, 40, 10, generator=torch.Generator().manual_seed(0))
    attention = _attention(score_std=0.002, dtype=torch.float32)
    found = first_order_attention(tokens, attention)
    assert found is not None
    expected = _exactly(tokens.double(), attention.double())
    # The means and the covariance add 40 tokens, the values 10 channels, their projection 6, and the result 10 more.
    assert_rounded(found, expected, num_terms=num * (40 + 10 + 6 + 10))


def test_attention_of_large_scores_is_not_taken_for_first_order() -> None:
    tokens = torch.randn(2, 1, 4, 400, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    attention = _attention(score_std=0.3)
    assert first_order_attention(tokens, attention) is None
    assert first_order_attention(tokens * torch.nan, attention) is None
    assert_rounded(add_attention(tokens.clone(), attention), _exactly(tokens, attention), num_terms=2 * (10 + 400 + 10))


@pytest.mark.parametrize("score_std", [0.002, 0.3])
def test_scores_that_are_checked_at_the_end_give_the_same_attention(score_std: float) -> None:
    tokens = torch.randn(2, 1, 4, 400, 10, generator=torch.Generator().manual_seed(0))
    attention = _attention(score_std=score_std, dtype=torch.float32)
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return add_attention(tokens.clone(), attention)

    expected = add_attention(tokens.clone(), attention)
    assert torch.equal(check_once(compute), expected)
    assert len(calls) == (1 if score_std == 0.002 else 2)
    assert (first_order_attention(tokens, attention) is None) == (len(calls) == 2)
