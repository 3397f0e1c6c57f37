"""What every training-free score must do."""

import math
from typing import Any

import pytest
import torch

from plugins.protocols import Candidate, PluginCard, Proxy
from plugins.registry import available, create, parse_topology
from search_spaces.base import ImageTask
from trainers.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
TOPOLOGIES = ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,8", "as-vit:4,8,2|2,2,6|3,2,3|2,1,4|16,8")


@pytest.fixture(params=sorted(available("proxies")))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(name: str) -> Proxy:
    made: Proxy = create("proxies", name)
    return made


def _candidate(topology: str = TOPOLOGIES[0], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Candidate:
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(5)).to(dtype)
    return make_candidate(parse_topology(topology), images, TASK, seed=seed)


def test_it_says_where_it_comes_from_and_which_way_is_better(proxy: Proxy) -> None:
    assert isinstance(proxy.card, PluginCard)
    assert proxy.card.source
    assert proxy.card.cost
    assert proxy.direction in ("maximize", "minimize")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_good_topology_has_a_finite_score_and_spread(proxy: Proxy, topology: str) -> None:
    score = proxy.score(_candidate(topology))
    assert math.isfinite(score.value)
    assert math.isfinite(score.spread)
    assert score.spread >= 0


def test_a_seed_always_gives_the_same_score_whatever_the_global_generator(proxy: Proxy) -> None:
    torch.manual_seed(1)
    first = proxy.score(_candidate())
    torch.manual_seed(2)
    assert proxy.score(_candidate()) == first


def test_the_global_generator_is_left_alone(proxy: Proxy) -> None:
    before = torch.get_rng_state()
    proxy.score(_candidate())
    assert torch.equal(before, torch.get_rng_state())


def test_it_tells_topologies_apart(proxy: Proxy) -> None:
    assert proxy.score(_candidate(TOPOLOGIES[0])).value != proxy.score(_candidate(TOPOLOGIES[1])).value


def test_the_images_are_left_unchanged(proxy: Proxy) -> None:
    candidate = _candidate()
    before = candidate.images.clone()
    proxy.score(candidate)
    assert torch.equal(candidate.images, before)
    assert not candidate.images.requires_grad


def test_it_scores_in_the_dtype_of_the_images(proxy: Proxy) -> None:
    single, double = proxy.score(_candidate()), proxy.score(_candidate(dtype=torch.float64))
    assert single.value == pytest.approx(double.value, rel=1e-2)


def test_another_seed_changes_only_scores_with_a_spread(proxy: Proxy) -> None:
    first, second = proxy.score(_candidate(seed=1)), proxy.score(_candidate(seed=2))
    assert (first.value == second.value) == (first.spread == 0)


def test_repeats_are_drawn_on_their_own_and_add_to_each_other(name: str) -> None:
    single: Any = create("proxies", name)
    if not hasattr(single, "repeats"):
        pytest.skip("the score is exact")
    assert create("proxies", name, {"repeats": 1}).score(_candidate()).spread == 0
    two = create("proxies", name, {"repeats": 2}).score(_candidate())
    one = create("proxies", name, {"repeats": 1}).score(_candidate())
    assert abs(two.value - one.value) == pytest.approx(two.spread / math.sqrt(2), rel=1e-4)
    with pytest.raises(ValueError, match="repeats"):
        create("proxies", name, {"repeats": 0})
