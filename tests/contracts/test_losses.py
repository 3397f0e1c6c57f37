"""Rules for every loss, and the behaviour of ours."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.losses.guidance import linear_cka, matched_layers
from plugins.losses.teaching import decay_factor
from plugins.protocols import (
    GuidedLoss,
    LabelLoss,
    Loss,
    LossContext,
    LossInput,
    PluginCard,
    StackedLabelLoss,
    StatefulLoss,
    loss_inputs,
)
from plugins.registry import PluginSettingsError, available, create
from tests.steps import now

NUM_IMAGES, NUM_CLASSES = 12, 5
NAMES = sorted(available("losses"))
LABELS = torch.arange(NUM_IMAGES) % NUM_CLASSES
COUNTS = torch.tensor([40.0, 3.0, 12.0, 25.0, 1.0])
IGNORE_LABELS = {"teacher-labels"}
"""Losses of ours that read no label, so that only the teacher decides what lowers them."""

BOUNDED = {"teacher-labels"}
"""Losses of ours with a largest value, where they are flat."""


@pytest.fixture(params=NAMES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return create("losses", request.param)


def some_logits(*, dtype: torch.dtype = torch.float32, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator, dtype=dtype)


def some_layers(num_layers: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(NUM_IMAGES, width, generator=generator, dtype=dtype) for _ in range(num_layers))


def targets_of(labels: Tensor, *, smoothing: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Soft targets of labels with smoothing."""
    return F.one_hot(labels, NUM_CLASSES).to(dtype) * (1 - smoothing) + smoothing / NUM_CLASSES


def mixed_targets() -> Tensor:
    return 0.7 * targets_of(LABELS, smoothing=0.1) + 0.3 * targets_of(LABELS.flip(0), smoothing=0.1)


def context(loss: Any = None, order: Tensor | None = None, *, progress: float = 0.5, **given: Any) -> LossContext:
    """A context with everything that a loss may read, with the images in another order if one is given."""
    rows = torch.arange(NUM_IMAGES) if order is None else order
    state = loss.initial_state(NUM_IMAGES + 3, NUM_CLASSES) if isinstance(loss, StatefulLoss) else {}
    fields: dict[str, Any] = {
        "labels": LABELS[rows],
        "now": now(progress),
        "indices": rows + 3,
        "class_counts": COUNTS,
        "state": state,
        "teacher": some_logits(seed=1)[rows],
        "start": some_logits(seed=2)[rows],
        "layers": tuple(layer[rows] for layer in some_layers(2, 6, seed=3)),
        "guide_layers": tuple(layer[rows] for layer in some_layers(3, 4, seed=4)),
        "peer": some_logits(seed=5)[rows],
    }
    return LossContext(**fields | given)


def test_it_has_a_card(loss: Loss) -> None:
    assert isinstance(loss.card, PluginCard)
    assert loss.card.source
    assert loss.card.cost
    assert loss_inputs(loss) <= set(LossInput)
    assert (LossInput.LAYERS in loss_inputs(loss)) == isinstance(loss, GuidedLoss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_image_has_a_finite_loss_in_the_dtype_of_the_logits(loss: Loss, dtype: torch.dtype) -> None:
    found = loss.loss(some_logits(dtype=dtype), targets_of(LABELS, smoothing=0.1, dtype=dtype), context(loss))
    assert found.shape == (NUM_IMAGES,)
    assert found.dtype == dtype
    assert torch.all(found.isfinite())


@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("targets", [targets_of(LABELS), mixed_targets()], ids=["hard", "mixed"])
def test_the_gradient_is_finite_and_not_zero(
    loss: Loss, targets: Tensor, scale: float, request: pytest.FixtureRequest
) -> None:
    logits = some_logits(scale=scale).requires_grad_()
    (gradient,) = torch.autograd.grad(loss.loss(logits, targets, context(loss)).sum(), logits)
    assert torch.all(gradient.isfinite())
    is_flat = scale == 1e4 and request.node.callspec.params["loss"] in BOUNDED
    assert is_flat or gradient.abs().max() > 0


def test_the_loss_of_an_image_does_not_depend_on_its_place(loss: Loss) -> None:
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1))
    logits, targets = some_logits(), mixed_targets()
    expected = loss.loss(logits, targets, context(loss))[order]
    found = loss.loss(logits[order], targets[order], context(loss, order))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_step_against_the_gradient_lowers_the_loss(loss: Loss) -> None:
    logits = some_logits().requires_grad_()
    before = loss.loss(logits, targets_of(LABELS), context(loss)).mean()
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss.loss(logits.detach() - 0.1 * gradient, targets_of(LABELS), context(loss)).mean() < before


