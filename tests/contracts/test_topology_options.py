"""What every search space does with the optional parts of blocks: all that it does without them."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plugins.protocols import Proxy
from plugins.registry import available, create_space, load, parse_topology
from search_spaces.base import Growable, Topology
from search_spaces.options import BlockOptions
from tests.contracts import test_models as models
from tests.contracts import test_proxies as proxies
from trainers.tasks.scoring import make_candidate

SOFTMAX = BlockOptions(qk_norm=True, layer_scale=True, grn=True)
SIGMOID = BlockOptions(qk_norm=True, layer_scale=True, grn=True, sigmoid_attention=True)
OPTIONS = {"softmax": SOFTMAX, "sigmoid": SIGMOID}

WITH_EACH: tuple[Callable[..., None], ...] = (
    models.test_each_image_is_seen_on_its_own,
    models.test_float64_weights_are_the_same_numbers_and_compute_the_same,
    models.test_without_normalization_no_layer_norm_is_left,
    models.test_proxies_find_the_blocks_in_their_order,
    partial(models.test_derivatives_on_a_circle_are_those_of_autograd, scale=30.0),
)
"""Tests of models for softmax and for sigmoid attention."""
WITH_SIGMOID: tuple[Callable[..., None], ...] = (
    models.test_dropout_gives_the_same_logits_and_gradients_alone_and_stacked,
    models.test_every_weight_is_drawn_and_a_seed_always_gives_the_same,
    models.test_gradients_of_smaller_images_reach_every_parameter,
    models.test_training_steps_lower_the_loss_and_reach_every_parameter,
)
"""Tests in which every parameter must matter, as queries and keys of a single token do not with softmax attention."""


@pytest.fixture(params=sorted(available("spaces")))
def space(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _with_options(topology: Topology, options: BlockOptions) -> Any:
    return topology.model_copy(update={"options": options})


def _name(check: Callable[..., None]) -> str:
    return str(getattr(check, "func", check).__name__)


def _use(options: BlockOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests of models sample topologies with these options."""
    plain = models.sampled

    def sampled(space: str, count: int, seed: int = 0) -> list[Topology]:
        return [_with_options(one, options) for one in plain(space, count, seed)]

    monkeypatch.setattr(models, "sampled", sampled)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("check", WITH_EACH, ids=_name)
def test_a_model_with_options_does_what_every_model_does(
    check: Callable[..., None], options: BlockOptions, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(options, monkeypatch)
    check(space)


@pytest.mark.parametrize("check", WITH_SIGMOID, ids=_name)
def test_every_parameter_of_a_model_with_options_matters(
    check: Callable[..., None], space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(SIGMOID, monkeypatch)
    check(space)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_costs_include_the_options(space: str, options: BlockOptions) -> None:
    topology = _with_options(models.small(space, 2), options)
    model = models.build(topology).eval()
    costs = load("spaces", space).costs(topology, models.TASK)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(models.IMAGES[:1])
    assert costs.macs == counter.get_total_flops() / 2
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_kernel_of_a_model_with_options_is_computed_layer_by_layer(
    space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(SOFTMAX, monkeypatch)
    models.test_the_layerwise_kernel_is_that_of_one_gradient_per_image(space, monkeypatch)


def test_a_model_with_options_computes_in_mixed_precision(space: str) -> None:
    model = models.build(_with_options(models.small(space), SIGMOID)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(models.IMAGES)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("space", proxies.TOPOLOGIES)
def test_every_proxy_scores_topologies_with_options(space: str) -> None:
    plain = parse_topology(proxies.TOPOLOGIES[space][0])
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    scored: dict[str, Proxy] = {name: proxies._proxy(name) for name in proxies.DETERMINED}
    candidate = make_candidate(
        _with_options(plain, SIGMOID),
        images,
        proxies.TASK,
        seed=0,
        labels=torch.arange(4) % 3,
        companions=tuple(scored.values()),
    )
    values = torch.tensor([proxy.score(candidate).value for proxy in scored.values()])
    assert torch.isfinite(values).all()


def test_a_topology_without_options_is_written_as_before(space: str) -> None:
    for topology in models.sampled(space, 3):
        assert not any(character.isalpha() for character in topology.text)
        changed = _with_options(topology, SOFTMAX)
        assert changed.text == f"{topology.text}|qk_norm,layer_scale,grn"
        assert parse_topology(changed.id) == changed


def test_options_are_fixed_or_searched_and_searching_them_changes_no_other_draw(space: str) -> None:
    searched = create_space(space, {"options": {"layer_scale": True, "qk_norm": [False, True]}})
    rng, plain = random.Random(0), models.sampled(space, 1)[0]
    first = searched.sample(rng)
    assert _with_options(first, BlockOptions()) == plain
    drawn = [searched.sample(rng) for _ in range(12)]
    assert {one.options.qk_norm for one in drawn} == {False, True}  # type: ignore[attr-defined]
    assert all(one.options.layer_scale for one in drawn)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="options qk_norm: false or true, layer_scale: true"):
        searched.encode(plain)


def test_growth_keeps_the_options(space: str) -> None:
    topology = _with_options(models.sampled(space, 1)[0], SIGMOID)
    assert isinstance(topology, Growable)
    grown: Any = topology.with_size(depths=[depth + 1 for depth in topology.depths])
    assert grown.options == SIGMOID


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "qk_nrm",
            "must be one of qk_norm, layer_scale, grn, sigmoid_attention, .* but got 'qk_nrm'. Did you mean",
        ),
        ("grn,grn", "must be named once, but got 'grn' again"),
    ],
)
def test_a_wrong_option_is_named_with_its_place(space: str, part: str, message: str) -> None:
    text = f"{models.sampled(space, 1)[0].text}|{part}"
    with pytest.raises(ValueError, match=message) as raised:
        load("spaces", space).parse(text)
    place = text.rindex("|") + 3 + part.rfind(",")  # counted from 1, after the comma if there is one
    assert f"at character {place} of" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk": True}, "must only have qk_norm, layer_scale, grn, sigmoid_attention, .* but got 'qk'"),
        ({"qk_norm": 3}, "must be a valid boolean, but got 3"),
        ({"qk_norm": [True, True]}, "must have different values"),
        (3, r"must be a mapping such as \{qk_norm: true\}, but got 3"),
    ],
)
def test_wrong_options_of_a_space_are_refused(space: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_space(space, {"options": options})


@pytest.mark.parametrize("text", ["as-vit:8,2,3|4,1,2|4,1,4|4,1,6|64,8", "autoformer:8,2|8,8", "pit:1,2|1,2|1,2|2,1"])
def test_heads_of_one_channel_cannot_be_normalised(text: str) -> None:
    with pytest.raises(ValueError, match="qk_norm needs at least 2 channels per head"):
        models.build(parse_topology(f"{text}|qk_norm"))
