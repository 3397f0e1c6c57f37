"""Scores from weights and loss gradients, compared with their formulas for a tiny network in float64."""

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plugins.protocols import Candidate, Proxy, is_block
from plugins.proxies.jacobian_covariance import eigenvalue_score
from plugins.proxies.positive_pass import nuclear_norm
from plugins.proxies.repeats import repeat_seeds
from plugins.registry import create, parse_topology
from search_spaces.base import Costs, ImageTask, Topology
from tests.rounding import path_length, rounded
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=2, num_classes=5)
TOPOLOGIES = (
    "as-vit:5,2,2|3,1,2|2,1,3|4,1,2|16,4",
    "autoformer:2,2|1,1.5|4,3|8,4",
    "pit:1,1|2,2|1,2|2,4,4",
)
"""The last two have 65 and 226 tokens, more than `FEW_TOKENS`, so that torch's fused attention is used."""
IMAGES = torch.randn(5, 2, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([4, 0, 2, 2, 1])
PARTS = (slice(0, 3), slice(3, 5))
"""How five images are split in two."""


@pytest.fixture(params=TOPOLOGIES, ids=lambda text: text.partition(":")[0])
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return make_candidate(parse_topology(request.param), IMAGES, TASK, seed=3, labels=LABELS)


def _fresh(candidate: Candidate) -> nn.Module:
    return candidate.build(seed=repeat_seeds(candidate.seed, 1)[0])


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}


def _num_terms(model: nn.Module) -> int:
    """Number of rounded terms in a forward and a backward pass of five images and a sum over all weights."""
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    return 2 * path_length(model, num_tokens=226) + len(IMAGES) + num_weights


def _from_squares(num_singular_values: int) -> float:
    """Error bound of singular values from eigenvalues of inner products, relative to the largest.

    An eigenvalue is off by `eps` of the largest, and its root therefore by as much as the root of `eps` near 0.
    """
    return num_singular_values * math.sqrt(torch.finfo(torch.float64).eps)


def _weight_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    return {
        name: torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad.clone()
        for name, layer in _layers(model).items()
    }


def _score(name: str, candidate: Candidate, **settings: int) -> float:
    proxy: Proxy = create("proxies", name, settings)
    found = proxy.score(candidate)
    assert found.spread == 0
    return found.value


def test_snip_is_the_sum_of_weights_times_gradients(candidate: Candidate) -> None:
    model = _fresh(candidate)
    gradients = _weight_gradients(model, IMAGES, LABELS)
    expected = sum((layer.weight * gradients[name]).abs().sum().item() for name, layer in _layers(model).items())
    assert _score("snip", candidate) == rounded(expected, _num_terms(model))


def test_the_gradient_norm_is_the_sum_over_layers(candidate: Candidate) -> None:
    model = _fresh(candidate)
    gradients = _weight_gradients(model, IMAGES, LABELS)
    expected = sum(float(gradient.square().sum().sqrt()) for gradient in gradients.values())
    assert _score("grad-norm", candidate) == rounded(expected, _num_terms(model))


