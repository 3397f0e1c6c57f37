"""Every capability of the training step, and combinations of three: alone, in packs, and resumed."""

import itertools
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from plugins.protocols import CLASS_SIGNALS, Signal, class_key
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, EpochReport, TaskOutcome, TrainTask
from trainers.training.checkpoints import load_weights
from trainers.training.course import Course
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed

AS_VIT = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
AUTOFORMER = "autoformer:2,2|2,2|16,8"
PIT = "pit:1,1|1,2|1,2|2,4,8"

CAPABILITIES: dict[str, dict[str, Any]] = {
    "label smoothing by progress": {"label_smoothing": {"from": 0.2, "to": 0.0, "until": 0.6}},
    "drop path by progress": {"drop_path": {"from": 0.4, "to": 0.0, "until": 0.5, "shape": "step"}},
    "dropout": {"dropout": 0.2},
    "early dropout": {"dropout": {"from": 0.3, "to": 0.0, "until": 0.5, "shape": "cosine"}},
    "mixup with an end": {
        "mixing": "mixup",
        "mixing_strength": {"from": 1.0, "to": 0.0, "until": 0.6, "shape": "step"},
    },
    "cutmix with an end": {"mixing": "cutmix", "mixing_strength": {"from": 0.8, "to": 0.2, "until": 0.9}},
    "labels by attention": {"mixing": {"name": "maskmix", "labels": "attention"}, "mixing_strength": 0.7},
    "growing resolution": {"image_size": {"from": 16, "to": 32, "until": 0.5, "shape": "step"}},
    "growing batches": {"batch_size": {"from": 16, "to": 40, "until": 0.8}},
    "augmentation by progress": {"augmentation": "affine", "augmentation_strength": {"from": 0.0, "to": 1.0}},
    "sgd": {"optimizer": {"name": "sgd", "momentum": 0.9}, "learning_rate": 0.05},
    "muon": {"optimizer": "muon"},
    "sam": {"optimizer": {"name": "sam", "rho": 0.1}},
    "sophia": {"optimizer": {"name": "sophia", "period": 3}, "learning_rate": 5e-4},
    "schedule-free": {"optimizer": "schedule-free-adamw", "schedule": "constant"},
    "rates of parts": {"rates": ["blockwise", {"name": "mup", "base_width": 2}], "learning_rate": 5e-4},
    "scaled rate": {"learning_rate_scaling": "sqrt", "base_batch_size": 96},
    "paced": {"curriculum": {"name": "paced", "start": 0.5}},
    "weights by difficulty": {"curriculum": {"name": "difficulty-weights", "until": 0.7}},
    "batches by noise": {"curriculum": {"name": "noise-batches", "scale": 0.3}},
    "progressive resolution": {
        "curriculum": {"name": "progressive-resolution", "stages": 3, "multiple": 16},
        "dropout": 0.2,
    },
    "gradient harmonizing": {"loss": "gradient-harmonizing"},
    "balanced classes": {"class_weights": "balanced"},
    "maintained averages": {"ema": 0.9, "swa": 0.3},
    "averages at several rates": {"ema": {"rates": [0.5, 0.9]}, "schedule": {"name": "cosine-restarts", "period": 1}},
}
"""Recipes that each add one thing to the plain one."""

STABLE_SIGNALS = (
    "gradient_norm",
    "gradient_noise",
    "attention_entropy",
    "attention_logit",
    "log_z",
    "effective_rank",
    "layer_change",
    "neural_persistence",
    "evidence",
    "gradient_disparity",
    "sharpness",
)
"""Signals that rounding changes little; the others are shares of a few images or units."""

_NEEDS_POSITIONS = {"growing resolution", "progressive resolution", "labels by attention"}
"""Sizes that As-ViT, whose images are multiples of 32 pixels, does not take on images of 32; and attention, which has
nothing to choose from in its last grid of one token."""


def topology_of(names: tuple[str, ...]) -> str:
    if set(names) & _NEEDS_POSITIONS:
        return AUTOFORMER if len(names) % 2 else PIT
    return AS_VIT


def config_of(*names: str, epochs: int = 3, seed: int = 5, topology: str | None = None, **fields: Any) -> Configuration:
    """A configuration with some capabilities."""
    recipe: dict[str, Any] = {"batch_size": 24}
    for name in names:
        recipe |= CAPABILITIES[name]
    made = configuration(epochs=epochs, recipe=recipe, **fields)
    return made.model_copy(update={"topology": topology or topology_of(names), "seed": seed})


def three_at_a_time() -> list[tuple[str, ...]]:
    """Some combinations of three capabilities that set different fields; the same ones each time."""
    combinations = [
        names
        for names in itertools.combinations(CAPABILITIES, 3)
        if sum(len(CAPABILITIES[name]) for name in names) == len({key for name in names for key in CAPABILITIES[name]})
    ]
    return random.Random(0).sample(combinations, 9)


