"""Imbalanced classes: what the largest one reaches alone, and weights in the loss."""

import math
from pathlib import Path

import pytest
import torch

from orchestrator.cli.tables import leaderboard
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice, Recipe, parse_recipe_space
from tests.unit.training import Recorder, configuration, digits, run
from trainers.training.baseline import blind_evaluation

TRAIN = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
VALIDATION = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_the_largest_class_alone_reaches_its_share() -> None:
    found = blind_evaluation(TRAIN, VALIDATION, num_classes=3)
    assert found.accuracy == 0.6
    assert found.metrics["balanced-accuracy"] == pytest.approx(1 / 3)
    assert found.metrics["macro-f1"] == pytest.approx(2 * 6 / 16 / 3)


def test_the_loss_without_images_is_the_cross_entropy_of_the_frequencies() -> None:
    shares = [81 / 103, 16 / 103, 6 / 103]
    expected = -sum(math.log(shares[label]) for label in VALIDATION.tolist()) / len(VALIDATION)
    assert blind_evaluation(TRAIN, VALIDATION, num_classes=3).loss == pytest.approx(expected)


def test_a_class_without_training_images_leaves_the_loss_finite() -> None:
    found = blind_evaluation(torch.zeros(5, dtype=torch.int64), torch.tensor([0, 3]), num_classes=4)
    assert found.accuracy == 0.5
    assert math.isfinite(found.loss)


def test_class_weights_can_be_searched_with_and_without() -> None:
    space = parse_recipe_space({"class_weights": ["none", "balanced"]})
    assert space.base.class_weights is None
    assert space.decode({"recipe.class_weights": "none"}) == Recipe()
    assert space.decode({"recipe.class_weights": "balanced"}).class_weights == "balanced"
    assert parse_recipe_space({"class_weights": [None, "balanced"]}).base.class_weights is None
    with pytest.raises(ValueError, match="class_weights"):
        parse_recipe_space({"class_weights": ["none", "inverse"]})


def test_the_balanced_order_trains_on_as_many_images(tmp_path: Path) -> None:
    plain, balanced = Recorder(), Recorder()
    run(configuration(epochs=1), tmp_path / "plain", plain)
    run(configuration(epochs=1, recipe={"curriculum": "balanced"}), tmp_path / "balanced", balanced)
    assert balanced.reports[0].num_images == plain.reports[0].num_images == len(digits().train)
    assert balanced.reports[0].train_loss != plain.reports[0].train_loss


def test_the_leaderboard_ends_with_the_largest_class() -> None:
    rows = [{"trial": 1, "val_accuracy": 0.9, "val_loss": 0.5, "parameters": 10, "wall_time_s": 1.0, "topology": "t"}]
    baseline = {"val_accuracy": 0.111, "val_loss": 2.3026}
    assert str(leaderboard(rows, ACCURACY, baseline=baseline)).endswith("largest class alone: accuracy 11.1 %")
    loss = DecidingMetric.of(PluginChoice(name="loss"))
    assert str(leaderboard(rows, loss, ranked_by="val_loss", baseline=baseline)).endswith("alone: loss 2.3026")
    assert "largest class" not in str(leaderboard(rows))
