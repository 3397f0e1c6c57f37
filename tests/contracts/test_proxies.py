"""What every training-free score must do, on every search space."""

import math
from functools import cache
from typing import Any

import pytest
import torch

from plugins.protocols import Candidate, PluginCard, PoolProxy, Proxy, ProxyScore
from plugins.registry import available, create, load, parse_topology, setting_types
from search_spaces.base import ImageTask
from tests.rounding import rounded
from trainers.tasks.scoring import make_candidate

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
TOPOLOGIES = {
    "as-vit": ("as-vit:8,2,3|4,1,2|4,1,4|4,1,6|32,8", "as-vit:4,8,2|2,2,6,2|3,2,3|2,1,4|16,8"),
    "autoformer": ("autoformer:2,2|2,2|16,8", "autoformer:4,3|2,2|1,4|24,8"),
    "pit": ("pit:1,2|1,2|1,2|2,8,8", "pit:1,1|2,2|1,4|4,6,8"),
}
"""Two of each space."""
EVERY_TOPOLOGY = [text for texts in TOPOLOGIES.values() for text in texts]
FIRST, SECOND = TOPOLOGIES["as-vit"]

SETTINGS = {"expression": {"formula": "mean(frobenius(minmax(attention.weight)) + sqrt(sigmoid(mean(mlp.gradient))))"}}
"""Settings of the proxies without defaults."""
MEASURED = ("latency",)
"""Proxies whose value no seed determines: a time."""

POOL = [name for name in available("proxies") if hasattr(load("proxies", name), "combine")]
SCORED = [name for name in available("proxies") if name not in POOL]
CORRECTED = ("size-residual",)
"""Pool proxies that correct for some of their parts, so that more of these is not better."""
DETERMINED = [name for name in SCORED if name not in MEASURED]
REPEATED = [name for name in DETERMINED if "repeats" in setting_types("proxies", name)]
EXACT = [name for name in DETERMINED if getattr(load("proxies", name), "is_exact", False)]

determined = pytest.mark.parametrize("name", DETERMINED)
repeated = pytest.mark.parametrize("name", REPEATED)


def _proxy(name: str, **settings: Any) -> Proxy:
    made: Proxy = create("proxies", name, {**SETTINGS.get(name, {}), **settings})
    return made


def _candidate(
    topology: str = FIRST, *, seed: int = 0, dtype: torch.dtype = torch.float32, companions: tuple[Proxy, ...] = ()
) -> Candidate:
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(5)).to(dtype)
    labels = torch.arange(8) % 3
    return make_candidate(parse_topology(topology), images, TASK, seed=seed, labels=labels, companions=companions)


def _score(
    name: str, topology: str = FIRST, *, seed: int = 0, dtype: torch.dtype = torch.float32, repeats: int | None = None
) -> ProxyScore:
    """The score of a candidate that nothing else is scored with, from the table."""
    return _score_table(name, topology, seed, dtype, repeats)


@cache
def _score_table(name: str, topology: str, seed: int, dtype: torch.dtype, repeats: int | None) -> ProxyScore:
    """Scores that many tests look at."""
    settings = {} if repeats is None else {"repeats": repeats}
    return _proxy(name, **settings).score(_candidate(topology, seed=seed, dtype=dtype))


def test_two_topologies_of_every_space_are_scored() -> None:
    assert sorted(TOPOLOGIES) == sorted(available("spaces"))


@pytest.mark.parametrize("name", SCORED)
def test_it_says_where_it_comes_from_and_which_way_is_better(name: str) -> None:
    proxy = _proxy(name)
    assert isinstance(proxy.card, PluginCard)
    assert proxy.card.source
    assert proxy.card.cost
    assert proxy.direction in ("maximize", "minimize")
    assert not isinstance(proxy, PoolProxy)


@pytest.mark.parametrize("topology", EVERY_TOPOLOGY)
@pytest.mark.parametrize("name", SCORED)
def test_a_good_topology_has_a_finite_score_and_spread(name: str, topology: str) -> None:
    score = _score(name, topology)
    assert math.isfinite(score.value)
    assert math.isfinite(score.spread)
    assert score.spread >= 0


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_time_is_positive(name: str) -> None:
    assert _score(name).value > 0


@pytest.mark.parametrize("topology", [texts[0] for texts in TOPOLOGIES.values()])
def test_scores_are_the_same_whatever_else_is_scored_with_them(topology: str) -> None:
    proxies = {name: _proxy(name) for name in DETERMINED}
    candidate = _candidate(topology, companions=tuple(proxies.values()))
    together = {name: proxy.score(candidate) for name, proxy in proxies.items()}
    assert together == {name: _score(name, topology) for name in proxies}


