"""Pacing, difficulty weights and pruning: values of the authors' formulas, and settings that make no sense."""

import math
from typing import Any

import pytest
import torch

from plugins.curricula.difficulty_weights import easiness_of, weights_of_easiness
from plugins.curricula.pacing import pace
from plugins.curricula.pruning_by_budget import window_position
from plugins.protocols import OrderContext, PriorDifficulty
from plugins.registry import PluginSettingsError, create
from tests.steps import now

LABELS = torch.tensor([0, 1] * 20)
DIFFICULTY = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BY_DIFFICULTY = DIFFICULTY.argsort().tolist()


def visits(name: str, size: int, *, seed: int = 0, known: bool = True, **settings: Any) -> list[int]:
    context = OrderContext(
        now=now(0.3),
        labels=LABELS,
        difficulty=DIFFICULTY if known else None,
        generator=torch.Generator().manual_seed(seed),
        seed=5,
    )
    indices: list[int] = create("curricula", name, settings).select(size, context).indices.tolist()
    return indices


# --- pacing ---


# Computed from the formulas of the paper for b = 0.1, a = 0.5 and t / T = 0.2, so s = 0.4.
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("linear", 0.1 + 0.9 * 0.4),
        ("quadratic", 0.1 + 0.9 * 0.16),
        ("root", 0.1 + 0.9 * 0.632455532),
        ("step", 0.1),
        ("exponential", 0.1 + 0.9 * (54.598150033 - 1) / (22026.465794807 - 1)),
        ("logarithmic", 0.1 + 0.9 * (1 + 0.1 * -0.916177239)),
    ],
)
def test_pacing_has_the_sizes_of_the_paper(form: Any, expected: float) -> None:
    assert pace(0.2, form=form, start=0.1, until=0.5) == pytest.approx(expected, abs=1e-6)
    assert pace(0.0, form=form, start=0.1, until=0.5) == pytest.approx(0.1, abs=1e-6)
    assert pace(0.5, form=form, start=0.1, until=0.5) == 1.0
    passes = create("curricula", "pacing", {"form": form, "start": 0.1}).passes(4)
    assert sum(passes) == pytest.approx(4)
    assert list(passes[:-1]) == sorted(passes[:-1])


def test_pacing_begins_with_the_images_of_its_order() -> None:
    assert sorted(visits("pacing", 10)) == sorted(BY_DIFFICULTY[:10])
    assert sorted(visits("pacing", 10, order="hard")) == sorted(BY_DIFFICULTY[-10:])
    balanced = visits("pacing", 10, by_class=True)
    assert sum(LABELS[index].item() for index in balanced) == 5


def test_a_random_part_grows_and_is_the_same_in_all_passes() -> None:
    first, again, more = (set(visits("pacing", size, order="random", seed=size)) for size in (10, 10, 20))
    assert first == again
    assert first < more
    assert first != set(range(10))


# --- weights ---


def test_difficulty_weights_are_those_of_the_formula() -> None:
    easiness = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found = weights_of_easiness(easiness, progress=5, until=20)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.475, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(weights_of_easiness(easiness, progress=20, until=20), torch.ones(3, dtype=torch.float64))


def test_easiness_is_a_rank_or_a_value() -> None:
    difficulty = torch.tensor([4.0, 1.0, 2.0, 2.0, 11.0])
    assert easiness_of(difficulty, scale="rank").tolist() == [0.25, 1.0, 0.625, 0.625, 0.0]
    assert easiness_of(difficulty, scale="value").tolist() == [0.7, 1.0, 0.9, 0.9, 0.0]
    assert easiness_of(torch.ones(3), scale="rank").tolist() == [1.0, 1.0, 1.0]


def test_the_anti_curriculum_prefers_hard_images_until_its_end() -> None:
    def weigh(prefer: str, progress: float) -> Any:
        method = create("curricula", "difficulty-weights", {"prefer": prefer, "until": 0.8})
        generator = torch.Generator()
        context = OrderContext(now=now(progress), labels=LABELS, difficulty=DIFFICULTY, generator=generator)
        return method.weigh(context)

    easy, hard = weigh("easy", 0.2), weigh("hard", 0.2)
    assert easy.argmax() == hard.argmin() == BY_DIFFICULTY[0]
    torch.testing.assert_close(easy + hard, torch.full((40,), 1.25, dtype=torch.float64))
    assert weigh("easy", 0.8) is None
    method = create("curricula", "difficulty-weights", {"until": 0.8})
    assert [method.needs_difficulty_in(now(progress)) for progress in (0.1, 0.8)] == [True, False]
    assert not create("curricula", "difficulty-weights", {"difficulty": "el2n"}).needs_difficulty_in(now(0.1))


