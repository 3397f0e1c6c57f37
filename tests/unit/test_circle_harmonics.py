"""Curves sampled at few points of a circle, and points shared between the scores of curves."""

import math

import pytest
import torch
from torch import Tensor

from plugins.proxies import circle_scores
from plugins.proxies.circle_scores import curves_of_models, fit_harmonics
from plugins.proxies.input_circle import circle_angles
from plugins.registry import create, parse_topology
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded
from trainers.tasks.scoring import make_candidate

ANGLES = circle_angles(10, like=torch.zeros(1, dtype=torch.float64))[:-1]
BASIS = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2)


class Waves:
    """Features on the circle with harmonics of amplitudes 1, `ratio`, `ratio`^2, ..., each at an angle of its own."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.num_points: list[int] = []

    def forward_features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def features_along(self, _: Tensor, weights: Tensor) -> Tensor:
        self.num_points.append(weights.shape[1])
        angles = torch.atan2(weights[0, :, 1].double(), weights[0, :, 0].double())
        derivatives = []
        for order in range(len(weights)):
            total = torch.zeros(len(angles), 3, dtype=torch.float64)
            for harmonic in range(1, 7):
                for feature in range(3):
                    turned = harmonic * angles + feature + harmonic**2 + order * math.pi / 2
                    total[:, feature] += self.ratio ** (harmonic - 1) / harmonic * harmonic**order * turned.sin()
            derivatives.append(total)
        return torch.stack(derivatives).to(weights)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("ratio", "num_points"), [(1e-5, [4]), (5e-4, [4, 2]), (5e-3, [4, 9])])
def test_as_many_points_are_computed_as_the_second_harmonic_asks_for(ratio: float, num_points: list[int]) -> None:
    model = Waves(ratio)
    (found,) = curves_of_models([model], [BASIS.float()], ANGLES.float(), order=2)
    assert model.num_points == num_points
    (expected,) = curves_of_models([Waves(ratio)], [BASIS], ANGLES, order=2)
    # Angles, features and the fit of their harmonics are in float32, and `n` angles give `n` coefficients.
    assert_rounded(found.float(), expected, 2 * len(ANGLES))


@pytest.mark.usefixtures("one_thread")
def test_float64_takes_every_point() -> None:
    model = Waves(1e-5)
    (found,) = curves_of_models([model], [BASIS], ANGLES, order=1)
    assert model.num_points == [9]
    assert_rounded(found, Waves(1e-5).features_along(BASIS, circle_scores.circle_weights(ANGLES, order=1))[1:], 6)


@pytest.mark.parametrize("angles", [circle_scores.FEW, circle_scores.FEW + circle_scores.MORE])
def test_the_angles_give_the_harmonics_without_loss_of_precision(angles: tuple[float, ...]) -> None:
    at = torch.tensor(angles, dtype=torch.float64)
    coefficients = torch.randn(len(angles), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = circle_scores._waves(at, order=0, count=len(angles) // 2)
    assert torch.linalg.cond(waves) < 3
    assert_rounded(fit_harmonics(waves @ coefficients, at), coefficients, 2 * len(angles), condition=3)


TOPOLOGIES = ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,8", "autoformer:2,2|2,2|16,16", "pit:1,1|1,2|1,2|2,8,16")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_scores_of_the_same_curves_share_them_and_stay_what_they_are_alone(
    topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.zeros(1, 1, 64, 64)
    task = ImageTask(image_size=64, in_channels=1, num_classes=2)

    def candidate() -> object:
        return make_candidate(parse_topology(topology), images, task, seed=0)

    names = ("length-distortion", "extrinsic-curvature", "gauss-length")
    alone = [create("proxies", name, {"repeats": 2}).score(candidate()) for name in names]
    together = candidate()
    for name, expected in zip(names, alone, strict=True):
        assert create("proxies", name, {"repeats": 2}).score(together) == expected
    calls: list[int] = []
    along = circle_scores._along_circles
    monkeypatch.setattr(circle_scores, "_along_circles", lambda *args, **kw: calls.append(1) or along(*args, **kw))
    for name in names:
        create("proxies", name, {"repeats": 2}).score(together)
    assert not calls
