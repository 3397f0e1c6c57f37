"""The scores of the authors' own code, for given weights and inputs.

The authors' values come from another CPU and another version of torch.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from plugins.proxies.circle_scores import curves_of_models
from plugins.proxies.input_circle import (
    circle_points,
    circle_weights,
    curve_derivatives,
    extrinsic_curvature,
    length_distortion,
)
from plugins.proxies.tangent_kernel import condition_number, per_image_kernel, tangent_kernel
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, path_length, rounded
from trainers.models.as_vit import AsViT, build_as_vit, from_authors_state_dict

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "as-vit-golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden values lie beside the repository, and are not here"
)

NUM_TOKENS = 64
"""Tokens of the largest attention window."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@pytest.fixture(params=["a", "b", "c"])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    expected = json.loads((GOLDEN / "expected.json").read_text())
    found = next(one for one in expected if one["name"] == request.param)
    return found, load_file(GOLDEN / f"{request.param}.safetensors")


def _model(case: tuple[dict[str, Any], dict[str, Tensor]], dtype: torch.dtype, *, normalization: bool) -> AsViT:
    expected, tensors = case
    topology = AsViTSpace.parse(expected["architecture"]).with_size(depths=expected["depths"], width=expected["hidden"])
    task = ImageTask(image_size=expected["image_size"], in_channels=3, num_classes=10)
    model = build_as_vit(topology, task, normalization=normalization, dtype=dtype)
    prefix = "with_norm." if normalization else "without_norm."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    model.load_state_dict(from_authors_state_dict(state))
    return model


def _circle(tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The angles, and the two directions recovered from the points `U [cos, sin]`."""
    angles, points = tensors["circle.theta"].to(dtype), tensors["circle.points"].double()
    cosines = torch.stack([angles.cos(), angles.sin()], 1).double()
    basis = torch.linalg.lstsq(cosines, points.flatten(1)).solution.view(2, *points.shape[1:])
    return angles, basis.to(dtype)


def test_the_directions_of_the_circle_are_recovered(case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    angles, basis = _circle(case[1], torch.float64)
    assert_rounded(circle_points(angles, basis), case[1]["circle.points"], 2)


@pytest.mark.parametrize(("normalization", "inputs"), [(False, "circle.points"), (True, "ntk.images")])
def test_features_are_those_of_the_authors(
    case: tuple[dict[str, Any], dict[str, Tensor]], normalization: bool, inputs: str
) -> None:
    model, tensors = _model(case, torch.float32, normalization=normalization), case[1]
    expected = tensors["circle.features" if inputs == "circle.points" else "ntk.features"]
    with torch.no_grad():
        assert_rounded(model.forward_features(tensors[inputs]), expected, path_length(model, NUM_TOKENS))


def test_the_number_of_parameters_is_that_of_the_authors(case: tuple[dict[str, Any], dict[str, Tensor]]) -> None:
    model = _model(case, torch.float32, normalization=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == case[0]["params"]


def _as_scored(model: AsViT, angles: Tensor, basis: Tensor) -> Tensor:
    (derivatives,) = curves_of_models([model], [basis], angles, order=2)
    return derivatives


def _by_hand(model: AsViT, angles: Tensor, basis: Tensor) -> Tensor:
    return model.features_along(basis, circle_weights(angles, order=2))[1:]


def _by_autograd(model: AsViT, angles: Tensor, basis: Tensor) -> Tensor:
    return curve_derivatives(model.forward_features, angles, basis, order=2)[1:]


@pytest.mark.parametrize("differentiate", [_as_scored, _by_hand, _by_autograd])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_curve_is_as_long_and_as_bent_as_that_of_the_authors(
    case: tuple[dict[str, Any], dict[str, Tensor]],
    precision: str,
    differentiate: Callable[[AsViT, Tensor, Tensor], Tensor],
) -> None:
    model = _model(case, DTYPES[precision], normalization=False)
    derivatives = differentiate(model, *_circle(case[1], DTYPES[precision]))
    found = {
        "length_distortion": float(length_distortion(derivatives[0])),
        "extrinsic_curvature": float(extrinsic_curvature(*derivatives)),
    }
    num_terms = 3 * path_length(model, NUM_TOKENS)  # each sum is one over three coefficients of every term
    for metric, value in found.items():
        assert value == rounded(case[0][precision][metric], num_terms, DTYPES[precision])


@pytest.mark.parametrize("kernel", [tangent_kernel, per_image_kernel])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_condition_number_is_that_of_the_authors(
    case: tuple[dict[str, Any], dict[str, Tensor]], precision: str, kernel: Any
) -> None:
    model = _model(case, DTYPES[precision], normalization=True)
    value = condition_number(kernel(model, case[1]["ntk.images"].to(DTYPES[precision])))
    expected = case[0][precision]["ntk_condition_number"]
    # A pass forward and one back; an error of the smallest eigenvalue is one relative to the largest.
    num_terms = 2 * path_length(model, NUM_TOKENS)
    assert value == rounded(expected, num_terms, DTYPES[precision], condition=expected)
