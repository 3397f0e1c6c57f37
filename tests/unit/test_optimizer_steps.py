"""Steps of optimizers against their authors' formulas, computed here in float64 or by the authors' package."""

import math
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from numpy.typing import NDArray
from torch import Tensor

from plugins.optimizers.orthogonal import best_quintic, orthogonalize, shape_coefficients, singular_interval
from plugins.optimizers.root import without_outliers
from plugins.protocols import Optimizer, OptimizerState
from plugins.registry import create
from tests.contracts.test_optimizers import (
    GRADIENTS,
    LAYOUT,
    RATES,
    VALUES,
    TinyVit,
    by_name,
    groups_of,
    is_matrix,
    settings_of,
    take_steps,
    torchs_values,
)
from tests.steps import flat_row

DECAYED = set(LAYOUT.names[: LAYOUT.num_decayed])
DECAY = 0.1
Array = NDArray[np.float64]


def start(name: str, settings: dict[str, Any] | None = None) -> tuple[Optimizer, Tensor, OptimizerState]:
    optimizer = create("optimizers", name, settings)
    row = flat_row(LAYOUT, VALUES)
    return optimizer, row, optimizer.start(LAYOUT, row)


def gradients_of(name: str) -> list[Array]:
    return [gradient[name].double().numpy() for gradient in GRADIENTS]


