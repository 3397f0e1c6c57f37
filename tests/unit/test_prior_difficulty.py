"""Difficulties of images that are measured before training: their values, their place on disk, and their cost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plugins.protocols import PriorDifficulty
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.config import TrainTask
from trainers.data.cache_settings import CACHE_VARIABLE
from trainers.models.building import build_model, topology_costs
from trainers.training import prior_difficulty
from trainers.training.evaluation import Normalizer
from trainers.training.packed import train_packed
from trainers.training.prior_difficulty import StoppedError, error_norms, gradient_norms, measure_prior_difficulty
from trainers.training.row import Row
from trainers.training.set_up import training_images

PIT = "pit:1,1|1,1|1,1|2,8,8"
PRUNED = {"name": "pruning", "keep": 0.5, "difficulty_epochs": 1, "difficulty_runs": 2, "difficulty_topology": PIT}
NEEDED = PriorDifficulty(kind="el2n", topology=PIT, epochs=1, runs=2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder."""
    monkeypatch.setenv(CACHE_VARIABLE, f"1.0:{tmp_path / 'cache'}")
    return tmp_path / "cache" / "difficulties"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the trainings that measure difficulties, as they are run."""
    seeds: list[int] = []
    measure = prior_difficulty._measure

    def watched(configuration: Any, *arguments: Any) -> Any:
        seeds.append(configuration.seed)
        return measure(configuration, *arguments)

    monkeypatch.setattr(prior_difficulty, "_measure", watched)
    return seeds


def measured(folder: Path, needed: PriorDifficulty = NEEDED) -> torch.Tensor:
    source = training_images(digits(), CPU)
    return measure_prior_difficulty(needed, configuration(), digits(), source, folder=folder, should_stop=lambda: False)


# --- values ---


def test_el2n_is_the_norm_of_the_error() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = error_norms(logits, torch.tensor([0, 2]))
    # softmax(2, 0, 1) = (0.66524096, 0.09003057, 0.24472847)
    assert found[0].item() == pytest.approx((0.33475904**2 + 0.09003057**2 + 0.24472847**2) ** 0.5, abs=1e-6)
    assert found[1].item() == pytest.approx((1 / 9 + 1 / 9 + 4 / 9) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("topology", [TOPOLOGY, "autoformer:2,2|2,2|16,8", PIT])
def test_grand_is_the_norm_of_each_image_s_gradient(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, normalizer = digits(), Normalizer(digits().mean, digits().std, CPU)
    row = Row(build_model(topology, data.task, seed=3, device=CPU), configuration().recipe)
    row.model.eval()
    monkeypatch.setattr(prior_difficulty, "_NUMBERS_AT_ONCE", 16 * row.layout.num_numbers)
    found = gradient_norms(row, data, normalizer)
    assert found.shape == (len(data.train),)
    for index in (0, 17, 89):
        image, label = normalizer(data.train.images[index][None]), data.train.labels[index][None]
        gradients = torch.autograd.grad(F.cross_entropy(row.model(image), label), row.parameters())
        expected = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
        assert found[index].item() == pytest.approx(expected, rel=1e-4)


def test_the_difficulty_is_the_mean_of_several_trainings(cache: Path, tmp_path: Path) -> None:
    both = measured(tmp_path / "both")
    one = measured(tmp_path / "one", PriorDifficulty(kind="el2n", topology=PIT, epochs=1, runs=1))
    assert both.dtype == torch.float64
    assert not torch.equal(both, one)
    assert torch.all((both > 0) & (both < 2**0.5))
    assert len(list(cache.glob("*.safetensors"))) == 2


# --- kept on disk ---


def test_trainings_share_one_measurement(cache: Path, trained: list[int], tmp_path: Path) -> None:
    first = measured(tmp_path / "first")
    assert trained == [0, 1]
    assert torch.equal(measured(tmp_path / "second"), first)
    more = PriorDifficulty(kind="el2n", topology=PIT, epochs=1, runs=3)
    measured(tmp_path / "third", more)
    assert trained == [0, 1, 2]
    for file in cache.glob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert torch.equal(measured(tmp_path / "first"), first)
    assert trained == [0, 1, 2]
    assert torch.equal(measured(tmp_path / "fourth"), first)
    assert trained == [0, 1, 2, 0, 1]


def test_a_measurement_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, f"0.0:{tmp_path / 'cache'}")
    assert measured(tmp_path / "trial").shape == (len(digits().train),)
    assert not (tmp_path / "cache").exists()


def test_a_stopped_measurement_keeps_finished_trainings(cache: Path, trained: list[int], tmp_path: Path) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(len(trained))
        return len(trained) == 2

    with pytest.raises(StoppedError):
        measure_prior_difficulty(
            NEEDED,
            configuration(),
            digits(),
            training_images(digits(), CPU),
            folder=tmp_path,
            should_stop=should_stop,
        )
    assert len(list(cache.glob("*.safetensors"))) == 1
    measured(tmp_path)
    assert trained == [0, 1, 1]


# --- in a training ---


def test_a_training_pays_for_the_measurement_in_its_first_epoch(cache: Path, tmp_path: Path) -> None:
    plain, pruned, again = Recorder(), Recorder(), Recorder()
    run(configuration(), tmp_path / "plain", plain)
    config = configuration(recipe={"curriculum": PRUNED})
    outcome = run(config, tmp_path / "pruned", pruned)
    run(config.model_copy(update={"seed": 6}), tmp_path / "again", again)
    images = len(digits().train)
    macs = topology_costs(PIT, digits().task).macs
    extra = [
        found.training_macs - known.training_macs for found, known in zip(pruned.reports, plain.reports, strict=True)
    ]
    assert extra == [2 * (3 + 1) * macs * images, 0, 0]
    assert again.reports[0].training_macs == pruned.reports[0].training_macs
    assert [report.num_images for report in pruned.reports] == [images] * 3
    assert outcome.metrics["training_macs"] == sum(report.training_macs for report in pruned.reports)


def test_an_interruption_of_the_measurement_changes_nothing(cache: Path, trained: list[int], tmp_path: Path) -> None:
    config, straight, resumed = configuration(recipe={"curriculum": PRUNED}), Recorder(), Recorder()
    outcome = run(config, tmp_path / "broken", InterruptedInside(1, batch=4))
    assert outcome.state == "interrupted"
    assert trained == [0, 1]
    found = run(config, tmp_path / "broken", resumed)
    assert trained == [0, 1, 1]
    expected = run(config, tmp_path / "straight", straight)
    assert equal(weights_of(found), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)


def test_a_pack_measures_once_and_goes_on_if_one_training_is_stopped(
    cache: Path, trained: list[int], tmp_path: Path
) -> None:
    configs = [
        configuration(recipe={"curriculum": PRUNED}, epochs=1).model_copy(update={"seed": seed}) for seed in (1, 2)
    ]
    tasks = [TrainTask(configuration=config, folder=tmp_path / str(config.seed)) for config in configs]
    outcomes = dict(train_packed(tasks, digits(), [InterruptedInside(1, batch=1), Recorder()], CPU))
    assert [outcomes[0].state, outcomes[1].state] == ["interrupted", "complete"]
    assert trained == [0, 0, 1]


def test_a_difficulty_that_is_not_finite_ends_the_training_with_the_reason(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior_difficulty, "_difficulty", lambda *_: torch.full((len(digits().train),), float("nan")))
    outcome = run(configuration(recipe={"curriculum": PRUNED}), tmp_path)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")
    assert outcome.reason is not None
    assert "diverged. Choose another `difficulty_topology`" in outcome.reason


def test_a_topology_that_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    curriculum = {**PRUNED, "difficulty_topology": "autoformer:2,2|16,24"}
    with pytest.raises(ValueError, match="`difficulty_topology` must fit the images"):
        run(configuration(recipe={"curriculum": curriculum}), tmp_path)
