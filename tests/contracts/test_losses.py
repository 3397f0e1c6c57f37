"""Rules for every loss, and the behaviour of ours."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.protocols import LabelLoss, Loss, LossContext, PluginCard, StackedLabelLoss
from plugins.registry import available, create
from tests.steps import now

NUM_IMAGES, NUM_CLASSES = 12, 5
NAMES = sorted(available("losses"))
LABELS = torch.arange(NUM_IMAGES) % NUM_CLASSES


@pytest.fixture(params=NAMES)
def loss(request: pytest.FixtureRequest) -> Loss:
    return create("losses", request.param)


def some_logits(*, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator, dtype=dtype)


def targets_of(labels: Tensor, *, smoothing: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Soft targets of labels with smoothing."""
    return F.one_hot(labels, NUM_CLASSES).to(dtype) * (1 - smoothing) + smoothing / NUM_CLASSES


def mixed_targets() -> Tensor:
    return 0.7 * targets_of(LABELS, smoothing=0.1) + 0.3 * targets_of(LABELS.flip(0), smoothing=0.1)


def context(labels: Tensor = LABELS) -> LossContext:
    return LossContext(labels=labels, now=now(0.5))


def test_it_has_a_card(loss: Loss) -> None:
    assert isinstance(loss.card, PluginCard)
    assert loss.card.source
    assert loss.card.cost


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_image_has_a_finite_loss_in_the_dtype_of_the_logits(loss: Loss, dtype: torch.dtype) -> None:
    found = loss.loss(some_logits(dtype=dtype), targets_of(LABELS, smoothing=0.1, dtype=dtype), context())
    assert found.shape == (NUM_IMAGES,)
    assert found.dtype == dtype
    assert torch.all(found.isfinite())


@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("targets", [targets_of(LABELS), mixed_targets()], ids=["hard", "mixed"])
def test_the_gradient_is_finite_and_not_zero(loss: Loss, targets: Tensor, scale: float) -> None:
    logits = some_logits(scale=scale).requires_grad_()
    (gradient,) = torch.autograd.grad(loss.loss(logits, targets, context()).sum(), logits)
    assert torch.all(gradient.isfinite())
    assert gradient.abs().max() > 0


def test_the_loss_of_an_image_does_not_depend_on_its_place(loss: Loss) -> None:
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1))
    logits, targets = some_logits(), mixed_targets()
    expected = loss.loss(logits, targets, context())[order]
    found = loss.loss(logits[order], targets[order], context(LABELS[order]))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_step_against_the_gradient_lowers_the_loss(loss: Loss) -> None:
    logits = some_logits().requires_grad_()
    before = loss.loss(logits, targets_of(LABELS), context()).mean()
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss.loss(logits.detach() - 0.1 * gradient, targets_of(LABELS), context()).mean() < before


def test_a_loss_leaves_its_inputs_and_the_global_generator_as_they_were(loss: Loss) -> None:
    logits, targets, state = some_logits(), mixed_targets(), torch.get_rng_state()
    first = loss.loss(logits, targets, context())
    assert torch.equal(first, loss.loss(logits, targets, context()))
    assert torch.equal(logits, some_logits())
    assert torch.equal(targets, mixed_targets())
    assert torch.equal(state, torch.get_rng_state())


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