def compare(found: Tensor, expected: dict[str, Array], tolerance: float = 1e-6) -> None:
    for name, view in by_name(LAYOUT, found).items():
        np.testing.assert_allclose(view.numpy(), expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_lion_moves_by_the_sign_of_the_interpolated_momentum() -> None:
    found, _ = take_steps(create("optimizers", "lion", {"beta1": 0.8, "beta2": 0.95}))
    expected = {}
    for name, value in VALUES.items():
        w, m = value.double().numpy(), np.zeros(value.shape)
        decay = DECAY if name in DECAYED else 0.0
        for g, rate in zip(gradients_of(name), RATES, strict=True):
            w = w - rate * (np.sign(0.8 * m + 0.2 * g) + decay * w)
            m = 0.95 * m + 0.05 * g
        expected[name] = w
    compare(found, expected)


def test_lamb_scales_the_adam_step_of_each_matrix_to_the_norm_of_its_weights() -> None:
    found, _ = take_steps(create("optimizers", "lamb"))
    expected = {}
    for name, value in VALUES.items():
        w, m, v = value.double().numpy(), np.zeros(value.shape), np.zeros(value.shape)
        for t, (g, rate) in enumerate(zip(gradients_of(name), RATES, strict=True), start=1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
            trust = 1.0
            if name in DECAYED:
                u = u + DECAY * w
                trust = np.linalg.norm(w) / np.linalg.norm(u)
            w = w - rate * trust * u
        expected[name] = w
    compare(found, expected, 3e-6)


def test_lamb_takes_an_unscaled_step_from_weights_of_zero() -> None:
    optimizer, row, state = start("lamb")
    row.zero_()
    optimizer.update(LAYOUT, row, flat_row(LAYOUT, GRADIENTS[0]), state, settings_of(0))
    first = by_name(LAYOUT, row)[LAYOUT.names[0]]
    torch.testing.assert_close(first.abs(), torch.full_like(first, RATES[0]), rtol=1e-3, atol=0)


def test_adabound_keeps_the_rate_of_each_number_within_bounds_that_close() -> None:
    found, _ = take_steps(create("optimizers", "adabound", {"gamma": 0.5, "final_factor": 2.0}))
    expected = {}
    for name, value in VALUES.items():
        w, m, v = value.double().numpy(), np.zeros(value.shape), np.zeros(value.shape)
        decay = DECAY if name in DECAYED else 0.0
        for t, (g, rate) in enumerate(zip(gradients_of(name), RATES, strict=True), start=1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            adam = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) / (np.sqrt(v) + 1e-8)
            lower, upper = 2 * rate * (1 - 1 / (0.5 * t + 1)), 2 * rate * (1 + 1 / (0.5 * t))
            w = w * (1 - rate * decay) - np.clip(adam, lower, upper) * m
        expected[name] = w
    compare(found, expected)


@pytest.mark.parametrize("delay", [0, 3])
def test_tvlars_scales_gradients_to_the_norm_of_the_weights_and_lowers_the_rate_after_the_delay(delay: int) -> None:
    settings = {"eta": 0.5, "decay": 0.3, "delay_steps": delay, "floor": 0.05, "largest_norm": 4.0}
    found, _ = take_steps(create("optimizers", "tvlars", settings))
    expected = {}
    for name, value in VALUES.items():
        w, mu = value.double().numpy(), np.zeros(value.shape)
        for t, (g, rate) in enumerate(zip(gradients_of(name), RATES, strict=True)):
            if name in DECAYED:
                g = g + DECAY * w
                ratio = 0.5 * min(np.linalg.norm(w), 4.0) / min(np.linalg.norm(g), 4.0)
                g = g * ratio * (1 / (0.1 + math.exp(0.3 * (t + 1 - delay))) + 0.05)
            mu = 0.9 * mu + g
            w = w - rate * mu
        expected[name] = w
    compare(found, expected, 3e-6)


def test_sam_takes_the_gradient_at_the_worst_point_nearby() -> None:
    """For the loss `sum a w^2 / 2`, whose gradient is `a w`; one norm over all parameters, with SGD as the base."""
    optimizer, row, state = start("sam", {"rho": 0.3, "base": "sgd"})
    scales = flat_row(LAYOUT, GRADIENTS[0]).abs()
    expected = {name: value.double().numpy() for name, value in VALUES.items()}
    sizes = {name: GRADIENTS[0][name].abs().double().numpy() for name in VALUES}
    momentum = {name: np.zeros(value.shape) for name, value in VALUES.items()}
    for step, rate in enumerate(RATES):
        point = optimizer.probe(LAYOUT, row, scales * row, state, settings_of(step))
        length = math.sqrt(sum(((sizes[name] * w) ** 2).sum() for name, w in expected.items()))
        worst = {name: w + 0.3 * sizes[name] * w / length for name, w in expected.items()}
        compare(point, worst)
        optimizer.update(LAYOUT, row, scales * point, state, settings_of(step))
        for name, w in expected.items():
            decay = DECAY if name in DECAYED else 0.0
            momentum[name] = 0.9 * momentum[name] + sizes[name] * worst[name] + decay * w
            expected[name] = w - rate * momentum[name]
    compare(row, expected)


def test_sophia_clips_the_momentum_over_the_curvature() -> None:
    optimizer, row, state = start("sophia", {"period": 2, "gamma": 0.3, "beta1": 0.9, "beta2": 0.8})
    expected = {name: value.double().numpy() for name, value in VALUES.items()}
    means = {name: np.zeros(value.shape) for name, value in VALUES.items()}
    curvatures = {name: np.zeros(value.shape) for name, value in VALUES.items()}
    for step, gradient in enumerate(GRADIENTS):
        due = optimizer.is_observation_due(state)
        assert due == (step % 2 == 0)
        if due:
            sampled = GRADIENTS[-1 - step]
            optimizer.observe(LAYOUT, flat_row(LAYOUT, sampled), 16, state)
        optimizer.update(LAYOUT, row, flat_row(LAYOUT, gradient), state, settings_of(step))
        for name, w in expected.items():
            if due:
                curvatures[name] = 0.8 * curvatures[name] + 0.2 * 16 * sampled[name].double().numpy() ** 2
            means[name] = 0.9 * means[name] + 0.1 * gradient[name].double().numpy()
            ratio = np.clip(means[name] / np.maximum(0.3 * curvatures[name], 1e-12), -1, 1)
            decay = DECAY if name in DECAYED else 0.0
            expected[name] = w * (1 - RATES[step] * decay) - RATES[step] * ratio
    compare(row, expected)


@pytest.mark.parametrize(
    "given", [{}, {"beta1": 0.95, "beta2": 0.9, "eps": 1e-6, "rate_power": 1.0, "step_power": 1.0}]
)
def test_schedule_free_adamw_is_that_of_its_authors(given: dict[str, float]) -> None:
    model = TinyVit()
    model.load_state_dict(VALUES)
    theirs = schedulefree.AdamWScheduleFree(
        groups_of(model),
        lr=RATES[0],
        betas=(given.get("beta1", 0.9), given.get("beta2", 0.999)),
        eps=given.get("eps", 1e-8),
        weight_lr_power=given.get("rate_power", 2.0),
        r=given.get("step_power", 0.0),
        foreach=False,
    )
    theirs.train()
    optimizer, row, state = start("schedule-free-adamw", given)
    for step, expected in enumerate(torchs_values(model, theirs)):
        optimizer.update(LAYOUT, row, flat_row(LAYOUT, GRADIENTS[step]), state, settings_of(step))
        for name, view in by_name(LAYOUT, row).items():
            torch.testing.assert_close(view, expected[name], rtol=1e-6, atol=1e-6)
    theirs.eval()
    evaluated = by_name(LAYOUT, optimizer.evaluated(LAYOUT, row, state))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(evaluated[name], parameter.detach(), rtol=1e-6, atol=2e-6)
    assert not torch.equal(optimizer.evaluated(LAYOUT, row, state), row)


# --- ROOT ---


def singular_values(rows: int, columns: int, *, num_iterations: int, seed: int = 0) -> tuple[Array, Array]:
    """Those of a random matrix with Frobenius norm 1 and of its approximate orthogonal factor."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor = orthogonalize(matrix[None], num_iterations=num_iterations)[0]
    return torch.linalg.svdvals(matrix / matrix.norm()).numpy(), torch.linalg.svdvals(factor).numpy()


def test_the_best_quintic_deviates_equally_at_four_points() -> None:
    for low, high in ((0.01, 1.0), (0.2, 1.0), (0.6, 1.4)):
        quintic = best_quintic(low, high)
        points = np.linspace(low, high, 20001)
        deviations = 1 - quintic.a * points - quintic.b * points**3 - quintic.c * points**5
        largest = np.abs(deviations).max()
        extremes = [deviations[0], deviations.max(), deviations.min(), deviations[-1]]
        assert deviations[0] == pytest.approx(largest, rel=1e-6)
        assert deviations[-1] == pytest.approx(-largest, rel=1e-6)
        assert sorted(np.abs(extremes)) == pytest.approx([largest] * 4, rel=1e-4)


def test_the_quintic_of_a_narrow_interval_is_flat_at_its_middle() -> None:
    quintic = best_quintic(0.9999, 1.0001)
    assert quintic(1.0) == pytest.approx(1.0, abs=1e-12)
    assert quintic(1.0001) == pytest.approx(1.0, abs=1e-9)
    assert quintic(0.9999) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(48, 48), (48, 192), (192, 48), (16, 400)])
def test_the_polynomials_of_a_shape_map_its_singular_values_to_almost_1(shape: tuple[int, int]) -> None:
    before, after = singular_values(*shape, num_iterations=5)
    expected = before / 1.01
    for a, b, c in shape_coefficients(*shape, 5):
        expected = a * expected + b * expected**3 + c * expected**5
    np.testing.assert_allclose(np.sort(after), np.sort(expected), rtol=1e-9)
    typical = before >= singular_interval(*shape)[0]
    assert typical.mean() > 0.9
    assert np.abs(after[typical[np.argsort(-before)]] - 1).max() < 0.01


def test_flat_matrices_are_more_accurate_than_with_the_coefficients_of_muon() -> None:
    _, after = singular_values(48, 192, num_iterations=5)
    assert np.abs(after - 1).max() < 1e-3
    x, _ = singular_values(48, 192, num_iterations=5)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert np.abs(x - 1).max() > 0.05


def test_a_tall_matrix_has_the_transposed_factor_and_zero_stays_zero() -> None:
    matrix = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    wide = orthogonalize(matrix.mT[None], num_iterations=5)[0]
    torch.testing.assert_close(orthogonalize(matrix[None], num_iterations=5)[0], wide.mT)
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4), num_iterations=5), torch.zeros(1, 3, 4))


def test_outliers_are_cut_off_at_the_quantile_of_each_matrix() -> None:
    matrices = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 10.0, 100.0]).view(
        3, 1, 1
    )
    found = without_outliers(matrices, quantile=0.8)
    for before, after in zip(matrices.numpy(), found.numpy(), strict=True):
        threshold = np.sort(np.abs(before).ravel())[15]  # the 16th of 20
        outliers = np.sign(before) * np.maximum(np.abs(before) - threshold, 0)
        np.testing.assert_allclose(after, before - outliers, rtol=1e-6)
        assert (outliers != 0).sum() == 4
    assert torch.equal(without_outliers(matrices, quantile=1.0), matrices)


def test_root_moves_matrices_by_the_orthogonal_factor_of_the_momentum_and_the_rest_as_adamw() -> None:
    found = by_name(LAYOUT, take_steps(create("optimizers", "root", {"quantile": 0.9, "num_iterations": 8}))[0])
    adamw = by_name(LAYOUT, take_steps(create("optimizers", "adamw"))[0])
    for name in LAYOUT.names:
        if not is_matrix(name):
            torch.testing.assert_close(found[name], adamw[name], rtol=1e-6, atol=1e-7)
            continue
        thirds = 3 if ".qkv." in name else 1
        for part in range(thirds):
            w = VALUES[name].double().chunk(thirds)[part]
            momentum = torch.zeros_like(w)
            for gradient, rate in zip(GRADIENTS, RATES, strict=True):
                momentum = 0.95 * momentum + gradient[name].double().chunk(thirds)[part]
                magnitudes = momentum.abs().flatten().sort().values
                threshold = magnitudes[round(0.9 * len(magnitudes)) - 1]
                u, _, vh = torch.linalg.svd(momentum.clamp(-threshold, threshold), full_matrices=False)
                w = w * (1 - rate * DECAY) - rate * 0.2 * max(w.shape) ** 0.5 * (u @ vh)
            torch.testing.assert_close(found[name].chunk(thirds)[part], w.float(), rtol=1e-3, atol=1e-5)