@determined
def test_a_seed_always_gives_the_same_score_whatever_the_global_generator(name: str) -> None:
    first = _score(name)
    torch.manual_seed(torch.initial_seed() + 1)
    assert _proxy(name).score(_candidate()) == first


@pytest.mark.parametrize("name", SCORED)
def test_the_global_generator_and_the_images_are_left_alone(name: str) -> None:
    candidate = _candidate()
    before, images = torch.get_rng_state(), candidate.images.clone()
    _proxy(name).score(candidate)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(candidate.images, images)
    assert not candidate.images.requires_grad


@pytest.mark.parametrize("name", SCORED)
def test_networks_that_proxies_share_are_left_unchanged(name: str) -> None:
    candidate = _candidate()
    _proxy(name).score(candidate)
    for seed, model in candidate.shared.get("networks", {}).items():
        fresh = candidate.build(seed=seed).state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("space", TOPOLOGIES)
@determined
def test_it_tells_topologies_apart(name: str, space: str) -> None:
    first, second = (_score(name, topology).value for topology in TOPOLOGIES[space])
    assert first != second


@determined
def test_it_scores_in_the_dtype_of_the_images(name: str) -> None:
    single, double = (_score(name, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert single.value == pytest.approx(double.value, rel=1e-2)


@determined
def test_another_seed_changes_all_scores_but_exact_ones_and_repeats_have_a_spread(name: str) -> None:
    repeats = 2 if name in REPEATED else None
    first, second = (_score(name, seed=seed, repeats=repeats) for seed in (0, 1))
    assert (first.value == second.value) == (name in EXACT)
    assert (first.spread > 0) == (name in REPEATED)


@pytest.mark.usefixtures("one_thread")
@repeated
def test_repeats_are_drawn_on_their_own_and_add_to_each_other(name: str) -> None:
    one, two = (_proxy(name, repeats=repeats).score(_candidate()) for repeats in (1, 2))
    assert one.spread == 0
    condition = abs(two.value) / two.spread  # the values cancel
    assert abs(two.value - one.value) == rounded(two.spread / math.sqrt(2), 6, condition=condition)
    with pytest.raises(ValueError, match="repeats"):
        _proxy(name, repeats=0)


# --- scores within a pool ---


@pytest.fixture(params=POOL)
def pool_proxy(request: pytest.FixtureRequest) -> PoolProxy:
    made: PoolProxy = create("proxies", request.param)
    return made


def _pool(proxy: PoolProxy, size: int = 9) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(0)
    return {part: torch.randn(size, generator=generator).exp().tolist() for part in proxy.parts}  # sizes are positive


def test_a_pool_score_says_where_it_comes_from_and_is_made_of_installed_proxies(pool_proxy: PoolProxy) -> None:
    assert isinstance(pool_proxy, PoolProxy)
    assert pool_proxy.card.source
    assert pool_proxy.card.cost
    assert pool_proxy.direction in ("maximize", "minimize")
    assert pool_proxy.parts
    assert set(pool_proxy.parts) <= set(SCORED)


def test_a_pool_score_has_one_finite_value_per_topology_and_tells_them_apart(pool_proxy: PoolProxy) -> None:
    values = pool_proxy.combine(_pool(pool_proxy))
    assert len(values) == 9
    assert all(map(math.isfinite, values))
    assert len(set(values)) > 1


def test_a_pool_score_is_not_finite_where_a_part_is_not_and_the_others_are_scored(pool_proxy: PoolProxy) -> None:
    for part in pool_proxy.parts:
        scores = _pool(pool_proxy)
        scores[part][4] = math.nan
        finite = [math.isfinite(value) for value in pool_proxy.combine(scores)]
        assert finite == [index != 4 for index in range(9)]


def test_a_topology_that_is_best_in_every_part_is_best_in_the_pool(pool_proxy: PoolProxy) -> None:
    if pool_proxy in [create("proxies", name) for name in CORRECTED]:
        pytest.skip("the score corrects for some of its parts")
    scores = {part: [*values, max(values) + 1] for part, values in _pool(pool_proxy).items()}
    values = pool_proxy.combine(scores)
    best = max if pool_proxy.direction == "maximize" else min
    assert best(values) == values[-1]
    assert values.count(values[-1]) == 1


def test_the_order_of_a_pool_does_not_matter_and_the_scores_are_left_unchanged(pool_proxy: PoolProxy) -> None:
    scores = _pool(pool_proxy)
    turned = {part: values[::-1] for part, values in scores.items()}
    assert pool_proxy.combine(turned)[::-1] == pytest.approx(pool_proxy.combine(scores))
    assert scores == _pool(pool_proxy)
