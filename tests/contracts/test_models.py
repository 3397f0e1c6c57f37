"""What the model of every search space must do."""

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plugins.protocols import CurveModel, is_block
from plugins.proxies.circle_scores import curves_by_autograd
from plugins.proxies.input_circle import circle_angles, circle_basis, circle_weights
from plugins.proxies.passes import record_pass
from plugins.proxies.repeats import NetworkStack
from plugins.proxies.tangent_kernel import per_image_kernel, tangent_kernel, tangent_kernels
from plugins.registry import available, create_space, load
from search_spaces.base import Growable, ImageTask, Topology
from tests.rounding import assert_rounded, path_length
from trainers.models.blocks import draw_keep_factors
from trainers.models.building import build_model, fitting_image_sizes
from trainers.models.dropout import Dropout, DropoutSite
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NUM_TOKENS = 1 + 32**2
"""Bound of the tokens that attention of any of these models adds up, with the class token."""


@pytest.fixture(params=sorted(available("spaces")))
def space(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sampled(space: str, count: int, seed: int = 0) -> list[Topology]:
    rng = random.Random(seed)
    return [create_space(space).sample(rng) for _ in range(count)]


def small(space: str, blocks: int = 1) -> Topology:
    """A sampled topology with few blocks and channels."""
    (topology,) = sampled(space, 1)
    assert isinstance(topology, Growable)
    narrow = topology.with_size(depths=[blocks] * len(topology.depths), width=topology.width_unit * 16)
    while load("spaces", space).problem(narrow, TASK) is not None:
        narrow = narrow.with_size(width=2 * narrow.width)
    return narrow


def build(topology: Topology, task: ImageTask = TASK, *, seed: int = 0, **settings: Any) -> Any:
    make = load("models", topology.id.partition(":")[0])
    return make(topology, task, generator=torch.Generator().manual_seed(seed), **settings)


def test_every_space_has_a_model_and_every_model_a_space() -> None:
    assert list(available("models")) == list(available("spaces"))


@pytest.mark.parametrize("size", [32, 64])
def test_closed_form_costs_are_those_of_the_built_model(space: str, size: int) -> None:
    task = ImageTask(image_size=size, in_channels=2, num_classes=7)
    for topology in [*sampled(space, 2), small(space, 2)]:
        costs = load("spaces", space).costs(topology, task)
        model = build(topology, task).eval()
        assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(torch.zeros(1, 2, size, size))
        assert costs.macs == counter.get_total_flops() / 2


def test_every_fitting_image_size_works_and_costs_what_is_counted(space: str) -> None:
    task = TASK.model_copy(update={"image_size": 96})
    topology = small(space, 2)
    model = build(topology, task).eval()
    sizes = fitting_image_sizes(topology.id, task)
    assert 32 in sizes
    assert sizes[-1] == 96
    for size in sizes:
        macs = []
        for num_images in (1, 2):  # positions are interpolated once per batch, which is no cost of an image
            images = torch.zeros(num_images, 3, size, size)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
                assert model(images).shape == (num_images, 5)
            macs.append(counter.get_total_flops() / 2)
        costs = load("spaces", space).costs(topology, task.model_copy(update={"image_size": size}))
        assert costs.macs == macs[1] - macs[0], size


def test_smaller_images_give_the_same_logits_alone_and_stacked(space: str) -> None:
    models = [build(small(space, 2), TASK.model_copy(update={"image_size": 64}), seed=seed) for seed in (0, 1)]
    images = torch.stack([IMAGES, IMAGES.flip(0)])
    parameters, _ = stack_module_state(models)

    def forward(weights: dict[str, Tensor], images: Tensor) -> Any:
        return functional_call(models[0], weights, (images,))

    expected = torch.stack([model(seen) for model, seen in zip(models, images, strict=True)])
    torch.testing.assert_close(vmap(forward)(parameters, images), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_smaller_images_reach_every_parameter(space: str) -> None:
    model = build(small(space, 2), TASK.model_copy(update={"image_size": 64}))
    F.cross_entropy(model(IMAGES), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_logits_and_features_have_their_shapes(space: str) -> None:
    model = build(small(space)).eval()
    assert model(IMAGES).shape == (4, 5)
    features = model.forward_features(IMAGES)
    assert features.ndim == 2
    assert len(features) == 4


def test_each_image_is_seen_on_its_own(space: str) -> None:
    model = build(small(space)).eval()
    with torch.no_grad():
        assert_rounded(model(IMAGES)[2:3], model(IMAGES[2:3]), path_length(model, NUM_TOKENS))
        features = model.forward_features(IMAGES)[2:3]
        assert_rounded(features, model.forward_features(IMAGES[2:3]), path_length(model, NUM_TOKENS))


def test_every_weight_is_drawn_and_a_seed_always_gives_the_same(space: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(small(space), seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for name, value in first.items():
        is_constant = bool((value == value.flatten()[0]).all())
        assert is_constant or not torch.equal(value, other[name]), name
        assert value.abs().max() <= 2, name


def test_float64_weights_are_the_same_numbers_and_compute_the_same(space: str) -> None:
    plain, double = build(small(space)).eval(), build(small(space), dtype=torch.float64).eval()
    for name, value in plain.state_dict().items():
        assert torch.equal(value.double(), double.state_dict()[name])
    with torch.no_grad():
        logits = double(IMAGES.double())
        assert logits.dtype == torch.float64
        assert_rounded(plain(IMAGES), logits, path_length(plain, NUM_TOKENS))


def test_without_normalization_no_layer_norm_is_left(space: str) -> None:
    assert any(isinstance(module, nn.LayerNorm) for module in build(small(space)).modules())
    assert not any(isinstance(module, nn.LayerNorm) for module in build(small(space), normalization=False).modules())


def test_proxies_find_the_blocks_in_their_order(space: str) -> None:
    topology = small(space, 2)
    assert isinstance(topology, Growable)
    candidate = make_candidate(topology, IMAGES, TASK, seed=0)
    parts = record_pass(candidate, seed=0).parts
    blocks = [record.block for record in parts[0].blocks]
    assert len(blocks) == sum(topology.depths)
    named = [module for _, module in candidate.build(seed=0).named_modules() if is_block(module)]
    assert len(named) == len(blocks)
    for record in parts[0].blocks:
        for stream in record.stream:
            assert stream.shape == record.attended.shape
        block: Any = record.block
        first, second, third = record.stream
        assert_rounded(first + block.attn(block.norm1(first)), second, path_length(block, NUM_TOKENS))
        assert_rounded(second + block.mlp(block.norm2(second)), third, path_length(block, NUM_TOKENS))
        assert record.hidden.shape[-1] == block.mlp.get_submodule("fc1").out_features


def test_attention_weights_are_those_that_the_values_are_mixed_with(space: str) -> None:
    for record in record_pass(make_candidate(small(space), IMAGES, TASK, seed=0), seed=0).parts[0].blocks:
        attention: Any = record.block.attn
        weights = attention.attention_weights(record.attended)
        assert weights.shape[-3] == attention.heads
        assert weights.shape[-1] == weights.shape[-2]
        assert len(weights) == len(record.attended)
        num_tokens = record.attended[0, ..., 0].numel()
        assert weights[0, ..., 0].numel() == num_tokens * attention.heads
        assert_rounded(weights.sum(-1), torch.ones_like(weights[..., 0]), 2 * num_tokens)
        if weights.shape[-1] == num_tokens:  # one window: the output can be put together without knowing its layout
            values = attention.qkv(record.attended).reshape(len(weights), num_tokens, 3, attention.heads, -1)[:, :, 2]
            mixed = weights.reshape(len(weights), attention.heads, num_tokens, num_tokens) @ values.transpose(1, 2)
            out = attention.proj(mixed.transpose(1, 2).flatten(2))
            num_terms = path_length(attention, num_tokens)
            assert_rounded(out.view_as(record.attended), attention(record.attended), num_terms)


def test_drop_path_draws_from_the_given_generator_only_in_training(space: str) -> None:
    model = build(small(space, 2), drop_path=0.5)

    def logits(seed: int) -> Tensor:
        out: Tensor = model(IMAGES, generator=torch.Generator().manual_seed(seed))
        return out

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    with pytest.raises(ValueError, match=r"drop_path=0\.5 .* must be given a CPU `generator`"):
        model(IMAGES)
    model.eval()
    assert_rounded(model(IMAGES), logits(1), path_length(model, NUM_TOKENS))


def test_given_keep_factors_take_effect_whatever_the_models_own_drop_path_is(space: str) -> None:
    topology = small(space, 2)
    plain, dropping = build(topology), build(topology, drop_path=0.5)
    num_blocks = sum(is_block(module) for module in plain.modules())
    factors = draw_keep_factors(num_blocks, 4, rate=0.5, generator=torch.Generator().manual_seed(1))
    logits = plain(IMAGES, generator=factors)
    assert torch.equal(logits, dropping(IMAGES, generator=factors))
    assert torch.equal(logits, dropping(IMAGES, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(logits, plain(IMAGES))
    assert torch.equal(plain.eval()(IMAGES, generator=factors), plain(IMAGES))


def test_dropout_depends_on_its_seed_and_acts_only_in_training(space: str) -> None:
    model = build(small(space, 2))
    first, again, other = (model(IMAGES, dropout=Dropout(0.2, torch.tensor(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    unchanged = model(IMAGES)
    for rate in (0.0, torch.tensor(0.0)):
        assert torch.equal(model(IMAGES, dropout=Dropout(rate, torch.tensor(1))), unchanged)
    model.eval()
    torch.testing.assert_close(model(IMAGES, dropout=Dropout(0.2, torch.tensor(1))), unchanged)


def test_dropout_has_a_mask_of_each_image_and_of_each_vit_site(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(small(space, 2))
    num_blocks = sum(is_block(module) for module in model.modules())
    masks: list[Tensor] = []

    def note(site: DropoutSite, values: Tensor) -> Tensor:
        masks.append(drop(site, torch.ones_like(values)) == 0)
        return drop(site, values)

    drop = DropoutSite.__call__
    monkeypatch.setattr(DropoutSite, "__call__", note)
    model(IMAGES, dropout=Dropout(0.5, torch.tensor(0)))
    assert len(masks) == 1 + 3 * num_blocks
    for number, mask in enumerate(masks):
        assert not torch.equal(mask[0], mask[1]), number
        for other in masks[:number]:
            count = min(mask.numel(), other.numel())
            assert not torch.equal(mask.flatten()[:count], other.flatten()[:count]), number


def test_dropout_gives_the_same_logits_and_gradients_alone_and_stacked(space: str) -> None:
    models = [build(small(space, 2), seed=seed) for seed in (0, 1)]
    parameters, _ = stack_module_state(models)
    rates, seeds = torch.tensor([0.1, 0.4]), torch.tensor([5, 6])

    def forward(weights: dict[str, Tensor], dropout: Dropout) -> Any:
        return functional_call(models[0], weights, (IMAGES,), {"dropout": dropout})

    logits = vmap(forward)(parameters, Dropout(rates, seeds))
    expected = [
        model(IMAGES, dropout=Dropout(rate, seed))
        for model, rate, seed in zip(models, (0.1, 0.4), seeds.unbind(), strict=True)
    ]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    for index, model in enumerate(models):
        alone = torch.autograd.grad(expected[index].square().sum(), list(model.parameters()))
        for gradient, other in zip(gradients, alone, strict=True):
            torch.testing.assert_close(gradient[index], other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_an_impossible_drop_path_or_image_size_is_refused(space: str) -> None:
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"`drop_path` must lie in \[0, 1\), but got"):
            build(small(space), drop_path=rate)
    with pytest.raises(ValueError, match=r"cannot be built: the image size must .*but got 3"):
        build(small(space), TASK.model_copy(update={"image_size": 3}))


def test_training_steps_lower_the_loss_and_reach_every_parameter(space: str) -> None:
    topology = small(space, 2)
    model = build_model(topology.id, TASK, seed=0, device=torch.device("cpu"), drop_path=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator, labels, losses = torch.Generator().manual_seed(0), torch.arange(4), []
    for _ in range(25):
        loss = F.cross_entropy(model(IMAGES, generator=generator), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_layerwise_kernel_is_that_of_one_gradient_per_image(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(small(space, 2), dtype=torch.float64).eval()
    expected = per_image_kernel(model, IMAGES.double())

    def general_way(*_: Any) -> None:
        pytest.fail("the kernel must be computed layer by layer, which is many times faster")

    monkeypatch.setattr("plugins.proxies.tangent_kernel.per_image_kernel", general_way)
    # Forward, backward, and the sum over the weights of the layers.
    num_terms = 2 * path_length(model, NUM_TOKENS) + sum(parameter.numel() for parameter in model.parameters())
    assert_rounded(tangent_kernel(model, IMAGES.double()), expected, num_terms)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_derivatives_on_a_circle_are_those_of_autograd(space: str, scale: float) -> None:
    topology = small(space, 2)
    angles = circle_angles(4, like=torch.zeros(1, dtype=torch.float64))[:-1]
    basis = scale * circle_basis((3, 32, 32), generator=torch.Generator().manual_seed(1))
    normed = build(topology, dtype=torch.float64).eval()
    assert isinstance(normed, CurveModel), "without it, scores of curves take ten times as long"
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    found = normed.features_along(basis, circle_weights(angles, order=2))
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    plain = build(topology, dtype=torch.float64, normalization=False).eval()
    (expected,) = curves_by_autograd(iter([plain]), [basis], angles, order=2)
    num_terms = 3 * path_length(plain, NUM_TOKENS)  # each sum is one over three coefficients of every term
    for ours, theirs in zip(found[1:], expected, strict=True):
        assert_rounded(ours, theirs, num_terms)
    with torch.no_grad():
        features = plain.forward_features(torch.tensordot(circle_weights(angles, order=0)[0], basis, 1))
    assert_rounded(found[0], features, num_terms)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_stacked_networks_are_those_built_alone(space: str, scale: float) -> None:
    """With a large circle, attention is computed exactly instead of to first order."""
    topology, seeds, images = small(space, 2), (3, 4, 5), IMAGES.double()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stack = load("models", space).stack(topology, TASK, generators=generators, dtype=torch.float64).eval()
    alone = [build(topology, seed=seed, dtype=torch.float64).eval() for seed in seeds]
    bases = [scale * circle_basis((3, 32, 32), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    weights = circle_weights(circle_angles(4, like=images)[:-1], order=2)
    with torch.no_grad():
        features = stack.forward_features(images).chunk(len(seeds))
    kernels = tangent_kernels([NetworkStack(stack, len(seeds))], images)
    curves = stack.features_along(torch.stack(bases), weights)
    assert not curves.requires_grad
    for model, basis, feature, kernel, curve in zip(alone, bases, features, kernels, curves, strict=True):
        num_terms = path_length(model, NUM_TOKENS)
        assert_rounded(feature, model.forward_features(images).detach(), num_terms)
        for ours, theirs in zip(curve, model.features_along(basis, weights), strict=True):
            assert_rounded(ours, theirs, 3 * num_terms)
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        assert_rounded(kernel, per_image_kernel(model, images), 2 * num_terms + num_weights)


def test_stacked_weights_are_drawn_as_for_one_network(space: str) -> None:
    topology, seeds = small(space, 2), (3, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    stacked = dict(load("models", space).stack(topology, TASK, generators=generators).named_parameters())
    for place, seed in enumerate(seeds):
        for name, expected in build(topology, seed=seed).named_parameters():
            found = stacked[name]
            is_own = found.ndim > expected.ndim or len(expected) < len(found)
            assert torch.equal(found[place].view_as(expected) if is_own else found, expected), name
