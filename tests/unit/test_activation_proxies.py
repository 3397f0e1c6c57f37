"""Scores computed from activations, each compared with its formula in plain NumPy."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import Candidate
from plugins.proxies import attention_entropy, latency
from plugins.proxies.attention_entropy import AttentionEntropy, mean_entropy
from plugins.proxies.az_expressivity import AzExpressivity
from plugins.proxies.az_trainability import AzTrainability, gradient_products
from plugins.proxies.latency import Latency
from plugins.proxies.meco import Meco
from plugins.proxies.nwot import Nwot
from plugins.proxies.passes import RecordedPass, record_pass
from plugins.proxies.spectra import (
    correlation_matrix,
    covariance_eigenvalues,
    largest_singular_value,
    spectral_entropy,
)
from plugins.proxies.swap import Swap
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, path_length, rounded
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
TOPOLOGIES = ("as-vit:8,2,3|4,1,2,2|4,1,4|4,1,6|32,8", "autoformer:2,2|1,4|2,3|12,8", "pit:1,2|2,2|1,4|3,6,8")
PROXIES = (AzExpressivity(), AzTrainability(), Nwot(), Meco(), Swap(), Swap(tokens="each"), AttentionEntropy())


def _candidate(topology: str = TOPOLOGIES[1], *, num_images: int = 5, dtype: torch.dtype = torch.float64) -> Candidate:
    images = torch.randn(num_images, 1, 32, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    return make_candidate(parse_topology(topology), images, TASK, seed=0, labels=torch.arange(num_images) % 10)


@pytest.fixture(params=TOPOLOGIES)
def recorded(request: pytest.FixtureRequest) -> RecordedPass:
    return record_pass(_candidate(request.param), seed=11)


class _Block:
    """What a block did in one pass of the whole batch, as its modules' inputs and outputs."""

    def __init__(self, block: nn.Module, images: Tensor, model: nn.Module) -> None:
        self.module: Any = block
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        watched = {"norm1": "stream", "norm2": "attended", "attn": "attention", "mlp.act": "act"}
        handles = [
            block.get_submodule(path).register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)})
            )
            for path, name in watched.items()
        ]
        handles.append(block.register_forward_hook(lambda _, inputs, output: seen.update(block=(inputs[0], output))))
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        self.before, self.after_attention, self.after_mlp = seen["stream"][0], seen["attended"][0], seen["block"][1]
        self.attended, self.hidden = seen["attention"][0], seen["act"][0]


def _blocks(recorded: RecordedPass) -> list[_Block]:
    """The blocks of the network, forward over the whole batch at once, without the recording's own machinery."""
    found = [module for module in recorded.model.modules() if hasattr(module, "norm1")]
    return [_Block(block, recorded.candidate.images, recorded.model) for block in found]


def _num_terms(recorded: RecordedPass) -> int:
    """Number of rounded terms in two passes over at most 226 tokens and a sum over the tokens of five images."""
    return 2 * path_length(recorded.model, num_tokens=226) + 5 * 226


def _rows(values: Tensor) -> Any:
    return values.flatten(0, -2).numpy()


# --- spectra ---


def test_the_eigenvalues_of_a_covariance_are_those_of_numpy_whatever_is_the_larger_side() -> None:
    for shape in ((30, 7), (7, 30)):
        values = np.random.default_rng(0).normal(size=shape)
        expected = np.linalg.eigvalsh(np.cov(values, rowvar=False, bias=True))[-min(shape) :]
        found = covariance_eigenvalues(torch.from_numpy(values))
        assert_rounded(found, torch.from_numpy(expected), sum(shape))


def test_the_entropy_of_an_even_spectrum_is_the_logarithm_of_its_size_and_that_of_one_value_0() -> None:
    assert float(spectral_entropy(torch.full((6,), 3.0))) == rounded(math.log(6), 6, torch.float32)
    assert float(spectral_entropy(torch.tensor([0.0, 0.0, 5.0]))) == 0
    assert math.isnan(float(spectral_entropy(torch.zeros(3))))


def test_the_largest_singular_value_is_the_first_of_all() -> None:
    for shape in ((9, 4), (4, 9)):
        matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert_rounded(largest_singular_value(matrix), torch.linalg.svdvals(matrix)[0], sum(shape))


