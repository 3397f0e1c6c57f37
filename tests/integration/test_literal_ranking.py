"""A screen ranked by our scores, compared with literal implementations of the formulas."""

import random

import pytest
import torch
from torch import Tensor, nn

from plugins.proxies.input_circle import circle_angles, circle_basis, circle_points
from plugins.proxies.repeats import repeat_seeds
from plugins.proxies.tangent_kernel import condition_number
from plugins.registry import create
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=64, in_channels=3, num_classes=10)
SPACE = AsViTSpace(width=8)


def _literal_length(model: nn.Module, basis: Tensor) -> float:
    """One backward pass for each feature."""
    angles = circle_angles(10, like=basis).requires_grad_()
    features: Tensor = model.forward_features(circle_points(angles, basis))  # type: ignore[operator]
    columns = [torch.autograd.grad(column.sum(), angles, retain_graph=True)[0] for column in features.unbind(1)]
    return float(torch.stack(columns, 1).norm(dim=1).sum())


def _literal_condition(model: nn.Module, images: Tensor) -> float:
    """One backward pass for each image."""
    weights = [weight for name, weight in model.named_parameters() if "weight" in name and not name.startswith("head")]
    rows = []
    for features in model.forward_features(images):  # type: ignore[operator]
        found = torch.autograd.grad(features.sum(), weights, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([one.flatten() for one in found if one is not None]))
    gradients = torch.stack(rows).double()
    return condition_number(gradients @ gradients.T)


NUM_TOPOLOGIES, NUM_BEST = 15, 5


@pytest.mark.slow
def test_the_best_topologies_are_those_of_the_literal_formulas() -> None:
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    rng = random.Random(0)
    ours: dict[str, list[float]] = {"length-distortion": [], "ntk-condition": []}
    literal: dict[str, list[float]] = {"length-distortion": [], "ntk-condition": []}
    for _ in range(NUM_TOPOLOGIES):
        candidate = make_candidate(SPACE.sample(rng), images, TASK, seed=0)
        (seed,) = repeat_seeds(0, 1)
        basis = circle_basis((3, 64, 64), generator=torch.Generator().manual_seed(seed)).float()
        for name, found in ours.items():
            found.append(create("proxies", name, {"repeats": 1}).score(candidate).value)
        literal["length-distortion"].append(_literal_length(candidate.build(seed=seed, normalization=False), basis))
        literal["ntk-condition"].append(_literal_condition(candidate.build(seed=seed), images))
    for name, sign in (("length-distortion", -1), ("ntk-condition", 1)):
        assert ours[name] == pytest.approx(literal[name], rel=1e-4 if name == "length-distortion" else 1e-3)
        best, expected = (
            sorted(range(NUM_TOPOLOGIES), key=lambda i, v=v: sign * v[i])[:NUM_BEST]
            for v in (ours[name], literal[name])
        )
        assert best == expected
