"""Rules for every learning-rate schedule, and the behaviour of ours."""

import math
from typing import Any

import numpy as np
import pytest

from plugins.protocols import EpochSchedule, PluginCard, Schedule, can_pack, is_independent_of_length
from plugins.registry import PluginSettingsError, available, create
from plugins.schedules.refined_linear import smoothed
from trainers.training.plan import learning_rate

NUM_EPOCHS = 10
PROGRESS = [step / 50 for step in range(51)]


EXAMPLES = {"refined-linear": {"norms": "1, 1, 1"}}
"""Settings of schedules that need some."""


@pytest.fixture(params=list(available("schedules")))
def schedule(request: pytest.FixtureRequest) -> Schedule | EpochSchedule:
    return create("schedules", request.param, EXAMPLES.get(request.param))


def factor(schedule: Schedule | EpochSchedule, progress: float) -> float:
    if isinstance(schedule, EpochSchedule):
        return schedule.factor_after(progress * NUM_EPOCHS, NUM_EPOCHS)
    return schedule.factor(progress)


def factors(name: str, at: list[float], **settings: Any) -> list[float]:
    schedule = create("schedules", name, settings)
    return [factor(schedule, progress) for progress in at]


def test_it_has_a_card(schedule: Schedule | EpochSchedule) -> None:
    assert isinstance(schedule.card, PluginCard)
    assert schedule.card.source
    assert schedule.card.cost


def test_it_starts_at_the_full_rate(schedule: Schedule | EpochSchedule) -> None:
    assert factor(schedule, 0.0) == pytest.approx(1.0)


def test_it_stays_between_nothing_and_the_full_rate(schedule: Schedule | EpochSchedule) -> None:
    assert all(0 <= factor(schedule, progress) <= 1 for progress in PROGRESS)


def test_a_longer_training_begins_with_the_same_rates_if_it_says_so(schedule: Schedule | EpochSchedule) -> None:
    def rates(num_epochs: int) -> list[float]:
        total = 5 * num_epochs
        plan = {"unit": 1, "total": total, "base": 1.0, "warmup": 0.0, "num_epochs": num_epochs}
        return [learning_rate(step, **plan, schedule=schedule) for step in range(5 * NUM_EPOCHS)]

    assert (rates(NUM_EPOCHS) == rates(3 * NUM_EPOCHS)) == is_independent_of_length(schedule)


def test_it_does_not_keep_trainings_out_of_packs(schedule: Schedule | EpochSchedule) -> None:
    assert can_pack(schedule)


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_floor() -> None:
    found = factors("cosine", [0.5, 0.25, 1.0], floor=0.2)
    assert found == pytest.approx([0.6, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.2])


def test_linear_falls_by_equal_amounts_to_its_floor() -> None:
    assert factors("linear", [0.0, 0.5, 1.0], floor=0.1) == pytest.approx([1.0, 0.55, 0.1])


def test_constant_does_not_move() -> None:
    assert set(factors("constant", PROGRESS)) == {1.0}


def test_uba_with_phi_2_is_a_cosine_and_with_a_small_one_nearly_constant() -> None:
    assert factors("uba", PROGRESS, phi=2.0, floor=0.1) == pytest.approx(factors("cosine", PROGRESS, floor=0.1))
    assert factors("uba", [0.9], phi=1e-4)[0] > 0.99


def test_uba_is_its_formula_in_every_phase() -> None:
    def formula(progress: float, phi: float, low: float) -> float:
        c = math.cos(math.pi * progress)
        return low + (1 - low) * 2 * (1 + c) / (2 * phi + (2 - phi) * (1 + c))

    expected = [formula(progress, 0.7, 0.05) for progress in (0.0, 0.3, 0.9, 0.0, 0.8, 1.0)]
    assert factors("uba", [0.0, 0.15, 0.45, 0.5, 0.9, 1.0], phi=0.7, floor=0.05, phases=2) == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize(
    ("form", "half_way", "quarter"),
    [("linear", 0.5, 0.75), ("cosine", 0.5, (1 + math.sqrt(0.5)) / 2), ("1-sqrt", 1 - math.sqrt(0.5), 0.5)],
)
def test_warmup_stable_decay_falls_at_its_end_in_its_form(form: str, half_way: float, quarter: float) -> None:
    found = factors("warmup-stable-decay", [0.0, 0.6, 0.7, 0.8, 1.0], decay=0.4, form=form, floor=0.1)
    assert found == pytest.approx([1.0, 1.0, 0.1 + 0.9 * quarter, 0.1 + 0.9 * half_way, 0.1])