def test_correlations_are_those_of_numpy_and_0_for_a_constant_row() -> None:
    rows = torch.randn(2, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows[:, 2] = 0.1
    found = correlation_matrix(rows)
    for matrix, one in zip(found, rows, strict=True):
        assert_rounded(matrix[:2, :2], torch.from_numpy(np.corrcoef(one[:2].numpy())), 3 * 20)
    assert torch.equal(found[:, 2], torch.zeros(2, 3, dtype=torch.float64))


def test_matrices_with_a_value_that_is_not_finite_have_no_spectrum() -> None:
    values = torch.ones(4, 3)
    values[1, 1] = math.inf
    assert covariance_eigenvalues(values).isnan().all()
    assert largest_singular_value(values).isnan()


# --- the scores ---


def test_expressivity_is_the_summed_entropy_of_the_spectra_after_every_half_of_a_block(recorded: RecordedPass) -> None:
    expected = 0.0
    for block in _blocks(recorded):
        for stream in (block.after_attention, block.after_mlp):
            tokens = _rows(stream)
            centred = tokens - tokens.mean(0)
            shares = np.clip(np.linalg.eigvalsh(centred.T @ centred / len(tokens)), 0, None)
            shares /= shares.sum()
            expected -= (shares * np.log(shares + 1e-8)).sum()
    assert AzExpressivity().measure(recorded) == rounded(expected, _num_terms(recorded))


def _gradient(block: Any, half: int, inputs: Tensor, signs: Tensor) -> Tensor:
    """`J^T signs` of one half, from the whole Jacobian."""

    def run(values: Tensor) -> Tensor:
        return values + (block.mlp(block.norm2(values)) if half else block.attn(block.norm1(values)))

    jacobian = torch.autograd.functional.jacobian(run, inputs).reshape(signs.numel(), inputs.numel())
    return (signs.flatten() @ jacobian).view_as(inputs)


def test_trainability_is_that_of_the_whole_jacobian_of_every_half() -> None:
    recorded = record_pass(_candidate("pit:1,1|1,2|1,2|2,4,16", num_images=3), seed=11)
    seeds = torch.randint(2**62, (2,), generator=recorded.generator()).tolist()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scores = []
    for block in _blocks(recorded):
        for half, stream in enumerate((block.before, block.after_attention)):
            product, num_tokens = 0.0, 0
            for inputs, generator in zip(torch.split(stream, 2), generators, strict=True):
                signs = torch.empty_like(inputs).random_(0, 2, generator=generator) * 2 - 1
                assert set(signs.unique().tolist()) == {-1.0, 1.0}
                gradient = _gradient(block.module, half, inputs, signs)
                product = product + _rows(gradient).T @ _rows(signs)
                num_tokens += len(_rows(signs))
            largest = np.linalg.norm(product / num_tokens, 2)
            scores.append(-largest - 1 / (largest + 1e-6) + 2)
    assert AzTrainability().measure(recorded) == rounded(statistics.fmean(scores), _num_terms(recorded))


def test_trainability_keeps_the_graph_for_the_next_score(recorded: RecordedPass) -> None:
    assert AzTrainability().measure(recorded) == AzTrainability().measure(recorded)
    assert len(recorded.gradients) == 2


def test_gradients_of_an_identity_are_the_signs_themselves() -> None:
    candidate = _candidate()
    with torch.no_grad():
        for name, weight in record_pass(candidate, seed=11).model.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                weight.zero_()
    products = gradient_products(record_pass(candidate, seed=11).parts[0], torch.Generator().manual_seed(0))
    assert len(products) == 6
    for product, num_tokens in products:
        assert torch.equal(product, product.T)
        assert torch.equal(product.diagonal(), torch.full((12,), float(num_tokens), dtype=torch.float64))


def test_without_the_floor_the_trainability_of_branches_that_add_nothing_is_near_its_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = record_pass(_candidate(num_images=16), seed=11)

    def of_signs(part: Any, generator: torch.Generator) -> list[tuple[torch.Tensor, int]]:
        found = []
        for block in part.blocks:
            signs = torch.empty(block.stream[1].shape, dtype=torch.float64).random_(0, 2, generator=generator) * 2 - 1
            rows = signs.flatten(0, -2)
            found.append((rows.T @ rows, len(rows)))
        return found

    monkeypatch.setattr("plugins.proxies.az_trainability.gradient_products", of_signs)
    floor, removed = (AzTrainability(without_floor=off).measure(recorded) for off in (False, True))
    assert abs(removed) < 0.2 * abs(floor)


@pytest.mark.parametrize(("count", "chunks"), [(2, [2]), (17, [17]), (33, [16, 17]), (64, [16] * 4)])
def test_noise_images_of_the_authors_are_taken_in_chunks(count: int, chunks: list[int]) -> None:
    recorded = record_pass(_candidate("pit:1,1|1,2|1,2|2,4,16", num_images=3), seed=11)
    proxy = AzTrainability(num_noise_images=count)
    taken = [passed.candidate.images for passed in proxy._passes(recorded, recorded.generator())]
    assert [len(images) for images in taken] == chunks
    weights = dict(recorded.model.named_parameters())
    (first, *_) = proxy._passes(recorded, recorded.generator())
    assert all(torch.equal(weight, weights[name]) for name, weight in first.model.named_parameters())
    assert math.isfinite(proxy.measure(recorded))
    assert proxy.measure(recorded) != AzTrainability().measure(recorded)


def test_nwot_counts_the_units_at_which_images_agree(recorded: RecordedPass) -> None:
    codes = [
        [bool(unit > 0) for block in _blocks(recorded) for unit in block.hidden[image].flatten()] for image in range(5)
    ]
    kernel = [[sum(a == b for a, b in zip(first, second, strict=True)) for second in codes] for first in codes]
    expected = np.linalg.slogdet(np.array(kernel, dtype=float))[1]
    assert Nwot().measure(recorded) == rounded(expected, 5, condition=np.linalg.cond(kernel))


def test_nwot_refuses_a_batch_in_which_it_cannot_tell_two_images_apart() -> None:
    candidate = _candidate()
    same = candidate.images[[0, 1, 2, 3, 0]]
    assert not math.isfinite(Nwot().measure(record_pass(replace(candidate, images=same), seed=11)))


@pytest.mark.parametrize("num_images", [5, 55])
def test_swap_counts_the_different_patterns_of_units_over_images(num_images: int) -> None:
    recorded = record_pass(_candidate(num_images=num_images), seed=11)
    of_means, of_each = set(), set()
    for block in _blocks(recorded):
        hidden = block.hidden.flatten(1, -2)
        of_means |= {tuple(column) for column in (hidden.mean(1) > 0).T.tolist()}
        of_each |= {tuple(column) for column in (hidden > 0).flatten(1).T.tolist()}
    assert Swap().measure(recorded) == len(of_means)
    assert Swap(tokens="each").measure(recorded) == len(of_each) > len(of_means)


def test_swap_is_regularised_by_the_thousands_of_parameters() -> None:
    recorded = record_pass(_candidate(), seed=11)
    thousands = recorded.candidate.costs.parameters / 1000
    near, far = Swap(mu=thousands, sigma=4.0), Swap(mu=thousands + 2, sigma=4.0)
    assert near.measure(recorded) == Swap().measure(recorded)
    assert far.measure(recorded) == rounded(math.exp(-1) * Swap().measure(recorded), 3, condition=thousands)
    with pytest.raises(ValueError, match="set together"):
        Swap(mu=3.0)


def test_meco_is_the_weighted_sum_of_smallest_eigenvalues_of_correlations(recorded: RecordedPass) -> None:
    outputs: dict[str, Tensor] = {}
    for name in recorded.layers:
        recorded.model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.setdefault(name, output)
        )
    with torch.no_grad():
        recorded.model(recorded.candidate.images)
    generator, expected, num_used = recorded.generator(), 0.0, 0
    for name, layer in recorded.layers.items():
        output = outputs[name] if isinstance(layer, nn.Conv2d) else outputs[name].movedim(-1, 1)
        width = output.shape[1]
        chosen = torch.randperm(width, generator=generator)[:4].numpy()
        channels = output.reshape(5, width, -1).numpy()[:, chosen]
        if channels.shape[2] > 4:
            smallest = [np.linalg.eigvalsh(np.corrcoef(image))[0] for image in channels]
            expected += width / 4 * statistics.fmean(smallest)
            num_used += 1
    assert num_used >= 5
    # An error of the smallest eigenvalue is one relative to the largest, at most 4, times half the width of each layer.
    size = 4 * sum(layer.weight.shape[0] / 4 for layer in recorded.layers.values())
    assert Meco(channels=4).measure(recorded) == rounded(expected, _num_terms(recorded), condition=size / expected)