SINGLE = [(name,) for name in CAPABILITIES]
NUM_FAST = 4
CASES = [
    *SINGLE,
    *(
        pytest.param(names, marks=() if number < NUM_FAST else pytest.mark.slow)
        for number, names in enumerate(three_at_a_time())
    ),
]


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.slow,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def ids(names: tuple[str, ...]) -> str:
    return " + ".join(names).replace(" ", "-")


class Alone(NamedTuple):
    """A training of two epochs without interruptions, not in a pack."""

    config: Configuration
    outcome: TaskOutcome
    reports: list[EpochReport]
    weights: dict[str, torch.Tensor]


@cache
def trained_alone(names: tuple[str, ...], topology: str, *, seed: int, device: torch.device) -> Alone:
    """Trained once for all tests that compare with it."""
    config, recorder = config_of(*names, epochs=2, seed=seed, topology=topology), Recorder()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(config, Path(folder), recorder, device=device)
        assert outcome.state == "complete", outcome.reason
        return Alone(config, outcome, recorder.reports, weights_of(outcome))


@pytest.mark.parametrize("names", CASES, ids=ids)
def test_a_training_that_is_interrupted_in_every_epoch_is_the_same(
    names: tuple[str, ...], device: torch.device, tmp_path: Path
) -> None:
    expected = trained_alone(names, topology_of(names), seed=1, device=device)
    config = expected.config
    for epoch in (1, 2):
        run(config, tmp_path / "broken", InterruptedInside(epoch), device=device)
    resumed = Recorder()
    outcome = run(config, tmp_path / "broken", resumed, device=device)
    assert equal(weights_of(outcome), expected.weights)
    assert without_time(resumed.reports) == without_time(expected.reports)


@pytest.mark.parametrize("names", CASES, ids=ids)
def test_trainings_of_a_pack_are_what_they_are_alone(
    names: tuple[str, ...],
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trainers.training.packed._SMALL_STEP_MACS", 1 << 40)  # stacked, however large
    topology = topology_of(names)
    alone = [trained_alone(names, topology, seed=seed, device=device) for seed in (1, 2)]
    alone += [trained_alone((), topology, seed=3, device=device)]
    tasks = [TrainTask(configuration=one.config, folder=tmp_path / str(place)) for place, one in enumerate(alone)]
    places = [place for place, task in enumerate(tasks) if place == 0 or can_be_packed(tasks[0], task) is None]
    packable = [tasks[place] for place in places]
    assert len(packable) >= 2
    recorders = [Recorder() for _ in packable]
    outcomes = dict(train_packed(packable, digits(), recorders, device))
    assert caplog.messages == []  # such as that models cannot be stacked
    # Rounding grows over two epochs; a wrong formula or another random number is off by percents.
    tolerance = 2e-3 if device == CPU else 2e-2  # bf16
    for number, place in enumerate(places):
        assert outcomes[number].state == "complete", outcomes[number].reason
        for found, wanted in zip(recorders[number].reports, alone[place].reports, strict=True):
            assert found.train_loss == pytest.approx(wanted.train_loss, rel=tolerance)
            assert found.val_loss == pytest.approx(wanted.val_loss, rel=tolerance)
            assert (found.num_images, found.training_macs) == (wanted.num_images, wanted.training_macs)


def test_capabilities_change_the_training() -> None:
    for name in CAPABILITIES:
        if name == "maintained averages":
            continue  # they watch
        topology = topology_of((name,))
        before = trained_alone((), topology, seed=1, device=CPU)
        after = trained_alone((name,), topology, seed=1, device=CPU)
        if name == "balanced classes":
            assert after.outcome.metrics["train_loss"] != before.outcome.metrics["train_loss"]
        else:
            assert not equal(after.weights, before.weights), name


def test_costs_are_counted_as_steps_are_made(tmp_path: Path) -> None:
    plain, grown, twice = Recorder(), Recorder(), Recorder()
    run(config_of(topology=AUTOFORMER, epochs=4), tmp_path / "plain", plain)
    run(config_of("growing resolution", epochs=4), tmp_path / "grown", grown)
    run(config_of("sam", topology=AUTOFORMER, epochs=4), tmp_path / "twice", twice)
    macs = [report.training_macs for report in plain.reports]
    assert len(set(macs)) == 1
    assert [report.training_macs < macs[0] / 2 for report in grown.reports] == [True, True, False, False]
    assert grown.reports[-1].training_macs == macs[0]
    assert [report.training_macs for report in twice.reports] == [2 * one for one in macs]
    estimated = Recorder()
    run(config_of("sophia", topology=AUTOFORMER, epochs=4), tmp_path / "estimated", estimated)
    assert [report.training_macs for report in estimated.reports] == pytest.approx([4 / 3 * one for one in macs])


def test_growing_batches_visit_every_image_and_follow_the_schedule(tmp_path: Path) -> None:
    recorder = Recorder()
    run(config_of("growing batches", epochs=4), tmp_path, recorder)
    assert [report.num_images for report in recorder.reports] == [len(digits().train)] * 4
    rates = [report.learning_rate for report in recorder.reports]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]