def test_a_loss_leaves_its_inputs_and_the_global_generator_as_they_were(loss: Loss) -> None:
    logits, targets, state = some_logits(), mixed_targets(), torch.get_rng_state()
    given, untouched = context(loss), context(loss)
    first = loss.loss(logits, targets, given)
    assert torch.equal(first, loss.loss(logits, targets, given))
    assert torch.equal(logits, some_logits())
    assert torch.equal(targets, mixed_targets())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(given.state[name], value) for name, value in untouched.state.items())
    for name in ("labels", "indices", "class_counts", "teacher", "start", "peer"):
        assert torch.equal(getattr(given, name), getattr(untouched, name))


def test_labels_matter_unless_the_loss_ignores_them(loss: Loss, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["loss"]
    found, other = (loss.loss(some_logits(), targets_of(labels), context(loss)) for labels in (LABELS, LABELS.flip(0)))
    assert torch.equal(found, other) == (name in IGNORE_LABELS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(create("losses", name), LabelLoss)])
def test_labels_give_the_mean_and_the_gradient_of_their_soft_targets(name: str, smoothing: float) -> None:
    loss = create("losses", name)
    logits = some_logits(dtype=torch.float64).requires_grad_()
    targets = targets_of(LABELS, smoothing=smoothing, dtype=torch.float64)
    expected = loss.loss(logits, targets, context()).mean()
    found = loss.mean_of_labels(logits, LABELS, label_smoothing=smoothing)
    assert found.shape == ()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    found = create("losses", "cross-entropy").loss(some_logits(), targets_of(LABELS), context())
    expected = -some_logits().log_softmax(1)[torch.arange(NUM_IMAGES), LABELS]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.9)])
@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(create("losses", name), StackedLabelLoss)])
def test_stacked_means_are_those_of_each_model(name: str, smoothing: tuple[float, ...]) -> None:
    loss, sizes = create("losses", name), (5, 3, 4)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[1, 3:] = math.inf  # what fills up a batch counts nothing
    labels = torch.arange(15).view(3, 5) % 7
    means = loss.means_of_labels(logits, labels, sizes, label_smoothing=smoothing)
    for number, (size, share) in enumerate(zip(sizes, smoothing, strict=True)):
        expected = loss.mean_of_labels(logits[number, :size], labels[number, :size], label_smoothing=share)
        assert means[number].item() == pytest.approx(expected.item(), rel=1e-12)


# --- state ---

STATEFUL = [name for name in NAMES if isinstance(create("losses", name), StatefulLoss)]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_changes_only_when_a_step_is_observed_and_only_for_its_images(name: str) -> None:
    loss = create("losses", name)
    given, before = context(loss), context(loss)
    loss.observe(some_logits(), given)
    rows: set[int] = set()
    for key, value in before.state.items():
        rows |= set((given.state[key] != value).reshape(len(value), -1).any(1).nonzero().flatten().tolist())
    assert rows == set(given.indices.tolist())
    again = context(loss)
    loss.observe(some_logits(), again)
    assert all(torch.equal(given.state[key], value) for key, value in again.state.items())


@pytest.mark.parametrize("name", STATEFUL)
def test_an_image_that_occurs_twice_in_a_step_has_one_state_whatever_its_place(name: str) -> None:
    loss = create("losses", name)
    rows = torch.tensor([0, 1, 1, 2])
    found = []
    for order in (torch.arange(4), torch.tensor([2, 1, 0, 3])):
        one = context(loss, rows[order])
        logits = some_logits()[:4][order]
        loss.observe(logits, one)
        found.append(one.state)
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-6, atol=1e-7)


