"""One pass of a network that serves many scores."""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import Candidate, ProxyScore, is_block
from plugins.proxies import passes
from plugins.proxies.passes import RecordedPass, record_pass, score_passes
from plugins.proxies.repeats import networks, repeat_seeds
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from tests.rounding import assert_rounded, path_length
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=1, num_classes=3)
TOPOLOGIES = ("as-vit:5,2,2|3,1,2|2,1,3|4,1,2|16,4", "autoformer:2,2|1,1.5|8,4", "pit:1,1|2,2|1,2|2,4,8")
IMAGES = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1, 1, 0])


@pytest.fixture(params=TOPOLOGIES, ids=lambda text: text.partition(":")[0])
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return _candidate(request.param)


def _candidate(topology: str = TOPOLOGIES[1]) -> Candidate:
    return make_candidate(parse_topology(topology), IMAGES, TASK, seed=0, labels=LABELS)


def _num_terms(model: nn.Module) -> int:
    """On the way to the logits, with at most 226 tokens in one window."""
    return path_length(model, num_tokens=226)


@dataclass(frozen=True, kw_only=True)
class _LogitSum:
    """A proxy that reads a pass; `factor` tells one from another."""

    repeats: int = 1
    factor: float = 1.0

    def score(self, candidate: Candidate) -> ProxyScore:
        return score_passes(self, candidate)

    def measure(self, recorded: RecordedPass) -> float:
        return self.factor * sum(part.logits.sum().item() for part in recorded.parts)


@dataclass(frozen=True, kw_only=True)
class _Failing(_LogitSum):
    """A proxy that cannot be measured."""

    def measure(self, recorded: RecordedPass) -> float:
        raise FloatingPointError(f"no score of {recorded.seed}")


def test_the_parts_are_the_batch(candidate: Candidate) -> None:
    recorded = record_pass(candidate, 7)
    assert [len(part.images) for part in recorded.parts] == [3, 2]
    assert torch.equal(torch.cat([part.images.detach() for part in recorded.parts]), IMAGES)
    assert torch.equal(torch.cat([part.labels for part in recorded.parts]), LABELS)
    logits = candidate.build(seed=7)(IMAGES)
    assert_rounded(torch.cat([part.logits for part in recorded.parts]), logits, _num_terms(recorded.model))


def test_the_blocks_are_recorded_in_order_with_what_went_through_them(candidate: Candidate) -> None:
    recorded = record_pass(candidate, 7)
    blocks: list[Any] = [module for module in recorded.model.modules() if is_block(module)]
    assert len(blocks) == sum(candidate.topology.depths)
    for part in recorded.parts:
        assert [record.block for record in part.blocks] == blocks
        for record, block in zip(part.blocks, blocks, strict=True):
            before, between, after = record.stream
            num_terms = _num_terms(block)
            assert_rounded(record.attended, block.norm1(before), num_terms)
            assert_rounded(between, before + block.attn(record.attended), num_terms)
            assert_rounded(record.hidden, block.mlp.fc1(block.norm2(between)), num_terms)
            assert_rounded(after, between + block.mlp.fc2(block.mlp.act(record.hidden)), num_terms)