def test_fisher_is_the_squared_gradient_of_a_mask_for_each_image_and_channel(candidate: Candidate) -> None:
    model, masks = _fresh(candidate), []

    def masked(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        channel = 1 if isinstance(layer, nn.Conv2d) else output.ndim - 1
        shape = [size if place in (0, channel) else 1 for place, size in enumerate(output.shape)]
        masks.append(torch.ones(shape, dtype=output.dtype, requires_grad=True))
        return output * masks[-1]

    for layer in _layers(model).values():
        layer.register_forward_hook(masked)
    F.cross_entropy(model(IMAGES), LABELS).backward()
    expected = sum(0.5 * float(mask.grad.square().mean(0).sum()) for mask in masks if mask.grad is not None)
    assert _score("fisher", candidate) == rounded(expected, 2 * _num_terms(model))  # squares


def test_zico_compares_the_gradients_of_the_halves_of_the_batch(candidate: Candidate) -> None:
    model, condition = _fresh(candidate), 1.0
    halves = [_weight_gradients(model, IMAGES[part], LABELS[part]) for part in PARTS]
    expected = 0.0
    for name in halves[0]:
        both = np.stack([gradients[name].numpy().ravel() for gradients in halves])
        spread = np.std(both, axis=0)
        varies = spread > 0
        if varies.any():
            ratios = np.mean(np.abs(both), axis=0)[varies] / spread[varies]
            expected += math.log(np.sum(ratios))
            condition = max(condition, float(ratios.max()))  # two gradients that are nearly equal cancel
    assert _score("zico", candidate) == rounded(expected, _num_terms(model), condition=condition)


def test_zico_needs_two_images() -> None:
    candidate = make_candidate(parse_topology(TOPOLOGIES[1]), IMAGES[:1], TASK, seed=3)
    with pytest.raises(ValueError, match="at least 2 images, but got 1"):
        _score("zico", candidate)


def test_jacobian_covariance_is_that_of_the_summed_logits_of_each_image(candidate: Candidate) -> None:
    model = _fresh(candidate)
    rows = []
    for image in IMAGES:
        own = image[None].clone().requires_grad_()
        model(own).sum().backward()
        assert own.grad is not None
        rows.append(own.grad.flatten().numpy())
    values = np.linalg.eigvalsh(np.corrcoef(np.stack(rows))) + 1e-5
    # An error of an eigenvalue is one relative to the largest, at most 5, and grows as that of `1 / value`.
    condition = 5 / values.min()
    expected = -np.sum(np.log(values) + 1 / values)
    assert _score("jacobian-covariance", candidate) == rounded(expected, _num_terms(model), condition=condition)


def test_images_that_the_network_sees_apart_have_the_best_jacobians() -> None:
    rows = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    apart, alike = eigenvalue_score(rows), eigenvalue_score(rows[[0, 0]])
    assert apart == rounded(-2 * (math.log(1 + 1e-5) + 1 / (1 + 1e-5)), 4)
    expected = -sum(math.log(value + 1e-5) + 1 / (value + 1e-5) for value in (0.0, 2.0))
    assert alike == rounded(expected, 4, condition=2 / 1e-5)
    assert math.isnan(eigenvalue_score(torch.ones(2, 4)))


@pytest.mark.parametrize(("num_images", "chosen"), [(2, [0, 3]), (4, [0, 1, 3, 4]), (50, [0, 1, 2, 3, 4])])
def test_grasp_is_the_weights_times_the_hessian_times_the_gradient(
    candidate: Candidate, num_images: int, chosen: list[int]
) -> None:
    model = _fresh(candidate)
    weights = [layer.weight for layer in _layers(model).values()]
    directions = _weight_gradients(model, IMAGES, LABELS).values()
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(IMAGES[chosen]), LABELS[chosen])
    gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    along = torch.stack([(one * other).sum() for one, other in zip(gradients, directions, strict=True)]).sum()
    products = torch.autograd.grad(along, weights, materialize_grads=True)
    expected = -sum(float((weight.detach() * product).sum()) for weight, product in zip(weights, products, strict=True))
    size = sum(
        float((weight.detach() * product).abs().sum()) for weight, product in zip(weights, products, strict=True)
    )
    num_terms = 2 * _num_terms(model)  # two passes back
    condition = size / abs(expected)  # the terms cancel
    assert _score("grasp", candidate, num_images=num_images) == rounded(expected, num_terms, condition=condition)