# --- goldens: values computed from the authors' formulas in plain Python ---


def probabilities(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [value / sum(powers) for value in powers]


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-6, atol=1e-6)


def of_each_image(name: str, settings: dict[str, Any] | None = None, **given: Any) -> Tensor:
    loss = create("losses", name, settings or {})
    dtype = torch.float64
    return loss.loss(some_logits(dtype=dtype), targets_of(LABELS, dtype=dtype), context(loss, **given))


ROWS: list[list[float]] = some_logits(dtype=torch.float64).tolist()
TEACHER: list[list[float]] = some_logits(seed=1).double().tolist()
START: list[list[float]] = some_logits(seed=2).double().tolist()
PEER: list[list[float]] = some_logits(seed=5).double().tolist()
CLASSES: list[int] = LABELS.tolist()


def test_focal_counts_an_image_less_the_better_it_is_known() -> None:
    known = [probabilities(row)[label] for row, label in zip(ROWS, CLASSES, strict=True)]
    close(of_each_image("focal", {"gamma": 2.0}), [-((1 - p) ** 2) * math.log(p) for p in known])
    close(of_each_image("focal", {"gamma": 0.5}), [-((1 - p) ** 0.5) * math.log(p) for p in known])
    torch.testing.assert_close(of_each_image("focal", {"gamma": 0.0}), of_each_image("cross-entropy"))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_balanced_softmax_weighs_each_class_by_its_images(strength: float) -> None:
    expected = []
    for row, label in zip(ROWS, CLASSES, strict=True):
        weighed = [count**strength * math.exp(value) for count, value in zip(COUNTS.tolist(), row, strict=True)]
        expected.append(-math.log(weighed[label] / sum(weighed)))
    close(of_each_image("balanced-softmax", {"strength": strength}), expected)


def test_balanced_softmax_is_finite_for_a_class_without_images() -> None:
    counts = torch.tensor([5.0, 0.0, 5.0, 5.0, 5.0])
    assert torch.all(of_each_image("balanced-softmax", class_counts=counts).isfinite())


def test_the_z_loss_adds_the_squared_log_of_the_normaliser() -> None:
    expected = []
    for row, label in zip(ROWS, CLASSES, strict=True):
        log_z = math.log(sum(map(math.exp, row)))
        expected.append(log_z - row[label] + 0.01 * log_z**2)
    close(of_each_image("z-loss", {"weight": 0.01}), expected)


def test_early_learning_follows_the_authors_code_over_three_steps() -> None:
    """t <- b t + (1 - b) p / sum p with p clamped, then CE + weight * log(1 - <t, p>)."""
    loss = create("losses", "early-learning", {"weight": 3.0, "momentum": 0.7})
    given = context(loss)
    running = [[0.0] * NUM_CLASSES for _ in range(NUM_IMAGES)]
    for step in range(3):
        logits = some_logits(dtype=torch.float64, seed=step)
        expected = []
        for image, row in enumerate(logits.tolist()):
            p = [min(max(value, 1e-4), 1 - 1e-4) for value in probabilities(row)]
            running[image] = [0.7 * t + 0.3 * value / sum(p) for t, value in zip(running[image], p, strict=True)]
            likeness = sum(t * value for t, value in zip(running[image], p, strict=True))
            expected.append(-math.log(probabilities(row)[CLASSES[image]]) + 3.0 * math.log(1 - likeness))
        close(loss.loss(logits, targets_of(LABELS, dtype=torch.float64), given), expected)
        loss.observe(logits, given)


@pytest.mark.parametrize(
    ("decay", "at_three_quarters"),
    [("none", 1.0), ("linear", 0.25), ("squared", 0.0625), ("cosine", math.cos(0.375 * math.pi))],
)
def test_soft_distillation_is_a_mixture_of_labels_and_teacher(decay: str, at_three_quarters: float) -> None:
    settings = {"temperature": 2.0, "weight": 0.4, "decay": decay}
    share = 0.4 * at_three_quarters
    expected = []
    for row, taught, label in zip(ROWS, TEACHER, CLASSES, strict=True):
        q, p = probabilities(taught, 2.0), probabilities(row, 2.0)
        divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        expected.append((1 - share) * -math.log(probabilities(row)[label]) + share * 4.0 * divergence)
    close(of_each_image("soft-distillation", settings, progress=0.75), expected)


