"""Networks of several repeats that are computed together."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import Candidate
from plugins.proxies import repeats
from plugins.proxies.repeats import network_stacks, num_cores, on_all_cores, one_core_per_operation, repeat_seeds
from plugins.registry import create, parse_topology
from search_spaces.base import ImageTask
from tests.rounding import path_length, rounded
from trainers.tasks.scoring import make_candidate

TOPOLOGIES = (
    "as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,8",
    "as-vit:5,8,2,2|2,4,3,1|3,2,2,2|2,1,2,2|16,4|qk_norm,layer_scale,grn,sigmoid_attention",
    "autoformer:2,2|2,2|16,16",
    "pit:1,1|1,2|1,2|2,8,16",
)
SCORES = ("length-distortion", "extrinsic-curvature", "gauss-length", "ntk-condition")


def _candidate(topology: str, *, size: int = 32, num_images: int = 4) -> Candidate:
    task = ImageTask(image_size=size, in_channels=1, num_classes=2)
    images = torch.randn(num_images, 1, size, size, generator=torch.Generator().manual_seed(0))
    return make_candidate(parse_topology(topology), images, task, seed=0)


def _sizes(candidate: Candidate, count: int) -> list[int]:
    return [stack.num_networks for stack in network_stacks(candidate, repeat_seeds(0, count))]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_stacked_networks_is_that_of_single_networks(
    topology: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = _candidate(topology)
    single = dataclasses.replace(stacked, build_stack=None, shared={})
    proxy = create("proxies", name, {"repeats": 3})
    monkeypatch.setattr(repeats, "num_cores", lambda: 1)
    found, expected = proxy.score(stacked), proxy.score(single)
    assert [stack.num_networks for stack in stacked.shared["network stacks"].values()] == [3]
    assert "network stacks" not in single.shared
    model = stacked.build(seed=0)
    num_terms = 6 * path_length(model, num_tokens=65)
    condition = 1.0 if name == "length-distortion" else 100.0 if name != "ntk-condition" else expected.value
    assert found.value == rounded(expected.value, num_terms, torch.float32, condition=condition)


@pytest.mark.parametrize(
    ("size", "cores", "count", "expected"),
    [
        (32, 1, 5, [5]),
        (32, 2, 5, [3, 2]),
        (32, 2, 3, [2, 1]),
        (32, 1, 20, [7, 7, 6]),
        (32, 1, 9, [7, 2]),
        (64, 1, 3, [1, 1, 1]),
    ],
)
def test_stacks_fit_the_cache_and_use_every_core(
    size: int, cores: int, count: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "num_cores", lambda: cores)
    assert _sizes(_candidate(TOPOLOGIES[0], size=size, num_images=1), count) == expected


def test_stacks_are_shared_between_scores_and_left_unchanged() -> None:
    candidate = _candidate(TOPOLOGIES[0])
    for name in SCORES:
        create("proxies", name, {"repeats": 3}).score(candidate)
    kept = candidate.shared["network stacks"]
    assert "networks" not in candidate.shared or len(candidate.shared["networks"]) <= 1
    assert candidate.build_stack is not None
    for seeds, stack in kept.items():
        fresh = candidate.build_stack(seeds=seeds) if stack.num_networks > 1 else candidate.build(seed=seeds[0])
        for name, value in fresh.state_dict().items():
            assert torch.equal(value, stack.module.state_dict()[name]), name


def test_stacks_that_do_not_fit_in_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = _candidate(TOPOLOGIES[0])
    monkeypatch.setattr(repeats, "num_cores", lambda: 1)
    monkeypatch.setattr(repeats, "SHARED_BYTES", 1)
    network_stacks(candidate, repeat_seeds(0, 2))
    assert not candidate.shared["network stacks"]


class _SharedWeight(nn.Module):
    """A stack whose layer is called twice."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.layer.weight = nn.Parameter(weight)

    def forward_features(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.layer(images.flatten(1)))
        out: Tensor = self.layer(hidden)
        return out


def test_networks_that_the_layerwise_kernel_does_not_support_are_computed_alone() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def build(**_: Any) -> nn.Module:
        return _SharedWeight(weight)

    candidate = dataclasses.replace(
        _candidate(TOPOLOGIES[0]), images=torch.randn(3, 1, 2, 2), build=build, build_stack=build, shared={}
    )
    single = dataclasses.replace(candidate, build_stack=None, shared={})
    proxy = create("proxies", "ntk-condition", {"repeats": 2})
    assert proxy.score(candidate) == proxy.score(single)


def test_operations_use_one_core_while_parallel_work_uses_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_core_per_operation():
            assert torch.get_num_threads() == 1
            assert num_cores() == 3
            assert list(on_all_cores(lambda _: torch.get_num_threads(), range(4), device="cpu")) == [1, 1, 1, 1]
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="broken"), one_core_per_operation():
            raise ValueError("broken")
        assert (torch.get_num_threads(), num_cores()) == (3, 3)
    finally:
        torch.set_num_threads(before)