def _literal_entropy(block: _Block, image: int) -> list[float]:
    """Entropy of each attention row, divided by log N, in a block that attends to all tokens."""
    attention = block.module.attn
    tokens = block.attended[image].reshape(-1, block.attended.shape[-1]).numpy()
    qkv = tokens @ attention.qkv.weight.detach().numpy().T + attention.qkv.bias.detach().numpy()
    query, key, _ = np.split(qkv, 3, axis=1)
    found = []
    for head in range(attention.heads):
        columns = slice(head * attention.head_width, (head + 1) * attention.head_width)
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(attention.head_width)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        found += list(-(weights * np.log(weights)).sum(1) / math.log(len(tokens)))
    return found


@pytest.mark.parametrize("topology", TOPOLOGIES[1:])
@pytest.mark.parametrize("entries", [1, attention_entropy.ENTRIES_AT_ONCE])
def test_attention_entropy_is_that_of_the_rows_however_many_images_are_taken_at_once(
    topology: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_entropy, "ENTRIES_AT_ONCE", entries)
    recorded = record_pass(_candidate(topology), seed=11)
    expected = [
        statistics.fmean(entropy for image in range(4) for entropy in _literal_entropy(block, image))
        for block in _blocks(recorded)
    ]
    assert AttentionEntropy(images=4).measure(recorded) == rounded(statistics.fmean(expected), _num_terms(recorded))