def test_an_image_learns_from_whichever_network_knows_its_class_better() -> None:
    expected, from_teacher = [], 0
    for row, taught, first, label in zip(ROWS, TEACHER, START, CLASSES, strict=True):
        knows = probabilities(taught)[label] > probabilities(first)[label]
        from_teacher += knows
        q, p = probabilities(taught if knows else first), probabilities(row)
        divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        expected.append(divergence)
    assert 0 < from_teacher < NUM_IMAGES
    settings = {"temperature": 1.0, "weight": 1.0, "only_where_better": True}
    assert loss_inputs(create("losses", "soft-distillation", settings)) == {LossInput.TEACHER, LossInput.START}
    close(of_each_image("soft-distillation", settings), expected)


def test_hard_distillation_learns_the_class_that_the_teacher_predicts() -> None:
    expected = []
    for row, taught, label in zip(ROWS, TEACHER, CLASSES, strict=True):
        p, decided = probabilities(row), taught.index(max(taught))
        expected.append(-0.7 * math.log(p[label]) - 0.3 * math.log(p[decided]))
    close(of_each_image("hard-distillation", {"weight": 0.3}), expected)


def test_teacher_labels_are_compared_by_the_jensen_shannon_divergence() -> None:
    expected = []
    for row, taught in zip(ROWS, TEACHER, strict=True):
        p, q = probabilities(row), probabilities(taught)
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        both = [sum(a * math.log(a / m) for a, m in zip(one, middle, strict=True)) for one in (p, q)]
        expected.append(sum(both) / 2)
    close(of_each_image("teacher-labels"), expected)


def test_two_models_learn_from_each_other() -> None:
    expected = []
    for row, other, label in zip(ROWS, PEER, CLASSES, strict=True):
        q, p = probabilities(other), probabilities(row)
        divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        expected.append(-math.log(p[label]) + 0.8 * divergence)
    close(of_each_image("mutual", {"weight": 0.8}), expected)


@pytest.mark.parametrize(("progress", "trust"), [(0.11, 0.6), (0.18, 0.8), (0.5, 1.0)])
def test_cross_split_softens_labels_by_how_far_the_other_model_is_from_them(progress: float, trust: float) -> None:
    """s = b p + (1 - b) y with b = trust (J - 1/2) + 1/2, J scaled to [0, 1] in each class; then s^2 / sum s^2."""

    def divergence(p: list[float], label: int) -> float:
        y = [float(place == label) for place in range(NUM_CLASSES)]
        middle = [(a + b) / 2 for a, b in zip(p, y, strict=True)]
        return sum(a * math.log(a / m) for one in (p, y) for a, m in zip(one, middle, strict=True) if a > 0) / 2

    loss = create("losses", "cross-split", {"warmup": 0.1, "temperature": 0.5})
    peers = [probabilities(row) for row in PEER]
    found = [divergence(p, label) for p, label in zip(peers, CLASSES, strict=True)]
    given = context(loss, progress=progress)
    own = (given.state["half"][given.indices] == 0).tolist()
    expected = []
    for image, (row, p, label) in enumerate(zip(ROWS, peers, CLASSES, strict=True)):
        alike = [value for value, other in zip(found, CLASSES, strict=True) if other == label]
        share = trust * ((found[image] - min(alike)) / (max(alike) - min(alike)) - 0.5) + 0.5
        mixed = [share * a + (1 - share) * (place == label) for place, a in enumerate(p)]
        soft = [value**2 / sum(one**2 for one in mixed) for value in mixed]
        cross = -sum(a * math.log(b) for a, b in zip(soft, probabilities(row), strict=True))
        expected.append(cross * own[image] * NUM_IMAGES / sum(own))
    logits = torch.tensor(ROWS, dtype=torch.float64)
    close(loss.loss(logits, targets_of(LABELS, dtype=torch.float64), given), expected)


