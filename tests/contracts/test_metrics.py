"""Rules for every metric, and the agreement of ours with scikit-learn."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import Tensor

from plugins.metrics.names import RECORDED_METRICS, metric_key
from plugins.protocols import Metric, PluginCard
from plugins.registry import available, create
from trainers.training.evaluation import judge

NAMES = sorted(available("metrics"))
NUM_CLASSES = 5


@pytest.fixture(params=NAMES)
def metric(request: pytest.FixtureRequest) -> Metric:
    return create("metrics", request.param)


def some_logits(num_images: int = 40, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(num_images, NUM_CLASSES, generator=generator)


def some_labels(num_images: int = 40, *, seed: int = 1) -> Tensor:
    """Labels of all classes, the first of which is the most frequent."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_images, generator=generator) ** 2 * NUM_CLASSES).long()


def certain(classes: Tensor) -> Tensor:
    """Logits that predict these classes with certainty."""
    return 50 * torch.nn.functional.one_hot(classes, NUM_CLASSES).float()


def is_better(metric: Metric, value: float, other: float) -> bool:
    return value > other if metric.direction == "maximize" else value < other


def test_it_has_a_card_and_a_direction(metric: Metric) -> None:
    assert isinstance(metric.card, PluginCard)
    assert metric.card.source
    assert metric.card.cost
    assert metric.direction in ("maximize", "minimize")


@pytest.mark.parametrize("seed", range(10))
def test_the_value_is_a_finite_float_within_its_bounds(metric: Metric, seed: int) -> None:
    value = metric.measure(some_logits(seed=seed), some_labels(seed=seed + 1))
    assert type(value) is float
    assert math.isfinite(value)
    assert 0 <= value <= 1 or not metric.is_fraction


@pytest.mark.parametrize("num_classes", [1, 2, NUM_CLASSES], ids=["one class", "missing classes", "all classes"])
def test_right_predictions_are_the_best_and_wrong_ones_the_worst(metric: Metric, num_classes: int) -> None:
    labels = torch.arange(20) % num_classes
    right = metric.measure(certain(labels), labels)
    wrong = metric.measure(certain((labels + 1) % NUM_CLASSES), labels)
    some = metric.measure(some_logits(20), labels)
    assert is_better(metric, right, some)
    assert not is_better(metric, wrong, some)
    if metric.is_fraction:
        assert right == 1.0


def test_the_order_of_the_images_does_not_matter(metric: Metric) -> None:
    logits, labels = some_logits(), some_labels()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    assert metric.measure(logits[order], labels[order]) == pytest.approx(metric.measure(logits, labels), rel=1e-12)


def test_a_single_image_has_a_value(metric: Metric) -> None:
    assert math.isfinite(metric.measure(some_logits(1), torch.tensor([3])))


@pytest.mark.parametrize("place", [(0, 0), (7, 3)])
def test_a_logit_that_is_not_a_number_gives_a_value_that_is_none(metric: Metric, place: tuple[int, int]) -> None:
    logits = some_logits()
    logits[place] = math.nan
    assert math.isnan(metric.measure(logits, some_labels()))


def test_logits_labels_and_the_global_generator_stay_as_they_were(metric: Metric) -> None:
    logits, labels, state = some_logits(), some_labels(), torch.get_rng_state()
    first = metric.measure(logits, labels)
    assert metric.measure(logits, labels) == first
    assert torch.equal(logits, some_logits())
    assert torch.equal(labels, some_labels())
    assert torch.equal(state, torch.get_rng_state())


def _balanced(labels: Tensor, predicted: Tensor) -> float:
    return float(balanced_accuracy_score(labels, predicted))


def _macro_f1(labels: Tensor, predicted: Tensor) -> float:
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize("num_classes", [1, 2, NUM_CLASSES], ids=["one class", "missing classes", "all classes"])
@pytest.mark.parametrize("num_images", [1, 3, 200])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("accuracy", accuracy_score), ("balanced-accuracy", _balanced), ("macro-f1", _macro_f1)],
)
def test_it_agrees_with_scikit_learn(
    name: str, reference: Callable[[Tensor, Tensor], float], num_images: int, num_classes: int
) -> None:
    labels = torch.tensor([random.Random(number).randrange(num_classes) for number in range(num_images)])
    logits = some_logits(num_images)
    expected = reference(labels, logits.argmax(1))
    assert create("metrics", name).measure(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_the_loss_agrees_with_scikit_learn() -> None:
    logits, labels = some_logits().double(), some_labels()
    expected = log_loss(labels, logits.softmax(1), labels=range(NUM_CLASSES))
    assert create("metrics", "loss").measure(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_predicting_the_largest_class_is_no_better_than_chance_for_balanced_accuracy() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    logits = certain(torch.zeros(100, dtype=torch.int64))
    assert create("metrics", "accuracy").measure(logits, labels) == 0.95
    assert create("metrics", "balanced-accuracy").measure(logits, labels) == 0.5
    assert create("metrics", "macro-f1").measure(logits, labels) == pytest.approx(0.95 * 2 / 1.95 / 2)


def test_an_evaluation_holds_every_recorded_metric() -> None:
    logits, labels = some_logits(), some_labels()
    found = judge(logits, labels)
    assert found.metrics == {name: create("metrics", name).measure(logits, labels) for name in RECORDED_METRICS}
    assert (found.loss, found.accuracy) == (found.metrics["loss"], found.metrics["accuracy"])


def test_keys_are_valid_names_in_mlflow_and_python() -> None:
    assert [metric_key(name) for name in RECORDED_METRICS] == [
        "val_accuracy",
        "val_balanced_accuracy",
        "val_macro_f1",
        "val_loss",
    ]
    assert metric_key("macro-f1", part="test") == "test_macro_f1"