@pytest.mark.parametrize(("rule", "power"), [("linear", 1.0), ("sqrt", 0.5)])
def test_the_learning_rate_follows_the_batch_size(rule: str, power: float) -> None:
    plain, scaled = config_of("growing batches", epochs=4), config_of("growing batches", epochs=4)
    recipe = scaled.recipe.model_copy(update={"learning_rate_scaling": rule, "base_batch_size": 20})
    scaled = scaled.model_copy(update={"recipe": recipe})
    model = torch.nn.Linear(1, 1)
    before, after = (
        list(Course.lay_out(config, digits(), model, CPU).steps(1, None, [])) for config in (plain, scaled)
    )
    sizes = {step.settings.batch_size for step in after}
    assert len(sizes) > 2
    for one, other in zip(before, after, strict=True):
        ratio = other.settings.learning_rate / one.settings.learning_rate
        assert ratio == pytest.approx((other.settings.batch_size / 20) ** power)


def test_averages_that_training_maintains_are_kept_with_each_checkpoint(tmp_path: Path) -> None:
    outcome = run(config_of("maintained averages"), tmp_path)
    path = outcome.checkpoints[-1].path
    weights, ema, swa = load_weights(path), load_weights(path, average="ema"), load_weights(path, average="swa")
    name = next(key for key, value in weights.items() if value.is_floating_point())
    assert weights.keys() == ema.keys() == swa.keys()
    assert not torch.equal(weights[name], ema[name])
    assert not torch.equal(weights[name], swa[name])


@pytest.fixture
def few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short power iteration, which takes most of the time of the signals."""
    monkeypatch.setattr("trainers.training.gradient_signals.NUM_PRODUCTS", 2)


@pytest.mark.usefixtures("few_products")
@pytest.mark.parametrize("topology", [AS_VIT, AUTOFORMER, PIT])
def test_signals_are_measured_if_they_are_asked_for(tmp_path: Path, topology: str) -> None:
    asked, silent = Recorder(), Recorder()
    config = config_of(topology=topology)
    run(config, tmp_path / "asked", asked, signals=tuple(Signal))
    run(config, tmp_path / "silent", silent)
    only_with_noise = {Signal.MEMORIZED_LABELS}
    names = {signal.value for signal in set(Signal) - CLASS_SIGNALS - only_with_noise}
    names |= {class_key(signal, number) for signal in CLASS_SIGNALS for number in range(10)}
    assert set(asked.reports[0].signals) == names - {"weight_persistence"}  # there is no change before the first
    assert all(set(report.signals) == names for report in asked.reports[1:])
    for report in asked.reports:
        assert report.signals["gradient_norm"] > 0
        assert report.signals["gradient_noise"] > 0
        assert 0 <= report.signals["changed_predictions"] <= 1
        assert -1 <= report.signals.get("weight_persistence", 0.0) <= 1
        assert 0 < report.signals["attention_entropy"] <= 1 + 1e-6
        assert report.signals["attention_logit"] > 0
        assert 0 <= report.signals["dead_units"] <= 1
        assert 0 <= report.signals["dormant_units"] <= 1
        assert report.signals["log_z"] > 0
        assert report.signals["effective_rank"] >= 1
        assert 0 <= report.signals["changed_training_predictions"] <= 1
        assert 0 <= report.signals["training_accuracy"] <= 1
        assert report.signals["layer_change"] > 0
        assert 0 < report.signals["neural_persistence"] < 1
        assert report.signals["evidence"] < 1
        assert report.signals["gradient_disparity"] > 0
        assert report.signals["sharpness"] != 0
    assert all(report.signals == {} for report in silent.reports)
    # Watching changes nothing.
    watched = [report.model_copy(update={"signals": {}}) for report in without_time(asked.reports)]
    assert watched == without_time(silent.reports)


@pytest.mark.usefixtures("few_products")
def test_signals_are_the_same_after_an_interruption_and_in_a_pack(tmp_path: Path) -> None:
    config, straight, resumed = config_of(), Recorder(), Recorder()
    every = tuple(Signal)
    run(config, tmp_path / "straight", straight, signals=every)
    for epoch in (2, 3):
        run(config, tmp_path / "broken", InterruptedInside(epoch), signals=every)
    run(config, tmp_path / "broken", resumed, signals=every)
    assert without_time(resumed.reports) == without_time(straight.reports)
    recorders = [Recorder(), Recorder()]
    tasks = [
        TrainTask(configuration=config, folder=tmp_path / "first", signals=every),
        TrainTask(configuration=config_of(seed=6), folder=tmp_path / "second"),
    ]
    assert {outcome.state for _, outcome in train_packed(tasks, digits(), recorders, CPU)} == {"complete"}
    for found, wanted in zip(recorders[0].reports, straight.reports, strict=True):
        assert found.signals.keys() == wanted.signals.keys()
        for name in STABLE_SIGNALS:
            assert found.signals[name] == pytest.approx(wanted.signals[name], rel=2e-3)
    assert all(report.signals == {} for report in recorders[1].reports)
