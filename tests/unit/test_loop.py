"""The training loop: reports, ends, and resumed trainings that equal uninterrupted ones."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.registry import create
from search_spaces.recipes import PluginChoice, Recipe
from tests.rounding import path_length, rounded
from tests.unit.training import CPU, DIGITS, TOPOLOGY, Recorder, configuration, digits, run
from trainers.config import EpochReport, TaskOutcome
from trainers.data.images import load_images
from trainers.models.building import build_model
from trainers.training import loop
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate, example_losses
from trainers.training.plan import learning_rate, num_steps, plan_epochs, steps_before
from trainers.training.row import Row

BUSY = {"augmentation": "affine", "curriculum": "cyclical", "drop_path": 0.3, "label_smoothing": 0.1}
"""A recipe that draws all random numbers that there are."""


def weights_of(outcome: TaskOutcome) -> dict[str, torch.Tensor]:
    return load_weights(outcome.checkpoints[-1].path)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_time(reports: list[EpochReport]) -> list[EpochReport]:
    return [report.model_copy(update={"wall_time_s": 0.0}) for report in reports]


class InterruptedInside(Recorder):
    """Asks to stop in an epoch: in the first one before a batch, later as soon as the epoch before is reported.

    A report follows once its checkpoint is written, at any batch of the next epoch.
    """

    def __init__(self, epoch: int, batch: int = 2) -> None:
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def should_stop(self) -> bool:
        self.asked += len(self.reports) == self.epoch - 1
        return self.asked >= (self.batch if self.epoch == 1 else 1)


def test_training_learns_and_reports_every_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    config = configuration(epochs=8, recipe={"learning_rate": 4e-3, "batch_size": 32})
    outcome = run(config, tmp_path, recorder, data=load_images(DIGITS.model_copy(update={"max_images": 400})))
    assert outcome.state == "complete"
    assert [report.epoch for report in recorder.reports] == list(range(1, 9))
    assert recorder.reports[-1].train_loss < 0.5 * recorder.reports[0].train_loss
    assert outcome.metrics["val_accuracy_best"] > 0.5


def test_metrics_are_those_of_the_reports_and_the_topology(tmp_path: Path) -> None:
    recorder = Recorder()
    metrics = run(configuration(), tmp_path, recorder).metrics
    accuracies = [report.val_accuracy for report in recorder.reports]
    assert metrics["val_accuracy"] == accuracies[-1]
    assert metrics["val_accuracy_best"] == max(accuracies)
    assert metrics["val_loss_best"] == min(report.val_loss for report in recorder.reports)
    assert metrics["train_loss"] == recorder.reports[-1].train_loss
    assert metrics["epochs"] == 3
    model = build_model(TOPOLOGY, digits().task, seed=0, device=CPU)
    assert metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert metrics["macs"] > 0
    assert metrics["throughput_images_per_s"] == rounded(3 * len(digits().train) / metrics["wall_time_s"], 3)


def test_the_reported_accuracy_is_that_of_the_saved_weights(tmp_path: Path) -> None:
    outcome = run(configuration(), tmp_path)
    data = digits()
    model = build_model(TOPOLOGY, data.task, seed=99, device=CPU)
    model.load_state_dict(weights_of(outcome))
    result = evaluate(model, data.validation, Normalizer(data.mean, data.std, CPU))
    assert result.loss == outcome.metrics["val_loss"]
    assert result.accuracy == outcome.metrics["val_accuracy"]


@pytest.mark.parametrize("recipe", [{}, BUSY, {"curriculum": "paced", "augmentation": "shift"}], ids=str)
def test_the_same_configuration_gives_the_same_weights(tmp_path: Path, recipe: dict[str, Any]) -> None:
    first = run(configuration(recipe=recipe), tmp_path / "first")
    torch.rand(7)  # what others draw from the global generator changes nothing
    assert equal(weights_of(first), weights_of(run(configuration(recipe=recipe), tmp_path / "second")))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    config = configuration(epochs=1)
    first = weights_of(run(config, tmp_path / "first"))
    second = weights_of(run(config.model_copy(update={"seed": 6}), tmp_path / "second"))
    assert not equal(first, second)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    run(configuration(epochs=1, recipe=BUSY), tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_a_training_interrupted_in_every_epoch_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    config = configuration(epochs=4, recipe=BUSY)
    straight = Recorder()
    expected = run(config, tmp_path / "straight", straight)
    for epoch in range(1, 5):
        outcome = run(config, tmp_path / "broken", InterruptedInside(epoch))
        assert outcome.reason == f"asked to end in epoch {epoch} of 4"
    resumed = Recorder()
    outcome = run(config, tmp_path / "broken", resumed)
    assert outcome.state == "complete"
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)


@pytest.mark.parametrize("end", [1, 2, 3])
def test_a_training_interrupted_after_an_epoch_goes_on_from_its_checkpoint(tmp_path: Path, end: int) -> None:
    config = configuration(epochs=4, recipe=BUSY)
    expected = run(config, tmp_path / "straight")

    first = run(config, tmp_path / "broken", InterruptedInside(end + 1))
    assert first.state == "interrupted"
    assert first.reason == f"asked to end in epoch {end + 1} of 4"
    assert first.checkpoints[-1].epoch == end
    second = Recorder()
    assert equal(weights_of(run(config, tmp_path / "broken", second)), weights_of(expected))
    assert [report.epoch for report in second.reports] == [1, 2, 3, 4]


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    config = configuration()
    first = run(config, tmp_path)
    recorder = Recorder()
    again = run(config, tmp_path, recorder)
    assert again == first
    assert recorder.asked == 0
    assert len(recorder.reports) == 3


def test_a_stopping_criterion_ends_training_with_its_reason(tmp_path: Path) -> None:
    stopping = PluginChoice(name="patience", settings={"epochs": 1, "min_delta": 100})
    outcome = run(configuration(epochs=6, stopping=stopping), tmp_path)
    assert outcome.state == "stopped"
    assert outcome.reason is not None
    assert "patience is 1" in outcome.reason
    assert outcome.metrics["epochs"] == 2
    assert run(configuration(epochs=6, stopping=stopping), tmp_path) == outcome


def test_a_criterion_that_fires_after_the_last_epoch_stops_nothing(tmp_path: Path) -> None:
    stopping = PluginChoice(name="patience", settings={"epochs": 1, "min_delta": 100})
    assert run(configuration(epochs=2, stopping=stopping), tmp_path).state == "complete"


def test_a_loss_that_is_not_finite_fails_with_its_place(tmp_path: Path) -> None:
    config = configuration(recipe={"learning_rate": 1e30, "gradient_clip": None, "warmup": 0})
    outcome = run(config, tmp_path)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")
    assert outcome.reason is not None
    assert "of epoch 1" in outcome.reason
    assert outcome.metrics == {}


def test_a_validation_loss_that_is_not_finite_fails(tmp_path: Path) -> None:
    broken = replace(digits(), mean=(math.nan,))
    outcome = run(configuration(), tmp_path, data=broken)
    assert outcome.error == "not-finite"


def test_keep_checkpoints_of_the_newest_epochs_are_left(tmp_path: Path) -> None:
    outcome = run(configuration(epochs=5), tmp_path, keep=3)
    assert [record.epoch for record in outcome.checkpoints] == [3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003", "epoch-0004", "epoch-0005"]


def test_biases_and_norms_do_not_decay() -> None:
    model = build_model(TOPOLOGY, digits().task, seed=0, device=CPU)
    layout = Row(model, Recipe()).layout
    assert all(len(shape) >= 2 for shape in layout.shapes[: layout.num_decayed])
    assert all(len(shape) < 2 for shape in layout.shapes[layout.num_decayed :])
    assert sorted(layout.names) == sorted(name for name, _ in model.named_parameters())


def test_class_token_and_position_do_not_decay() -> None:
    model = build_model("pit:1,2|1,2|1,2|2,8,8", load_images(DIGITS).task, seed=0, device=CPU)
    layout = Row(model, Recipe()).layout
    assert {"class_token", "position"} <= set(layout.names[layout.num_decayed :])


@pytest.mark.parametrize("curriculum", ["none", "cyclical", "paced"])
def test_every_curriculum_visits_as_many_images(tmp_path: Path, curriculum: str) -> None:
    recorder = Recorder()
    run(configuration(epochs=3, recipe={"curriculum": curriculum}), tmp_path, recorder)
    assert sum(report.num_images for report in recorder.reports) == 3 * len(digits().train)
    assert len(recorder.reports) == 3


def test_difficulty_is_measured_only_where_a_pass_is_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(
        loop, "example_losses", lambda *args, **given: measured.append(1) or example_losses(*args, **given)
    )
    recipe = {"curriculum": {"name": "paced", "start": 0.5, "increase": 4.0, "step": 2.0}}
    run(configuration(epochs=5, recipe=recipe), tmp_path)
    assert len(measured) == 1  # epoch 1 has no model to ask yet, epochs 3 to 5 are whole


def test_an_epoch_ends_where_the_visits_reach_the_training_set() -> None:
    passes = create("curricula", "cyclical").passes(4)
    plan = plan_epochs(passes, num_images=100, num_epochs=4)
    assert [epoch.sizes for epoch in plan] == [(25, 50, 100), (50,), (25, 50), (100,)]
    assert [steps_before(plan, epoch, 30) for epoch in (1, 2, 3, 4)] == [0, 7, 9, 12]
    assert num_steps(plan, 30) == 16


@pytest.mark.parametrize("num_images", [7, 99, 1078])
@pytest.mark.parametrize("curriculum", ["none", "cyclical", "paced"])
def test_rounding_loses_no_visit(num_images: int, curriculum: str) -> None:
    passes = create("curricula", curriculum, {} if curriculum == "none" else {"start": 0.13}).passes(9)
    plan = plan_epochs(passes, num_images=num_images, num_epochs=9)
    assert len(plan) == 9
    assert sum(epoch.num_images for epoch in plan) == 9 * num_images
    assert max(size for epoch in plan for size in epoch.sizes) <= num_images


def test_the_learning_rate_warms_up_and_then_follows_the_schedule() -> None:
    linear = create("schedules", "linear")
    plan = {"unit": 1, "total": 10, "base": 1.0, "warmup": 0.4, "num_epochs": 5}
    rates = [learning_rate(step, **plan, schedule=linear) for step in range(10)]
    assert rates == rounded([0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], 10)
    halved = create("schedules", "step", {"every": 1})  # an epoch is two steps
    rates = [learning_rate(step, **plan, schedule=halved) for step in range(10)]
    assert rates == rounded([0.2, 0.4, 0.3, 0.4, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 16, 1 / 16], 10)


def test_example_losses_belong_to_their_examples() -> None:
    data = digits()
    model = build_model(TOPOLOGY, data.task, seed=3, device=CPU)
    normalizer = Normalizer(data.mean, data.std, CPU)
    losses = example_losses(model, data.train, normalizer)
    assert losses.shape == (len(data.train),)
    num_terms = path_length(model, num_tokens=64) + len(data.train)
    assert losses.double().mean().item() == rounded(
        evaluate(model, data.train, normalizer).loss, num_terms, torch.float32
    )


def test_the_number_of_threads_allowed_does_not_change_a_small_training(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    weights = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outcome = run(configuration(epochs=2), tmp_path / str(threads))
            assert torch.get_num_threads() == threads
            weights.append(load_weights(outcome.checkpoints[-1].path))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