def test_step_drops_at_whole_epochs() -> None:
    found = factors("step", [0.0, 0.29, 0.3, 0.59, 0.6, 1.0], every=3, gamma=0.1)
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.001])


def test_restarts_are_at_whole_epochs_and_cycles_grow() -> None:
    found = factors("cosine-restarts", [0.0, 0.1, 0.2, 0.4, 0.6, 0.7], period=2, growth=2, floor=0.2)
    assert found == pytest.approx([1.0, 0.6, 1.0, 0.6, 1.0, 0.2 + 0.4 * (1 + math.cos(math.pi / 8))])


def test_a_cycle_ends_with_the_last_step_of_an_epoch() -> None:
    restarts = create("schedules", "cosine-restarts", {"period": 3})
    plan = {"unit": 1, "total": 7 * 12, "base": 1.0, "warmup": 0.0, "num_epochs": 12}  # 7 steps per epoch
    rates = [learning_rate(step, **plan, schedule=restarts) for step in range(7 * 12)]
    assert [step for step, rate in enumerate(rates) if rate == 1.0] == [0, 21, 42, 63]
    assert max(rates[20::21]) < 0.01


def test_refined_linear_of_constant_norms_is_linear() -> None:
    assert factors("refined-linear", PROGRESS, norms="2.5, 2.5, 2.5") == pytest.approx(factors("linear", PROGRESS))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_refined_linear_is_the_authors_formula_in_the_middle_of_each_epoch(power: float) -> None:
    norms, steps = [0.9, 0.3, 0.4, 0.7], 1_000_000
    weights = np.repeat(np.array(norms) ** -power, steps)
    rates = weights * (weights.sum() - weights.cumsum())  # w_t * sum of w_p over p > t
    expected = rates[steps // 2 :: steps]
    text = ", ".join(map(str, norms))
    found = factors("refined-linear", [0.125, 0.375, 0.625, 0.875], norms=text, power=power, smoothing=0.0)
    assert np.array(found) / max(found) == pytest.approx(expected / expected.max(), abs=2e-6)
    assert factors("refined-linear", [1.0], norms=text) == [0.0]


def test_refined_linear_smooths_with_a_median_that_reflects_the_ends() -> None:
    norms = [5.0, 1.0, 2.0, 9.0, 3.0, 4.0]
    assert smoothed(norms, 0.0) == norms
    padded = np.pad(norms, 1, mode="reflect")
    assert smoothed(norms, 0.4) == [float(np.median(padded[place : place + 3])) for place in range(6)]


def test_refined_linear_with_a_stage_gets_its_norms() -> None:
    schedule = create("schedules", "refined-linear", {"stage": "pilot", "power": 2.0})
    with pytest.raises(ValueError, match="Outside of a study, give `norms`"):
        schedule.factor_after(0.0, 3)
    settings = schedule.learned([0.5, 0.25])
    assert settings == {"norms": "0.5, 0.25", "power": 2.0, "smoothing": 0.1}
    assert create("schedules", "refined-linear", settings).stage is None


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("refined-linear", {"norms": "1.0"}),
        ("refined-linear", {"norms": "1.0, 0"}),
        ("refined-linear", {"norms": "1.0, x"}),
        ("refined-linear", {"stage": "pilot", "norms": "1, 2"}),
        ("refined-linear", {"power": 0, "norms": "1, 2"}),
        ("cosine", {"floor": 1.5}),
        ("uba", {"phi": 0}),
        ("uba", {"phi": math.inf}),
        ("uba", {"phases": 0}),
        ("warmup-stable-decay", {"decay": 0}),
        ("warmup-stable-decay", {"form": "square"}),
        ("step", {"gamma": 1.0}),
        ("step", {"every": 0}),
        ("cosine-restarts", {"period": 0}),
        ("cosine-restarts", {"growth": 1.5}),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, float | str]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("schedules", name, settings)
