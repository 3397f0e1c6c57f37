"""Rules for every curriculum, and the behaviour of ours."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins.protocols import (
    ExampleOrder,
    ExampleWeights,
    OrderContext,
    PluginCard,
    Selection,
    StepMethod,
    can_pack,
    needed_prior_difficulty,
)
from plugins.registry import PluginSettingsError, available, create
from search_spaces.step_settings import StepSettings
from tests.contracts.test_optimizers_in_training import TOPOLOGIES
from tests.steps import now, step_settings
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TrainTask
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed

NUM_IMAGES = 60
LABELS = torch.arange(NUM_IMAGES) % 3
DIFFICULTY = torch.rand(NUM_IMAGES, generator=torch.Generator().manual_seed(1))
NAMES = sorted(available("curricula"))
ORDERS = [name for name in NAMES if isinstance(create("curricula", name), ExampleOrder)]
WEIGHTS = [name for name in NAMES if isinstance(create("curricula", name), ExampleWeights)]
METHODS = [name for name in NAMES if isinstance(create("curricula", name), StepMethod)]


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> ExampleOrder:
    return create("curricula", request.param)


@pytest.fixture(params=WEIGHTS)
def weighting(request: pytest.FixtureRequest) -> ExampleWeights:
    return create("curricula", request.param)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> StepMethod:
    return create("curricula", request.param)


def context(
    *, seed: int = 0, difficulty: Tensor | None = None, labels: Tensor = LABELS, progress: float = 0.5
) -> OrderContext:
    generator = torch.Generator().manual_seed(seed)
    return OrderContext(now=now(progress), labels=labels, difficulty=difficulty, generator=generator, seed=17)


def select(order: ExampleOrder, size: int, *, seed: int = 0, difficulty: Tensor | None = None) -> Tensor:
    return order.select(size, context(seed=seed, difficulty=difficulty)).indices


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_card_and_orders_weights_or_adjusts(name: str) -> None:
    curriculum = create("curricula", name)
    assert isinstance(curriculum.card, PluginCard)
    assert curriculum.card.source
    assert curriculum.card.cost
    assert isinstance(curriculum, ExampleOrder | ExampleWeights | StepMethod)


# --- orders of examples ---


@pytest.mark.parametrize("num_epochs", [1, 2, 7, 30, 0.4, 3.3])
def test_the_passes_use_up_the_budget(order: ExampleOrder, num_epochs: float) -> None:
    passes = order.passes(num_epochs)
    assert sum(passes) == pytest.approx(num_epochs)
    assert all(0 < size <= 1 for size in passes)


@pytest.mark.parametrize("size", [1, 7, 30, NUM_IMAGES])
@pytest.mark.parametrize("difficulty", [None, DIFFICULTY, torch.zeros(NUM_IMAGES)], ids=["none", "some", "zero"])
def test_a_pass_has_as_many_visits_as_asked(order: ExampleOrder, size: int, difficulty: Tensor | None) -> None:
    selection = order.select(size, context(difficulty=difficulty))
    assert isinstance(selection, Selection)
    assert selection.indices.dtype == torch.int64
    assert selection.indices.shape == (size,)
    assert set(selection.indices.tolist()) <= set(range(NUM_IMAGES))
    if selection.weights is not None:
        assert selection.weights.shape == (size,)
        assert selection.weights.is_floating_point()
        assert torch.all(selection.weights.isfinite() & (selection.weights >= 0))


def test_the_generator_alone_decides(order: ExampleOrder) -> None:
    state = torch.get_rng_state()
    first = select(order, 20, seed=3, difficulty=DIFFICULTY)
    assert torch.equal(first, select(order, 20, seed=3, difficulty=DIFFICULTY))
    assert not torch.equal(first, select(order, 20, seed=4, difficulty=DIFFICULTY))
    assert torch.equal(state, torch.get_rng_state())


def test_an_order_leaves_its_inputs_unchanged(order: ExampleOrder) -> None:
    difficulty, labels = DIFFICULTY.clone(), LABELS.clone()
    order.select(20, context(difficulty=difficulty, labels=labels))
    assert torch.equal(difficulty, DIFFICULTY)
    assert torch.equal(labels, LABELS)


def test_an_order_says_whether_it_needs_difficulty(order: ExampleOrder) -> None:
    assert isinstance(order.needs_difficulty, bool)
    needed = needed_prior_difficulty(order)
    assert not (order.needs_difficulty and needed)
    if not order.needs_difficulty and needed is None:
        assert torch.equal(select(order, 20), select(order, 20, difficulty=DIFFICULTY))


@pytest.mark.parametrize(
    ("name", "without", "with_difficulty"),
    [
        ("none", [11, 10, 23, 3, 1, 35, 16], [11, 10, 23, 3, 1, 35, 16]),
        ("cyclical", [11, 10, 23, 3, 1, 35, 16], [22, 35, 47, 4, 46, 28, 50]),
        ("paced", [23, 1, 10, 24, 39, 11, 3], [44, 34, 28, 21, 57, 50, 33]),
    ],
)
def test_an_order_of_ours_chooses_what_version_0_1_0_chose(
    name: str, without: list[int], with_difficulty: list[int]
) -> None:
    order = create("curricula", name)
    assert select(order, 7, seed=5).tolist() == without
    assert select(order, 7, seed=5, difficulty=DIFFICULTY).tolist() == with_difficulty


@pytest.mark.parametrize("name", ["none", "cyclical", "paced"])
def test_an_order_of_ours_visits_no_example_twice_in_a_pass(name: str) -> None:
    order = create("curricula", name)
    for size in (7, NUM_IMAGES):
        assert len(set(select(order, size, difficulty=DIFFICULTY).tolist())) == size


RARE = torch.tensor([0] * 90 + [1] * 8 + [4] * 2)
"""Labels of three classes with very different numbers of images."""


@pytest.mark.parametrize("size", [1, 30, 100])
def test_the_balanced_order_visits_all_classes_equally_often(size: int) -> None:
    visits = create("curricula", "balanced").select(size, context(labels=RARE)).indices
    counts = torch.bincount(RARE[visits], minlength=5)[[0, 1, 4]]
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_the_balanced_order_repeats_an_image_only_after_all_others_of_its_class() -> None:
    visits = create("curricula", "balanced").select(100, context(labels=RARE)).indices
    times = torch.bincount(visits, minlength=len(RARE))
    for label in (0, 1, 4):
        own = times[label == RARE]
        assert own.max() - own.min() <= 1


def test_the_balanced_order_mixes_the_classes_within_a_pass() -> None:
    visits = create("curricula", "balanced").select(99, context(labels=RARE)).indices
    assert set(RARE[visits[:33]].tolist()) == {0, 1, 4}


# --- weights of examples ---


@pytest.mark.parametrize("difficulty", [None, DIFFICULTY, torch.zeros(NUM_IMAGES)], ids=["none", "some", "zero"])
@pytest.mark.parametrize("progress", [0.0, 0.4, 0.99])
def test_weights_are_finite_and_the_same_every_time(
    weighting: ExampleWeights, progress: float, difficulty: Tensor | None
) -> None:
    before = None if difficulty is None else difficulty.clone()
    first, second = (weighting.weigh(context(difficulty=difficulty, progress=progress)) for _ in range(2))
    assert isinstance(weighting.needs_difficulty_in(now(progress)), bool)
    if first is not None:
        assert first.shape == (NUM_IMAGES,)
        assert torch.all(first.isfinite() & (first >= 0))
        assert second is not None
        assert torch.equal(first, second)
    assert before is None or torch.equal(difficulty, before)


def test_weights_differ_somewhere(weighting: ExampleWeights) -> None:
    found = weighting.weigh(context(difficulty=DIFFICULTY, progress=0.1))
    assert found is not None
    assert found.unique().numel() > 1


# --- methods that adjust steps ---


FIELDS = {field.name for field in dataclasses.fields(StepSettings)}


def changed(before: StepSettings, after: StepSettings) -> set[str]:
    """Names of the fields that differ, options of the model one by one."""
    names = {name for name in FIELDS - {"model_options"} if getattr(before, name) != getattr(after, name)}
    ours, theirs = before.model_options, after.model_options
    return names | {f"model_options.{key}" for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def test_a_method_names_fields_of_the_settings(method: StepMethod) -> None:
    assert method.changes
    for name in method.changes:
        field, _, option = name.partition(".")
        assert field in FIELDS
        assert bool(option) == (field == "model_options")


def test_a_method_changes_what_it_declares_and_nothing_else(method: StepMethod) -> None:
    settings = step_settings(model_options={"window": 3})
    found: set[str] = set()
    for step in range(64):
        found |= changed(settings, method.adjust(now(step / 64), settings))
    assert found
    assert found <= method.changes
    assert settings == step_settings(model_options={"window": 3})


def test_a_method_depends_on_its_arguments_alone(method: StepMethod) -> None:
    moments = [now(step / 16) for step in range(16)]
    forth = [method.adjust(moment, step_settings()) for moment in moments]
    back = [method.adjust(moment, step_settings()) for moment in reversed(moments)]
    assert forth == back[::-1]


# --- in a training ---


QUICK = {"difficulty_epochs": 1, "difficulty_runs": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "pruning": QUICK,
    "pruning-by-budget": QUICK,
    "skill-it": {"rate": 1.0},
    "masked-growth": {"until": 0.4, "ramp": 0.6},
}
"""Settings that train little or have an effect soon."""
DEEPER = {
    "as-vit": "as-vit:4,4,2,1|2,4,2,2|2,2,2,1|2,1,2,1|16,4",
    "autoformer": "autoformer:2,2|2,2|16,8",
    "pit": "pit:2,1|1,2|1,2|4,4,8",
}
"""Topologies with two blocks in a stage, of which one can be left out."""
SUPPORTED = {"progressive-tokenization": ("as-vit",), "progressive-resolution": ("autoformer", "pit")}
"""Spaces whose models support a curriculum of ours, if not all do."""
CASES = [(name, space) for name in NAMES for space in SUPPORTED.get(name, TOPOLOGIES)]


def config_of(name: str, space: str) -> Configuration:
    recipe = {"batch_size": 24, "curriculum": {"name": name, **SETTINGS.get(name, {})}}
    epochs = 3 if name == "v-cycle" else 2
    return configuration(epochs=epochs, recipe=recipe).model_copy(
        update={"topology": (DEEPER if name == "masked-growth" else TOPOLOGIES)[space]}
    )


@pytest.mark.parametrize(("name", "space"), CASES)
def test_a_training_is_the_same_after_interruptions_and_in_a_pack(name: str, space: str, tmp_path: Path) -> None:
    config = config_of(name, space)
    straight, resumed, packed = Recorder(), Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    assert expected.state == "complete", expected.reason
    for epoch in (1, 2):
        run(config, tmp_path / "broken", InterruptedInside(epoch))
    assert equal(weights_of(run(config, tmp_path / "broken", resumed)), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)
    tasks = [
        TrainTask(configuration=config.model_copy(update={"seed": seed}), folder=tmp_path / str(seed))
        for seed in (config.seed, 6)
    ]
    problem = can_be_packed(*tasks)
    if not can_pack(create("curricula", name, SETTINGS.get(name))):
        assert problem == f"curriculum {name!r} cannot be computed with stacked weights"
        return
    assert problem is None
    dict(train_packed(tasks, digits(), [packed, Recorder()], CPU))
    for found, wanted in zip(packed.reports, straight.reports, strict=True):
        assert found.train_loss == pytest.approx(wanted.train_loss, rel=2e-3)
        assert (found.num_images, found.training_macs) == (wanted.num_images, wanted.training_macs)


@pytest.mark.parametrize(
    ("name", "space", "reason"),
    [
        ("progressive-tokenization", "autoformer", "'progressive-tokenization' needs a model whose forward pass has"),
        ("progressive-tokenization", "pit", "'progressive-tokenization' needs a model whose forward pass has"),
        ("masked-growth", "pit", "'masked-growth' needs a topology with a smaller form"),
        ("progressive-resolution", "as-vit", r"images of \d+ pixels do not fit the topology"),
    ],
)
def test_a_model_that_lacks_what_a_curriculum_of_ours_needs_is_refused(
    name: str, space: str, reason: str, tmp_path: Path
) -> None:
    config = config_of(name, space).model_copy(update={"topology": TOPOLOGIES[space]})
    with pytest.raises(ValueError, match=reason):
        run(config, tmp_path)


# --- ours ---


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
    paced = create("curricula", "paced")
    chosen = paced.select(10, context(difficulty=torch.rand(50), labels=labels)).indices
    assert int((labels[chosen] == 1).sum()) == 2


def test_a_cycle_that_starts_above_its_end_is_refused() -> None:
    with pytest.raises(PluginSettingsError, match="must not exceed"):
        create("curricula", "cyclical", {"start": 0.9, "end": 0.5})


def test_progressive_tokenization_keeps_the_other_options_of_the_model() -> None:
    method = create("curricula", "progressive-tokenization", {"coarse": 0.25, "middle": 0.25})
    settings = step_settings(model_options={"window": 3})
    options = [dict(method.adjust(now(progress), settings).model_options) for progress in (0.0, 0.25, 0.5)]
    assert options == [{"window": 3, "stride_factor": 4}, {"window": 3, "stride_factor": 2}, {"window": 3}]