# --- pruning ---


def test_pruning_keeps_the_hardest_or_the_easiest_without_the_offset() -> None:
    assert set(visits("pruning", 10, keep=0.25)) == set(BY_DIFFICULTY[-10:])
    assert set(visits("pruning", 10, keep=0.25, prefer="easy")) == set(BY_DIFFICULTY[:10])
    assert set(visits("pruning", 10, keep=0.25, offset=0.1)) == set(BY_DIFFICULTY[-14:-4])
    assert set(visits("pruning", 10, keep=0.25, prefer="easy", offset=0.1)) == set(BY_DIFFICULTY[:10])


def test_a_random_part_is_kept_for_the_whole_training() -> None:
    kept = visits("pruning", 20, keep=0.5, prefer="random", known=False)
    again = visits("pruning", 20, keep=0.5, prefer="random", known=False, seed=9)
    assert kept != again
    assert set(kept) == set(again)
    assert len(set(kept)) == 20


def test_a_pass_larger_than_the_kept_part_repeats_images() -> None:
    times = torch.bincount(torch.tensor(visits("pruning", 25, keep=0.25)))
    assert sorted(times[times > 0].tolist()) == [2] * 5 + [3] * 5


def test_passes_have_the_size_of_the_kept_part() -> None:
    pruning = create("curricula", "pruning", {"keep": 0.3})
    assert pruning.passes(1) == pytest.approx((0.3, 0.3, 0.3, 0.1))
    assert not pruning.independent_of_length
    assert create("curricula", "pruning", {"keep": 0.25}).independent_of_length


def test_a_small_budget_keeps_easy_images_and_a_large_one_hard_images() -> None:
    assert window_position(5, few=10, many=1000) == 0.0
    assert window_position(100, few=10, many=1000) == pytest.approx(math.log(10) / math.log(100))
    assert window_position(2000, few=10, many=1000) == 1.0
    by_class = [[index for index in BY_DIFFICULTY if LABELS[index] == label] for label in (0, 1)]
    easy = visits("pruning-by-budget", 10, keep=0.25, few=5, many=100)
    assert set(easy) == {index for order in by_class for index in order[:5]}
    hard = visits("pruning-by-budget", 10, keep=0.25, few=1, many=4, offset=0.05)
    assert set(hard) == {index for order in by_class for index in order[-6:-1]}


# --- settings ---


def test_curricula_name_the_difficulty_that_they_need() -> None:
    pit = "pit:1,1|1,2|1,2|2,4,8"
    given = {"difficulty_topology": pit, "difficulty_epochs": 2, "difficulty_runs": 4}
    expected = PriorDifficulty(kind="grand", topology=pit, epochs=2, runs=4)
    for name in ("cyclical", "paced", "pacing", "difficulty-weights", "pruning", "pruning-by-budget"):
        assert create("curricula", name, {**given, "difficulty": "grand"}).prior_difficulty == expected
    for name in ("cyclical", "paced", "pacing", "difficulty-weights"):
        assert create("curricula", name).prior_difficulty is None
    assert create("curricula", "pruning", {"prefer": "random"}).prior_difficulty is None
    assert not create("curricula", "cyclical", {"difficulty": "el2n"}).needs_difficulty


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("paced", {"difficulty_runs": 2}, "`difficulty_runs` has no effect with `difficulty: loss`"),
        ("cyclical", {"difficulty": "el2n", "difficulty_topology": "pit:0"}, "`difficulty_topology`: "),
        ("cyclical", {"difficulty": "el2n", "start": 0.9, "end": 0.5}, "`start` must not exceed `end`"),
        ("pacing", {"order": "random", "difficulty": "el2n"}, "`difficulty: el2n` has no effect with `order: random`"),
        ("pruning", {"prefer": "random", "difficulty_epochs": 2}, "no effect with `prefer: random`"),
        ("pruning", {"prefer": "random", "offset": 0.1}, "`offset` has no effect"),
        ("pruning", {"keep": 0.7, "offset": 0.4}, "must not add up to more than 1, but got 0.7 \\+ 0.4"),
        ("pruning-by-budget", {"few": 20, "many": 20}, "`few` must be below `many`"),
        ("difficulty-weights", {"difficulty": "entropy"}, "'difficulty'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        create("curricula", name, settings)
