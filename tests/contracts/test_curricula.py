"""What every curriculum keeps, and what each of ours does."""

import pytest
import torch
from torch import Tensor

from plugins.protocols import Curriculum, PluginCard
from plugins.registry import PluginSettingsError, available, create

NUM_IMAGES = 60
LABELS = torch.arange(NUM_IMAGES) % 3
DIFFICULTY = torch.rand(NUM_IMAGES, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=list(available("curricula")))
def curriculum(request: pytest.FixtureRequest) -> Curriculum:
    return create("curricula", request.param)


def select(curriculum: Curriculum, size: int, *, seed: int = 0, difficulty: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return curriculum.select(size, difficulty=difficulty, labels=LABELS, generator=generator)


def test_it_has_a_card(curriculum: Curriculum) -> None:
    assert isinstance(curriculum.card, PluginCard)
    assert curriculum.card.source
    assert isinstance(curriculum.needs_difficulty, bool)


@pytest.mark.parametrize("num_epochs", [1, 2, 7, 30, 0.4, 3.3])
def test_the_passes_use_up_the_budget(curriculum: Curriculum, num_epochs: float) -> None:
    passes = curriculum.passes(num_epochs)
    assert sum(passes) == pytest.approx(num_epochs)
    assert all(0 < size <= 1 for size in passes)


@pytest.mark.parametrize("size", [1, 7, 30, NUM_IMAGES])
@pytest.mark.parametrize("difficulty", [None, DIFFICULTY, torch.zeros(NUM_IMAGES)], ids=["none", "some", "zero"])
def test_a_pass_visits_as_many_different_examples_as_asked(
    curriculum: Curriculum, size: int, difficulty: Tensor | None
) -> None:
    chosen = select(curriculum, size, difficulty=difficulty)
    assert chosen.dtype == torch.int64
    assert chosen.shape == (size,)
    assert len(set(chosen.tolist())) == size
    assert set(chosen.tolist()) <= set(range(NUM_IMAGES))


def test_the_generator_alone_decides(curriculum: Curriculum) -> None:
    state = torch.get_rng_state()
    first = select(curriculum, 20, seed=3, difficulty=DIFFICULTY)
    assert torch.equal(first, select(curriculum, 20, seed=3, difficulty=DIFFICULTY))
    assert not torch.equal(first, select(curriculum, 20, seed=4, difficulty=DIFFICULTY))
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_left_unchanged(curriculum: Curriculum) -> None:
    difficulty, labels = DIFFICULTY.clone(), LABELS.clone()
    curriculum.select(20, difficulty=difficulty, labels=labels, generator=torch.Generator())
    assert torch.equal(difficulty, DIFFICULTY)
    assert torch.equal(labels, LABELS)


def test_no_curriculum_visits_everything_in_every_pass() -> None:
    none = create("curricula", "none")
    assert none.passes(3) == (1.0, 1.0, 1.0)
    assert sorted(select(none, NUM_IMAGES).tolist()) == list(range(NUM_IMAGES))


def test_cyclical_sizes_are_those_of_the_authors_code() -> None:
    cyclical = create("curricula", "cyclical")
    assert cyclical.passes(5) == pytest.approx((0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25, 0.25))


def test_cyclical_turns_at_bounds_that_are_no_power_of_alpha() -> None:
    cyclical = create("curricula", "cyclical", {"start": 0.3, "end": 0.8, "alpha": 0.5})
    assert cyclical.passes(3.3) == pytest.approx((0.3, 0.6, 0.8, 0.4, 0.3, 0.6, 0.3))


def test_cyclical_prefers_easy_examples_in_proportion_to_the_inverse_loss() -> None:
    cyclical = create("curricula", "cyclical")
    difficulty = torch.where(torch.arange(NUM_IMAGES) < 30, 1.0, 4.0)
    picks = torch.cat([select(cyclical, 1, seed=seed, difficulty=difficulty) for seed in range(3000)])
    share = (picks < 30).double().mean().item()
    assert share == pytest.approx(0.8, abs=0.03)  # weights 1 and 1/4; 4 standard deviations of 3,000 draws


def test_paced_grows_from_its_start_to_everything() -> None:
    paced = create("curricula", "paced", {"start": 0.25, "increase": 2.0, "step": 1.0})
    assert paced.passes(5) == pytest.approx((0.25,) * 4 + (0.5,) * 2 + (1.0,) * 3)


def test_paced_takes_the_easiest_of_each_class() -> None:
    chosen = select(create("curricula", "paced"), 12, difficulty=DIFFICULTY)
    for label in range(3):
        members = LABELS.eq(label).nonzero().flatten()
        easiest = members[DIFFICULTY[members].argsort()[:4]]
        assert set(easiest.tolist()) == {index for index in chosen.tolist() if LABELS[index] == label}


def test_paced_keeps_the_share_of_a_small_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 10)
    chosen = create("curricula", "paced").select(
        10, difficulty=torch.rand(50), labels=labels, generator=torch.Generator()
    )
    assert int((labels[chosen] == 1).sum()) == 2


def test_a_cycle_that_starts_above_its_end_is_refused() -> None:
    with pytest.raises(PluginSettingsError, match="must not exceed"):
        create("curricula", "cyclical", {"start": 0.9, "end": 0.5})