def test_cross_split_gives_each_image_to_one_model_after_the_warm_up() -> None:
    loss = create("losses", "cross-split")
    logits, targets = some_logits(), targets_of(LABELS)
    learned = [loss.loss(logits, targets, context(loss, member=member)) > 0 for member in (0, 1)]
    assert torch.equal(learned[0], ~learned[1])
    before = [loss.loss(logits, targets, context(loss, progress=0.0, member=member)) for member in (0, 1)]
    expected = create("losses", "cross-entropy").loss(logits, targets, context())
    assert torch.equal(before[0], expected)
    assert torch.equal(before[1], expected)
    half = loss.initial_state(1001, 10)["half"]
    assert int(half.sum()) == 500
    assert not torch.equal(half, create("losses", "cross-split", {"split_seed": 1}).initial_state(1001, 10)["half"])


def test_a_loss_without_its_teacher_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="Name it in `teacher`"):
        of_each_image("hard-distillation", teacher=None)


def test_decays_go_from_one_to_zero() -> None:
    assert [decay_factor(decay, 0.0) for decay in ("none", "linear", "squared", "cosine")] == [1.0] * 4
    assert decay_factor("none", 0.999) == 1.0
    assert all(0 < decay_factor(decay, 0.999) < 2e-3 for decay in ("linear", "squared", "cosine"))


def test_a_decaying_teacher_depends_on_the_length_of_the_training() -> None:
    assert create("losses", "soft-distillation").independent_of_length
    assert not create("losses", "soft-distillation", {"decay": "linear"}).independent_of_length


def hsic(one: list[list[float]], other: list[list[float]]) -> float:
    """sum over pairs of images of the products of centred inner products."""

    def centred(rows: list[list[float]]) -> list[list[float]]:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        moved = [[value - mean for value, mean in zip(row, means, strict=True)] for row in rows]
        return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in moved] for x in moved]

    pairs = zip(centred(one), centred(other), strict=True)
    return sum(a * b for x, y in pairs for a, b in zip(x, y, strict=True))


def test_guidance_adds_what_the_layers_lack_in_alignment() -> None:
    own = some_layers(2, 6, seed=3, dtype=torch.float64)
    guide = some_layers(3, 4, seed=4, dtype=torch.float64)
    lacking = 0.0
    for mine, its in ((own[0], guide[0]), (own[1], guide[2])):
        x, y = mine.tolist(), its.tolist()
        lacking += 1 - hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    found = of_each_image("guidance", {"weight": 0.5}, layers=own, guide_layers=guide)
    close(found - of_each_image("cross-entropy"), [0.5 * lacking] * NUM_IMAGES)


def test_alignment_is_one_for_rotated_and_scaled_layers_and_zero_for_constant_ones() -> None:
    (layer,) = some_layers(1, 6, seed=0, dtype=torch.float64)
    rotation = torch.linalg.qr(some_layers(1, 6, seed=1, dtype=torch.float64)[0][:6]).Q
    assert float(linear_cka(layer, 3 * layer @ rotation + 1)) == pytest.approx(1.0, abs=1e-9)
    constant = torch.ones(NUM_IMAGES, 3, dtype=torch.float64, requires_grad=True)
    value = linear_cka(constant, layer)
    assert float(value.detach()) == 0.0
    assert torch.all(torch.autograd.grad(value, constant)[0].isfinite())


def test_layers_are_matched_by_relative_depth() -> None:
    guides = [torch.tensor(float(number)) for number in range(6)]
    assert [int(layer) for layer in matched_layers(3, guides)] == [1, 3, 5]
    assert [int(layer) for layer in matched_layers(6, guides)] == list(range(6))
    assert [int(layer) for layer in matched_layers(4, guides[:2])] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("focal", {"gamma": -1}),
        ("balanced-softmax", {"strength": 0}),
        ("z-loss", {"weight": 0}),
        ("early-learning", {"momentum": 1.0}),
        ("soft-distillation", {"temperature": 0}),
        ("soft-distillation", {"decay": "sudden"}),
        ("hard-distillation", {"weight": 1.5}),
        ("teacher-labels", {"weight": 0.5}),
        ("guidance", {"guide_seed": -1}),
        ("mutual", {"temperature": 0}),
        ("cross-split", {"warmup": 1}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("losses", name, settings)
