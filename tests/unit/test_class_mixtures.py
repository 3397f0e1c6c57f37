"""Mixtures of classes by validation losses and errors, the signals they read, and batches that grow with the noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from plugins.curricula.class_errors import mixture_of_errors
from plugins.curricula.mixtures import counts_of_shares
from plugins.curricula.noise_batches import grown_batch_size
from plugins.curricula.progressive_resolution import stage_size
from plugins.curricula.skill_it import mixture_of_losses, parse_pairs
from plugins.losses.gradient_harmonizing import harmonizing_weights
from plugins.protocols import LossContext, OrderContext, Signal, class_key
from plugins.registry import PluginSettingsError, create
from search_spaces.recipes import PluginChoice
from tests.steps import now, step_settings
from trainers.training.signal_arithmetic import class_means

LABELS = torch.tensor([0] * 60 + [1] * 30 + [3] * 10)


def class_counts(name: str, past: Sequence[Mapping[str, float]], size: int = 100, **settings: Any) -> list[int]:
    """Number of visits of the classes 0, 1 and 3."""
    context = OrderContext(
        now=replace(now(0.5), past=past),
        labels=LABELS,
        difficulty=None,
        generator=torch.Generator().manual_seed(0),
    )
    visits = create("curricula", name, settings).select(size, context).indices
    return torch.bincount(LABELS[visits], minlength=4)[[0, 1, 3]].tolist()


def losses(*values: float) -> dict[str, float]:
    return {class_key(Signal.CLASS_VAL_LOSS, label): value for label, value in zip((0, 1, 3), values, strict=True)}


def test_the_mixture_of_losses_is_that_of_the_formula() -> None:
    recent = torch.tensor([[1.0, 2.0, 0.5], [0.5, 1.0, 0.5]], dtype=torch.float64)
    graph = torch.eye(3, dtype=torch.float64)
    graph[0, 2] = graph[2, 0] = 0.5
    # Sums of losses are 1.5, 3 and 1, so A times them is 2, 3 and 1.75.
    weights = [math.exp(0.4 * value) for value in (2.0, 3.0, 1.75)]
    expected = [weight / sum(weights) for weight in weights]
    assert mixture_of_losses(recent, graph, rate=0.4).tolist() == pytest.approx(expected, abs=1e-6)


def test_skill_it_visits_classes_by_their_recent_losses() -> None:
    assert sorted(class_counts("skill-it", [])) == [33, 33, 34]
    past = [losses(9.0, 0.0, 0.0), losses(1.0, 2.0, 0.5), losses(0.5, 1.0, 0.5)]
    weights = [math.exp(0.4 * value) for value in (1.5, 3.0, 1.0)]
    expected = [100 * weight / sum(weights) for weight in weights]
    found = class_counts("skill-it", past, rate=0.4, window=2)
    assert sum(found) == 100
    assert all(abs(count - share) < 1 for count, share in zip(found, expected, strict=True))
    related = class_counts("skill-it", past, rate=0.4, window=2, related="0-3")
    assert related[0] + related[2] > found[0] + found[2]


def test_class_errors_visits_classes_by_share_and_error() -> None:
    errors, shares = torch.tensor([0.1, 0.4, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    expected = [0.75 * 0.6 + 0.25 * 0.1, 0.75 * 0.3 + 0.25 * 0.4, 0.75 * 0.1 + 0.25 * 0.5]
    assert mixture_of_errors(errors, shares, strength=0.25).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(mixture_of_errors(torch.zeros(3), shares, strength=0.25), shares)
    assert class_counts("class-errors", []) == [60, 30, 10]
    past = [{class_key(Signal.CLASS_VAL_ERROR, label): value for label, value in ((0, 0.1), (1, 0.4), (3, 0.5))}]
    assert class_counts("class-errors", past, size=200, strength=0.25) == [95, 65, 40]


def test_counts_add_up_and_remainders_are_shared_out_at_random() -> None:
    shares = torch.tensor([1 / 3] * 3, dtype=torch.float64)
    found = {tuple(counts_of_shares(4, shares, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert found == {(2, 1, 1), (1, 2, 1), (1, 1, 2)}


def test_related_classes_are_written_as_pairs() -> None:
    assert parse_pairs("3-5, 1 - 9") == ((3, 5), (1, 9))
    for wrong in ("3", "3-3", "a-b"):
        with pytest.raises(PluginSettingsError, match="must list pairs of different class numbers"):
            create("curricula", "skill-it", {"related": wrong})
    with pytest.raises(ValueError, match="must name classes with training images, but got class 2"):
        class_counts("skill-it", [], related="0-2")


def test_class_signals_are_means_over_the_images_of_a_class() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = class_means(logits, torch.tensor([0, 0, 1]))
    first, second, third = (math.log(2 + math.exp(value)) for value in (2.0, 1.0, 1.0))
    expected = {0: ((first - 2) + second) / 2, 1: third - 1}
    assert found[Signal.CLASS_VAL_LOSS] == pytest.approx(expected, abs=1e-6)
    assert found[Signal.CLASS_VAL_ERROR] == {0: 0.5, 1: 0.0}


# --- batches, image sizes and losses ---


def test_batches_grow_to_the_noise_scale_and_never_shrink() -> None:
    assert grown_batch_size([], first=16, largest=128, scale=1.0) == 16
    assert grown_batch_size([3.0], first=16, largest=128, scale=1.0) == 48
    assert grown_batch_size([3.0, 0.2], first=16, largest=128, scale=1.0) == 48
    assert grown_batch_size([3.0, None, 5.0], first=16, largest=128, scale=0.5) == 60
    assert grown_batch_size([30.0], first=16, largest=128, scale=1.0) == 128
    method = create("curricula", "noise-batches")
    settings = step_settings(batch_size=64)
    past = ({"gradient_noise": 2.0},)
    assert method.adjust(now(0.0), settings).batch_size == 16
    assert method.adjust(replace(now(0.5), past=past), settings).batch_size == 32


def test_sizes_and_regularisation_grow_in_stages() -> None:
    assert [stage_size(stage, stages=4, first=128, last=300, multiple=1) for stage in range(4)] == [128, 185, 243, 300]
    assert [stage_size(stage, stages=4, first=16, last=36, multiple=8) for stage in range(4)] == [16, 24, 32, 36]
    method = create("curricula", "progressive-resolution", {"stages": 3, "regularisation": 0.2, "multiple": 8})
    settings = step_settings(image_size=32, dropout=0.5, mixing=PluginChoice(name="mixup"))
    adjusted = [method.adjust(now(progress), settings) for progress in (0.0, 0.34, 0.99)]
    assert [one.image_size for one in adjusted] == [16, 24, 32]
    assert [one.dropout for one in adjusted] == pytest.approx([0.1, 0.3, 0.5])
    assert [one.augmentation_strength for one in adjusted] == pytest.approx([0.2, 0.6, 1.0])
    assert [one.mixing_strength for one in adjusted] == pytest.approx([0.2, 0.6, 1.0])
    assert method.image_sizes(32) == (16, 24, 32)
    with pytest.raises(PluginSettingsError, match="nothing would change"):
        create("curricula", "progressive-resolution", {"start": 1.0, "regularisation": 1.0})


def test_harmonizing_weights_are_inverse_to_the_density_of_gradient_norms() -> None:
    norms = torch.tensor([0.05, 0.01, 0.09, 0.55, 1.0, 0.95])
    found = harmonizing_weights(norms, bins=10)
    # Three bins are not empty, with 3, 1 and 2 of 6 images.
    assert found.tolist() == pytest.approx([6 / 9, 6 / 9, 6 / 9, 2.0, 1.0, 1.0], abs=1e-6)
    assert found.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_the_harmonized_loss_weights_cross_entropies() -> None:
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 0])
    context = LossContext(labels=labels, now=now(0.5), indices=torch.arange(3), class_counts=torch.tensor([3.0, 0.0]))
    found = create("losses", "gradient-harmonizing").loss(logits, torch.eye(2)[labels], context)
    easy, hard = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    assert found.tolist() == pytest.approx([0.75 * easy, 0.75 * easy, 1.5 * hard], abs=1e-6)
