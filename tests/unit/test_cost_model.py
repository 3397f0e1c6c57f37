"""The learned model of cost, its error, and the time left in a search that it gives."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from orchestrator.engines.cost_model import (
    MIN_FITTED,
    MOST_FITTED,
    ObservedCost,
    TrainingShape,
    fit_epoch_s,
    fit_memory_gib,
    prediction_error,
    usual_epoch_s,
)
from orchestrator.engines.interfaces import Objective, Search
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.stages.time_left import SearchTime, cost_error, observe, on_newest_device
from orchestrator.store.records import TrialRecord
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from tests.fakes import make_trial
from tests.unit.training import Recorder, digits, run
from tests.unit.training import configuration as training_of_digits
from trainers.config import Configuration, DataConfig, EpochReport, TaskOutcome, TrainTask
from trainers.hardware.peak_memory import MEMORY_PEAK, with_peak
from trainers.models.building import topology_costs

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)
SMALL = "as-vit:4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|16,8"
LARGE = "as-vit:4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,2|16,16"
NUM_IMAGES = 100


def configuration(topology: str = SMALL, *, epochs: int = 3, **recipe) -> Configuration:
    return Configuration(
        data=DataConfig(source="digits"),
        topology=topology,
        recipe=Recipe.model_validate({"batch_size": 10, **recipe}),
        epochs=epochs,
        seed=0,
    )


def random_shapes(count: int, *, seed: int = 0) -> list[TrainingShape]:
    rng = random.Random(seed)
    shapes = []
    for _ in range(count):
        macs, num_images = 10 ** rng.uniform(5, 7), rng.choice((1000.0, 5000.0))
        shapes.append(
            TrainingShape(
                parameters=10 ** rng.uniform(4, 6.5),
                macs=macs,
                depth=rng.randint(2, 12),
                batch_size=float(rng.choice((16, 64, 256))),
                num_images=num_images,
                epoch_macs=3 * macs * num_images,
                pack_size=rng.choice((1, 4)),
            )
        )
    return shapes


# --- the model ---


def test_the_factors_of_work_are_found_again_for_a_larger_network_than_any_seen() -> None:
    def seconds(shape: TrainingShape) -> float:
        steps = -(-shape.num_images // shape.batch_size)
        return shape.pack_size * (
            shape.epoch_macs / 8e9 + 2e-4 * steps * shape.depth + 3e-10 * steps * shape.parameters
        )

    model = fit_epoch_s([ObservedCost(shape, seconds(shape)) for shape in random_shapes(30)])
    assert model is not None
    larger = TrainingShape(5e7, 1e9, 24, 32.0, 50_000.0, 1.5e14)
    assert model.predict(larger) == pytest.approx(seconds(larger), rel=1e-6)


def test_the_factors_of_memory_are_found_again() -> None:
    def gib(shape: TrainingShape) -> float:
        return 0.4 + shape.pack_size * (16 * shape.parameters + 40 * shape.batch_size * shape.activations) / 2**30

    shapes = random_shapes(20)
    model = fit_memory_gib([ObservedCost(shape, gib(shape)) for shape in shapes])
    assert model is not None
    assert [model.predict(shape) for shape in shapes] == pytest.approx([gib(shape) for shape in shapes], rel=1e-6)


def test_few_trainings_scale_the_closed_form() -> None:
    shapes = random_shapes(MIN_FITTED - 1)
    rates = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 100.0]
    observed = [ObservedCost(shape, rate * usual_epoch_s(shape)) for shape, rate in zip(shapes, rates, strict=True)]
    model = fit_epoch_s(observed)
    assert model is not None
    assert model.predict(shapes[0]) == pytest.approx(5.0 * usual_epoch_s(shapes[0]))


def test_the_closed_form_counts_macs_and_steps_of_every_model_of_a_pack() -> None:
    shape = TrainingShape(1e5, 1e6, 4, 64.0, 1000.0, 3e9, pack_size=2)
    assert usual_epoch_s(shape) == pytest.approx(2 * (3e9 / 15e9 + 16 * 0.008))


def test_noisy_trainings_never_give_a_negative_cost() -> None:
    rng = random.Random(1)
    shapes = random_shapes(40, seed=1)
    model = fit_epoch_s([ObservedCost(shape, shape.epoch_macs / 1e10 * rng.uniform(0.2, 5)) for shape in shapes])
    assert model is not None
    assert min(model.factors) >= 0
    assert all(model.predict(shape) > 0 for shape in random_shapes(40, seed=2))


def test_nothing_is_predicted_from_nothing() -> None:
    shape = random_shapes(1)[0]
    assert fit_epoch_s([]) is None
    assert fit_epoch_s([ObservedCost(shape, 0.0)]) is None
    assert prediction_error([ObservedCost(shape, 1.0)]) is None


def test_the_error_is_that_of_predictions_from_earlier_trainings() -> None:
    shapes = random_shapes(3)
    units = [usual_epoch_s(shape) for shape in shapes]
    observed = [
        ObservedCost(shape, unit * rate) for shape, unit, rate in zip(shapes, units, (1.0, 2.0, 1.5), strict=True)
    ]
    # The second is predicted at rate 1 instead of 2, the third at the median rate 1.5.
    assert prediction_error(observed) == (pytest.approx(0.25), 2)


def test_a_shape_holds_the_closed_forms_of_its_topology() -> None:
    shape = TrainingShape.of(configuration(LARGE), TASK, num_images=NUM_IMAGES)
    costs = topology_costs(LARGE, TASK)
    assert (shape.parameters, shape.macs, shape.depth, shape.batch_size) == (costs.parameters, costs.macs, 5, 10)
    assert shape.epoch_macs == 3 * costs.macs * NUM_IMAGES
    twice = TrainingShape.of(configuration(LARGE, optimizer="sam"), TASK, num_images=NUM_IMAGES)
    assert twice.epoch_macs == 2 * shape.epoch_macs


@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [
        ({"loss": "mutual"}, 1e-6),
        ({"loss": {"name": "mutual", "together": True}}, 1e-6),
        ({"optimizer": "sophia"}, 1e-6),
        ({"image_size": {"from": 16, "to": 32, "step": 8}}, 0.1),  # a training of few steps
        ({"image_size": 16}, 1e-6),
    ],
    ids=str,
)
def test_planned_work_is_that_of_the_training(recipe: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    config = training_of_digits(epochs=2, recipe=recipe).model_copy(update={"topology": "autoformer:2,2|2,2|16,8"})
    recorder = Recorder()
    run(config, tmp_path, recorder)
    planned = TrainingShape.of(config, digits().task, num_images=len(digits().train)).epoch_macs
    assert planned == pytest.approx(fmean(report.training_macs for report in recorder.reports), rel=tolerance)


# --- the time left ---


def search_of(num_trials: int, *, topologies: Sequence[str] = (SMALL,), epochs: int | None = 3) -> Search:
    def make_task(trial: TrialRecord) -> TrainTask:
        topology = topologies[trial.number % len(topologies)]
        return TrainTask(configuration=configuration(topology, epochs=epochs or 1), folder=Path("unused"))

    return Search(
        num_trials=num_trials,
        suggester=None,
        make_task=make_task,
        objectives=(Objective("val_accuracy", "maximize"),),
        epochs=epochs,
        sizes=lambda: [configuration(topology) for topology in topologies],
    )


def report(epoch: int, seconds: float) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        train_loss=1.0,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        num_images=NUM_IMAGES,
        wall_time_s=seconds,
    )


def ended(number: int, *, seconds: float = 3.0, epochs: float = 3.0, **fields) -> TrialRecord:
    metrics = {
        "epochs": epochs,
        "wall_time_s": seconds,
        "throughput_images_per_s": epochs * NUM_IMAGES / seconds,
    }
    return make_trial(number, metrics=metrics, **{"started_at": 1000.0, "ended_at": 1000.0 + seconds, **fields})


def test_the_time_left_is_known_after_the_first_epoch() -> None:
    left = SearchTime(search_of(4), TASK)
    assert left.left_s is None
    left.epoch_ended(make_trial(0), report(1, seconds=2.0))
    assert left.left_s == pytest.approx((2 + 3 * 3) * 2.0)
    left.epoch_ended(make_trial(0), report(2, seconds=2.0))
    assert left.left_s == pytest.approx((1 + 3 * 3) * 2.0)


def test_a_larger_network_is_expected_to_take_longer() -> None:
    left = SearchTime(search_of(2, topologies=(SMALL, LARGE)), TASK)
    left.epoch_ended(make_trial(0), report(3, seconds=1.0))
    large, small = (
        usual_epoch_s(TrainingShape.of(configuration(topology), TASK, num_images=NUM_IMAGES))
        for topology in (LARGE, SMALL)
    )
    ratio = large / small
    assert ratio > 1
    assert left.left_s == pytest.approx(3 * (1 + ratio) / 2)
    left.epoch_ended(make_trial(1), report(1, seconds=ratio))
    assert left.left_s == pytest.approx(2 * ratio / 2)  # two of them run at a time, one of which has no epoch left


def test_concurrent_trials_share_the_work_that_is_left() -> None:
    left = SearchTime(search_of(4), TASK)
    for number in (0, 1):
        left.epoch_ended(make_trial(number), report(1, seconds=2.0))
    assert left.left_s == pytest.approx((2 * 2 + 2 * 3) * 2.0 / 2)


def test_trials_that_ended_early_and_time_outside_of_epochs_count() -> None:
    left = SearchTime(search_of(3), TASK)
    left.epoch_ended(make_trial(0), report(1, seconds=2.0))
    left.trial_ended(ended(0, seconds=2.0, epochs=1.0, started_at=1000.0, ended_at=1003.0))
    assert left.left_s == pytest.approx(2 * 1 * 2.0 * 1.5)


def test_a_resumed_search_knows_its_time_from_earlier_trials() -> None:
    known = [ended(0, seconds=6.0), make_trial(1, state="waiting", ended_at=None)]
    left = SearchTime(search_of(3), TASK, known)
    assert left.left_s == pytest.approx(2 * 3 * 2.0)
    for epoch in (1, 2):  # reported again by the resumed training
        left.epoch_ended(make_trial(1), report(epoch, seconds=2.0))
    assert left.left_s == pytest.approx((1 + 3) * 2.0)
    left.trial_ended(ended(1, seconds=6.0, started_at=0.0, ended_at=5000.0))  # it paused, which is no overhead
    assert left.left_s == pytest.approx(3 * 2.0)


def test_the_estimate_follows_the_newest_trials_of_a_long_search() -> None:
    left = SearchTime(search_of(1000), TASK)
    for number in range(2 * MOST_FITTED):
        seconds = 50.0 if number < MOST_FITTED else 2.0
        left.epoch_ended(make_trial(number), report(3, seconds=seconds))
        left.trial_ended(ended(number, ended_at=1000.0 + seconds))
    assert left.left_s == pytest.approx((1000 - 2 * MOST_FITTED) * 3 * 2.0)
    assert not left.is_over


def test_a_search_teaches_the_execution_what_a_training_costs() -> None:
    costs = TrainingCosts()
    shape = TrainingShape.of(configuration(), TASK, num_images=NUM_IMAGES)
    assert costs.epoch_s(shape) == usual_epoch_s(shape)  # nothing is known yet
    left = SearchTime(search_of(3), TASK, [ended(0, seconds=6.0)], costs=costs)
    assert costs.epoch_s(shape) == pytest.approx(2.0)
    for epoch, seconds in ((1, 50.0), (2, 4.0), (3, 4.0)):  # the first epoch also compiles
        left.epoch_ended(make_trial(1), report(epoch, seconds=seconds))
    left.trial_ended(ended(1, seconds=58.0))
    assert costs.epoch_s(shape) == pytest.approx((2.0 + 4.0) / 2)  # each training counts once
    other = SearchTime(search_of(3), TASK, costs=costs)
    assert other.left_s is None  # nothing of this search is known


@pytest.mark.parametrize("recipe", [{"loss": "mutual"}, {"curriculum": "progressive-tokenization"}], ids=str)
def test_a_training_is_expected_to_take_the_time_of_an_equal_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    config, recorder = training_of_digits(epochs=2, recipe=recipe), Recorder()
    run(config, tmp_path, recorder)
    task = TrainTask(configuration=config, folder=tmp_path)
    search = replace(search_of(2, epochs=2), make_task=lambda _: task, sizes=lambda: [config])
    costs = TrainingCosts()
    left = SearchTime(search, digits().task, costs=costs)
    for told in recorder.reports:
        left.epoch_ended(make_trial(0), told.model_copy(update={"wall_time_s": 10.0}))
    assert costs.training_s([config]) == pytest.approx(2 * 10.0)
    assert left.left_s == pytest.approx(2 * 10.0)


def test_nothing_is_left_of_a_search_that_is_over() -> None:
    left = SearchTime(search_of(1), TASK)
    left.epoch_ended(make_trial(0), report(3, seconds=2.0))
    left.trial_ended(ended(0))
    assert left.is_over
    assert left.left_s == 0.0


def test_a_search_without_epochs_has_no_such_estimate() -> None:
    assert SearchTime(search_of(3, epochs=None), TASK).left_s is None


# --- its error over a stage ---


def test_the_error_of_a_stage_follows_the_order_in_which_trials_ended() -> None:
    trials = [
        ended(0, seconds=6.0, ended_at=3.0),
        ended(1, seconds=3.0, ended_at=1.0),
        ended(2, seconds=3.0, ended_at=2.0),
    ]
    found = cost_error(trials, lambda _: configuration(), TASK)
    assert found is not None
    assert (found.num_trainings, found.median_error) == (2, pytest.approx(0.25))  # 0 for trial 2, 1/2 for trial 0


def test_trials_without_a_time_teach_nothing() -> None:
    assert observe(configuration(), make_trial(0, metrics={"val_accuracy": 0.5}), TASK) is None
    assert observe(configuration(), ended(0, state="failed"), TASK) is None
    assert cost_error([ended(0)], lambda _: configuration(), TASK) is None


def test_only_trainings_on_the_device_of_the_newest_count() -> None:
    fast = [ended(number, ended_at=float(number), details={"host": "a", "device": "cpu"}) for number in range(3)]
    slow = [ended(9, seconds=90.0, ended_at=1.5, details={"host": "b", "device": "cpu"})]
    assert [trial.number for trial in on_newest_device([*slow, *fast])] == [0, 1, 2]
    found = cost_error([*slow, *fast], lambda _: configuration(), TASK)
    assert found is not None
    assert found.median_error == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_the_memory_is_told_for_trials_on_a_gpu() -> None:
    trials = [ended(number, ended_at=float(number)) for number in range(3)]
    for trial, gib in zip(trials, (1.0, 1.0, 2.0), strict=True):
        trial.metrics[MEMORY_PEAK] = gib
    found = cost_error(trials, lambda _: configuration(), TASK)
    assert found is not None
    assert found.memory_error == pytest.approx(0.25)  # 0 for trial 1, 1/2 for trial 2


def test_the_peak_of_a_training_is_one_of_its_metrics_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    outcome = TaskOutcome(state="complete", metrics={"val_accuracy": 0.5})
    assert with_peak(outcome, torch.device("cuda")).metrics == {"val_accuracy": 0.5, MEMORY_PEAK: 3.0}
    assert with_peak(outcome, torch.device("cpu")) == outcome
    failed = TaskOutcome(state="failed", reason="out of memory")
    assert with_peak(failed, torch.device("cuda")) == failed