def test_layers_and_outputs_go_by_the_names_of_the_model(candidate: Candidate) -> None:
    recorded = record_pass(candidate, 7)
    assert recorded.layers == {
        name: module for name, module in recorded.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    for part in recorded.parts:
        assert part.outputs.keys() == recorded.layers.keys()
        head = list(part.outputs.values())[-1]
        assert torch.equal(head, part.logits)


def test_the_mean_gradients_are_those_of_the_whole_batch(candidate: Candidate) -> None:
    recorded, model = record_pass(candidate, 7), candidate.build(seed=7)
    F.cross_entropy(model(IMAGES), LABELS).backward()
    for name, gradient in recorded.mean_gradients.items():
        expected = model.get_submodule(name).get_parameter("weight").grad
        num_terms = 2 * _num_terms(model) + len(IMAGES)  # forward, backward, and the mean over the images
        wanted = torch.zeros_like(gradient) if expected is None else expected
        assert_rounded(gradient, wanted, num_terms, size=max(float(wanted.abs().max()), 1.0))


def test_each_part_has_gradients_of_its_own_mean_loss(candidate: Candidate) -> None:
    recorded = record_pass(candidate, 7)
    name = list(recorded.layers)[-1]
    for part, gradients in zip(recorded.parts, recorded.gradients, strict=True):
        by_logits = (part.logits.softmax(-1) - F.one_hot(part.labels, 3)) / len(part.images)
        assert_rounded(gradients.outputs[name], by_logits, 3 + len(part.images))


def test_the_graph_survives_the_gradients() -> None:
    recorded = record_pass(_candidate(), 7)
    assert recorded.gradients
    (first,) = torch.autograd.grad(recorded.parts[0].logits.sum(), recorded.parts[0].images, retain_graph=True)
    assert first.shape == recorded.parts[0].images.shape


def test_the_shared_network_is_left_as_it_was(candidate: Candidate) -> None:
    (model,) = networks(candidate, [7])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recorded = record_pass(candidate, 7)
    assert recorded.model is model
    assert recorded.mean_gradients
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not candidate.images.requires_grad


def test_one_image_is_one_part() -> None:
    recorded = record_pass(replace(_candidate(), images=IMAGES[:1], labels=LABELS[:1]), 7)
    assert len(recorded.parts) == 1
    assert recorded.mean_gradients.keys() == recorded.layers.keys()


# --- sharing ---


@pytest.fixture
def recorded_seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the passes, in their order; asserts that each is forgotten when the next one begins."""
    seeds: list[int] = []
    alive: list[weakref.ref[RecordedPass]] = []

    def counted(candidate: Candidate, seed: int) -> RecordedPass:
        assert all(one() is None for one in alive), "the pass before is still in memory"
        recorded = record_pass(candidate, seed)
        seeds.append(seed)
        alive.append(weakref.ref(recorded))
        return recorded

    monkeypatch.setattr(passes, "record_pass", counted)
    return seeds


def test_a_pass_is_made_once_for_all_companions_and_repeats(recorded_seeds: list[int]) -> None:
    proxies = (_LogitSum(), _LogitSum(repeats=3), _LogitSum(repeats=2, factor=2.0))
    candidate = replace(_candidate(), companions=proxies)
    together = [proxy.score(candidate) for proxy in proxies]
    assert sorted(recorded_seeds) == sorted(repeat_seeds(candidate.seed, 3))
    recorded_seeds.clear()
    assert [proxy.score(_candidate()) for proxy in proxies] == together
    assert len(recorded_seeds) == 1 + 3 + 2


def test_a_companion_that_fails_does_so_alone(recorded_seeds: list[int]) -> None:
    good, bad = _LogitSum(), _Failing()
    for order in ((good, bad), (bad, good)):
        candidate = replace(_candidate(), companions=order)
        for proxy in order:
            if proxy is bad:
                with pytest.raises(FloatingPointError):
                    proxy.score(candidate)
            else:
                assert proxy.score(candidate) == good.score(_candidate())


def test_the_number_of_cores_does_not_change_what_is_recorded(candidate: Candidate) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            recorded = record_pass(replace(candidate, shared={}), 7)
            found.append([recorded.parts[1].blocks[-1].stream[-1], *recorded.mean_gradients.values()])
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        num_terms = 2 * _num_terms(candidate.build(seed=7)) + len(IMAGES)
        assert_rounded(one, other, num_terms, size=max(float(other.abs().max()), 1.0))


# --- other models ---


class _Unusual(nn.Module):
    """Has a layer that it does not call, and another that it may call twice."""

    def __init__(self, *, calls: int) -> None:
        super().__init__()
        self.calls = calls
        self.first = nn.Linear(1024, 3).double()
        self.again = nn.Linear(3, 3).double()
        self.spare = nn.Linear(3, 3).double()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.first(images.flatten(1))
        for _ in range(self.calls):
            features = self.again(features)
        return features


def _unusual(calls: int) -> Candidate:
    return replace(_candidate(), build=lambda **_: _Unusual(calls=calls))


def test_layers_that_are_not_called_are_left_out() -> None:
    recorded = record_pass(_unusual(1), 7)
    assert list(recorded.mean_gradients) == ["first", "again"]
    assert recorded.parts[0].blocks == ()


def test_a_layer_that_is_called_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="must call each layer once"):
        record_pass(_unusual(2), 7)