class _Attention(nn.Module):
    heads = 1

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def attention_weights(self, attended: Tensor) -> Tensor:
        return self.weights.expand(len(attended), *self.weights.shape)


def test_even_attention_has_the_entropy_1_and_attention_to_one_token_0() -> None:
    attended, num_terms = torch.zeros(2, 4, 3), 4 + 4 * 2  # of a row's entropy, and of the mean over rows and images
    assert mean_entropy(_Attention(torch.full((1, 4, 4), 0.25)), attended) == rounded(1, num_terms, torch.float32)
    assert mean_entropy(_Attention(torch.eye(4)[None]), attended) == 0
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(1, 4, 4)
    assert mean_entropy(_Attention(half), attended) == rounded(0.5, num_terms, torch.float32)


def test_windows_of_one_token_are_left_out() -> None:
    assert mean_entropy(_Attention(torch.ones(1, 1, 1)), torch.zeros(2, 4, 3)) is None
    recorded = record_pass(_candidate(TOPOLOGIES[0]), seed=11)
    blocks = _blocks(recorded)
    entropies = [mean_entropy(block.module.attn, block.attended[:4]) for block in blocks]
    assert entropies[-1] is None
    expected = statistics.fmean(entropy for entropy in entropies if entropy is not None)
    assert AttentionEntropy().measure(recorded) == rounded(expected, _num_terms(recorded))


def test_an_attention_that_does_not_show_its_weights_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"Linear must have `heads` and `attention_weights\(attended\)`"):
        mean_entropy(nn.Linear(3, 3), torch.zeros(2, 4, 3))


@pytest.mark.parametrize("proxy", PROXIES)
def test_images_that_are_not_finite_have_no_finite_score(proxy: Any) -> None:
    candidate = _candidate()
    broken = replace(candidate, images=torch.full_like(candidate.images, math.nan))
    assert not math.isfinite(proxy.score(broken).value)


@pytest.mark.parametrize("proxy", [proxy for proxy in PROXIES if not isinstance(proxy, Meco)])
def test_a_model_without_blocks_is_refused_with_what_it_needs(proxy: Any) -> None:
    def build(**_: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).double()

    with pytest.raises(ValueError, match="Sequential must call modules with `norm1`, `attn`, `norm2` and `mlp`"):
        proxy.score(replace(_candidate(), build=build))


@pytest.mark.parametrize("proxy", PROXIES)
def test_single_precision_is_near_double_precision(proxy: Any) -> None:
    single, double = (proxy.score(_candidate(dtype=dtype)).value for dtype in (torch.float32, torch.float64))
    assert single == rounded(double, _num_terms(record_pass(_candidate(), seed=11)), torch.float32)


# --- latency ---


class _Watcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((len(images), torch.is_grad_enabled()))
        return images.flatten(1)


def test_latency_is_the_median_of_the_passes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([90.0, 80.0, 1.0, 6.0, 2.0])

    def timed(work: Any, device: torch.device) -> float:
        work()
        return next(times)

    monkeypatch.setattr(latency, "timed", timed)
    watcher = _Watcher()
    candidate = replace(_candidate(), build=lambda **_: watcher)
    score = Latency(repeats=3, warm_up=2, batch_size=12).score(candidate)
    assert score == (2.0, rounded(statistics.stdev([1.0, 6.0, 2.0]), 6))
    assert watcher.seen == [(12, False)] * 5


def test_a_pass_is_timed_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert latency.timed(lambda: None, torch.device("cpu")) == 250
