"""Attempts that train much more slowly than others like them."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from orchestrator.engines.ray.placement import Node, node_elsewhere
from orchestrator.engines.ray.stragglers import Stragglers
from orchestrator.stages.searching import changes_speed
from tests.unit.training import configuration
from trainers.config import EpochReport, TrainTask
from trainers.hardware.stragglers import SpeedTable, is_straggler

USUAL = [600.0, 640.0, 560.0, 700.0, 610.0]


def test_a_straggler_is_more_than_five_deviations_below_the_median() -> None:
    median, deviation = float(np.median(USUAL)), float(median_abs_deviation(USUAL))
    assert deviation > 0.05 * median or deviation == pytest.approx(30.0)
    scale = max(deviation, 0.05 * median)
    assert not is_straggler(median - 4.99 * scale, USUAL)
    assert is_straggler(median - 5.01 * scale, USUAL)
    assert not is_straggler(10 * median, USUAL)


@pytest.mark.parametrize("num_others", [0, 1, 2])
def test_a_few_others_prove_nothing(num_others: int) -> None:
    assert not is_straggler(1.0, USUAL[:num_others])


def test_equal_speeds_leave_a_quarter_of_room() -> None:
    assert not is_straggler(76.0, [100.0] * 4)
    assert is_straggler(74.0, [100.0] * 4)


def test_one_straggler_among_the_others_hides_no_other_one() -> None:
    assert is_straggler(100.0, [*USUAL, 90.0])


def test_attempts_are_compared_with_their_kind_and_not_with_themselves() -> None:
    table = SpeedTable()
    for attempt, speed in enumerate(USUAL):
        assert table.note("large", attempt, speed, wall_time_s=60.0) is None
    assert table.note("small", 9, 100.0, wall_time_s=60.0) is None
    assert table.note("large", 9, 100.0, wall_time_s=29.0) is None
    assert table.note("large", 9, 100.0, wall_time_s=60.0) == "it trained 100 images/s, and 5 like it 610 (median)"
    assert table.note("large", 9, 600.0, wall_time_s=60.0) is None


def test_an_attempt_is_compared_with_the_newest_ones_only() -> None:
    table = SpeedTable()
    for attempt in range(400):
        table.note("large", attempt, 1000.0 if attempt < 200 else 100.0, wall_time_s=60.0)
    assert table.note("large", 400, 100.0, wall_time_s=60.0) is None
    assert table.note("large", 401, 50.0, wall_time_s=60.0) == "it trained 50 images/s, and 199 like it 100 (median)"


def test_the_node_elsewhere_is_the_largest_other_one_that_has_room() -> None:
    nodes = {"slow": Node(16, 1), "small": Node(1, 0), "medium": Node(4, 1), "large": Node(8, 1)}
    assert node_elsewhere(nodes, {"slow"}, num_cpus=2, num_gpus=0.5) == "large"
    assert node_elsewhere(nodes, {"slow", "large"}, num_cpus=2, num_gpus=0.5) == "medium"
    assert node_elsewhere(nodes, {"slow", "large"}, num_cpus=8, num_gpus=0) is None
    assert node_elsewhere({"slow": Node(16, 1)}, {"slow"}, num_cpus=1, num_gpus=0) is None


def epoch(number: int, images_per_s: float) -> EpochReport:
    return EpochReport(
        epoch=number,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        num_images=round(60 * images_per_s),
        training_macs=60 * images_per_s * 1e6,
        wall_time_s=60.0,
    )


def test_a_training_that_is_slow_on_a_node_avoids_it_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    found = Stragglers()
    task = TrainTask(configuration=configuration(), folder=Path("trial"))

    def report(key: int, node: str, number: int, speed: float) -> None:
        found.note(key, task, epoch(number, speed), kind="gpu", node=node)

    for key, speed in enumerate(USUAL):
        report(key, "good", 1, 1.0)  # the first epoch does not count
        report(key, "good", 2, speed)
    report(9, "bad", 1, 100.0)
    report(9, "bad", 2, 100.0)
    report(9, "bad", 3, 100.0)
    assert found.nodes_of(9) == {"bad"}
    assert [found.nodes_of(key) for key in range(5)] == [set()] * 5
    (record,) = caplog.records
    assert "Trial 9 is slow: it trained 100 images/s" in record.getMessage()
    report(9, "good", 3, 100.0)  # reported again after the restart
    report(9, "good", 4, 100.0)
    report(9, "good", 5, 600.0)
    assert found.nodes_of(9) == {"bad"}
    found.forget(9)
    assert found.nodes_of(9) == set()


def test_methods_that_change_the_speed_of_a_training_are_told_from_those_that_do_not() -> None:
    names = ("recipe.batch_size.from", "recipe.optimizer", "recipe.learning_rate", "recipe.weight_decay", "topology")
    assert [changes_speed(name) for name in names] == [True, True, False, False, False]