def _positive_gradients(candidate: Candidate) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, absolute weight and gradient of the sum of the logits, of each layer."""
    model = copy.deepcopy(_fresh(candidate))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.abs())
    model(torch.ones(1, 2, 32, 32, dtype=torch.float64)).sum().backward()
    for name, layer in _layers(model).items():
        assert layer.weight.grad is not None
        yield name, layer.weight.detach(), layer.weight.grad


def test_synflow_is_the_logarithm_of_what_flows_through_the_weights(candidate: Candidate) -> None:
    expected = sum(float((weight * gradient).abs().sum()) for _, weight, gradient in _positive_gradients(candidate))
    assert _score("synflow", candidate) == rounded(math.log(expected), _num_terms(_fresh(candidate)))


@pytest.mark.parametrize("square_layers", [False, True])
def test_dss_takes_nuclear_norms_in_attention_and_saliency_elsewhere(candidate: Candidate, square_layers: bool) -> None:
    expected = 0.0
    for name, weight, gradient in _positive_gradients(candidate):
        is_square = weight.ndim == 2 and weight.shape[0] == weight.shape[1]
        if name.endswith(("attn.qkv", "attn.proj")) or (square_layers and is_square):
            expected += float(torch.linalg.svdvals(gradient).sum() * torch.linalg.svdvals(weight).sum())
        else:
            expected += float((weight * gradient).abs().sum())
    found = _score("dss", candidate, square_layers=square_layers)
    assert found == pytest.approx(math.log(expected), rel=0, abs=_from_squares(24))  # of 3 x 8 channels at most


@pytest.mark.parametrize("shape", [(7, 7), (4, 9), (9, 4)])
def test_a_nuclear_norm_is_the_sum_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = _from_squares(min(shape))
    assert float(nuclear_norm(matrix)) == pytest.approx(float(torch.linalg.matrix_norm(matrix, "nuc")), rel=bound)
    expected = float(matrix[:, 0].norm() * matrix[0].norm())
    assert float(nuclear_norm(matrix[:, :1] @ matrix[:1])) == pytest.approx(expected, rel=bound)
    assert math.isnan(float(nuclear_norm(torch.full(shape, math.inf, dtype=torch.float64))))


def test_weight_norm_is_the_sum_over_layers(candidate: Candidate) -> None:
    model = _fresh(candidate)
    expected = sum(layer.weight.square().sum().sqrt().item() for layer in _layers(model).values())
    assert _score("weight-norm", candidate) == rounded(expected, sum(one.numel() for one in model.parameters()))


def test_depth_counts_the_blocks_that_are_built(candidate: Candidate) -> None:
    assert _score("depth", candidate) == sum(is_block(module) for module in _fresh(candidate).modules())


# --- networks whose scores are known ---


class _FixedTopology(Topology):
    """A topology that cannot be grown."""

    @property
    def id(self) -> str:
        return "fixed:"


def _candidate_of(build: Callable[[], nn.Module], images: Tensor, labels: Tensor) -> Candidate:
    def fresh(**_: object) -> nn.Module:
        return build()

    task = ImageTask(image_size=images.shape[-1], in_channels=images.shape[1], num_classes=2)
    return Candidate(
        topology=_FixedTopology(), task=task, costs=Costs(1, 1), images=images, labels=labels, build=fresh, seed=0
    )


class _Chain(nn.Sequential):
    """Linear layers of ones, 4 x 4, on flat images."""

    def __init__(self, depth: int) -> None:
        layers = [nn.Linear(4, 4, bias=False) for _ in range(depth)]
        super().__init__(nn.Flatten(), *layers)
        for layer in layers:
            nn.init.ones_(layer.weight)


@pytest.mark.parametrize("depth", [1, 3, 200])
@pytest.mark.parametrize("name", ["synflow", "dss"])
def test_what_flows_through_a_chain_is_known_far_beyond_float32(name: str, depth: int) -> None:
    """Every layer adds `R = 4 ^ (depth + 1)`; float32 ends at `4 ^ 64`."""
    candidate = _candidate_of(lambda: _Chain(depth), torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    expected = math.log(depth) + (depth + 1) * math.log(4)
    settings = {"square_layers": False} if name == "dss" else {}  # otherwise, these layers count as attention
    assert _score(name, candidate, **settings) == rounded(expected, 2 * (depth + 1) * 4)


def test_a_network_through_which_nothing_flows_is_bad() -> None:
    def dead() -> nn.Module:
        chain = _Chain(2)
        nn.init.zeros_(chain.get_submodule("1").get_parameter("weight"))
        return chain

    candidate = _candidate_of(dead, torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    assert math.isnan(create("proxies", "synflow").score(candidate).value)


def test_depth_looks_into_the_network_where_the_topology_does_not_tell() -> None:
    built = _fresh(make_candidate(parse_topology(TOPOLOGIES[2]), IMAGES, TASK, seed=0))
    candidate = _candidate_of(lambda: built, IMAGES, LABELS)
    assert _score("depth", candidate) == 4
