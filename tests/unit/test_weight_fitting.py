"""Weights of one model in another: exact, selected, interpolated, resized, and the last layer by class name."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.base import ImageTask
from tests.rounding import rounded
from trainers.models.building import build_model
from trainers.weights.fitting import Fit, fit_weights
from trainers.weights.reading import SourceWeights
from trainers.weights.selection import change_channels, even_indices, resize_patches, select_evenly

CPU = torch.device("cpu")
ABC = ("a", "b", "c")
LARGE = {
    "as-vit": "as-vit:8,4,2,1|4,2,2,2|4,2,2,1|2,1,2,1|16,8",
    "autoformer": "autoformer:4,2|4,2|4,2|32,8",
    "pit": "pit:2,2|1,4|1,8|2,16,8",
}
SMALL = {
    "as-vit": "as-vit:4,4,2,1|2,2,2,1|4,2,2,1|2,1,2,1|16,4",
    "autoformer": "autoformer:2,2|2,1|16,8",
    "pit": "pit:1,2|1,4|1,4|1,8,8",
}


def task(classes: int = 3, *, size: int = 32, channels: int = 3) -> ImageTask:
    return ImageTask(image_size=size, in_channels=channels, num_classes=classes)


def source_of(topology: str, *, classes: tuple[str, ...] = ABC, size: int = 32, seed: int = 1) -> SourceWeights:
    """Weights of a model in which every number differs from the others."""
    shape = task(len(classes), size=size)
    model = build_model(topology, shape, seed=seed, device=CPU)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    return SourceWeights(
        source="s", sha256="0" * 64, tensors=tensors, topology=topology, task=shape, class_names=classes
    )


def fit(
    source: SourceWeights, topology: str, *, classes: tuple[str, ...] = ABC, size: int = 32, channels: int = 3
) -> Fit:
    model = build_model(topology, task(len(classes), size=size, channels=channels), seed=2, device=CPU)
    found = fit_weights(source, model, topology, classes)
    model.load_state_dict(dict(found.state))
    return found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(6, 3, [0, 2, 4]), (5, 3, [0, 2, 4]), (7, 3, [0, 3, 6]), (10, 4, [0, 3, 6, 9]), (4, 4, [0, 1, 2, 3]), (9, 1, [0])],
)
def test_elements_are_evenly_spaced(old: int, new: int, expected: list[int]) -> None:
    assert even_indices(old, new).tolist() == expected


def test_more_elements_than_there_are_cannot_be_selected() -> None:
    with pytest.raises(ValueError, match="between 1 and old=3"):
        even_indices(3, 4)
    assert select_evenly(torch.zeros(4), [(2, 2)], [(1, 4)]) is None


def test_a_head_of_the_result_comes_from_one_head() -> None:
    queries = torch.arange(8)  # 4 heads of 2 channels
    chosen = select_evenly(queries, [(4, 2)], [(2, 2)])
    assert chosen is not None
    assert chosen.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("space", sorted(LARGE))
def test_the_same_topology_starts_with_the_same_weights(space: str) -> None:
    source = source_of(LARGE[space])
    found = fit(source, LARGE[space])
    assert found.text == "starts from all weights as they are"
    assert all(torch.equal(value, source.tensors[name]) for name, value in found.state.items())


@pytest.mark.parametrize("space", sorted(LARGE))
def test_a_smaller_topology_starts_with_elements_of_the_larger_one(space: str) -> None:
    source = source_of(LARGE[space])
    found = fit(source, SMALL[space])
    assert found.fresh == ()
    assert found.selected
    for name in found.selected:
        assert set(found.state[name].flatten().tolist()) <= set(source.tensors[name].flatten().tolist()), name


def test_selected_channels_are_the_same_in_all_layers() -> None:
    """Each channel of the small residual stream is one channel of the large one, so that the layers still fit."""
    source = source_of(LARGE["autoformer"])
    found = fit(source, SMALL["autoformer"])
    channels = even_indices(32, 16)
    assert torch.equal(found.state["norm.weight"], source.tensors["norm.weight"][channels])
    assert torch.equal(found.state["class_token"], source.tensors["class_token"][..., channels])
    kept = source.tensors["blocks.0.mlp.fc1.weight"][even_indices(64, 32)][:, channels]
    assert torch.equal(found.state["blocks.0.mlp.fc1.weight"], kept)
    qkv = source.tensors["blocks.1.attn.qkv.weight"].view(3, 4, 8, 32)[:, ::2][..., channels].reshape(48, 16)
    assert torch.equal(found.state["blocks.1.attn.qkv.weight"], qkv)


def test_heads_that_are_wider_than_those_of_the_source_mix_its_heads() -> None:
    found = fit(source_of("autoformer:4,2|32,8"), "autoformer:1,2|16,8")
    assert "blocks.0.attn.qkv.weight" in found.selected


def test_layers_that_the_source_lacks_stay_random_as_a_whole() -> None:
    found = fit(source_of("autoformer:2,2|2,2|32,8"), "autoformer:2,2|4,4|4,2|32,8")
    fresh = {name.rpartition(".")[0] for name in found.fresh}
    assert fresh == {
        "blocks.1.mlp.fc1",
        "blocks.1.mlp.fc2",
        *(f"blocks.2.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
    }
    assert "random: blocks.1.mlp, blocks.2.norm1" in found.text


@pytest.mark.parametrize(
    ("topology", "reason"),
    [("autoformer:4,2|64,8", "no layer of it has a counterpart"), (LARGE["pit"], "belong to the space autoformer")],
)
def test_a_model_without_counterparts_starts_from_random_weights(topology: str, reason: str) -> None:
    model = build_model(topology, task(), seed=2, device=CPU)
    found = fit(source_of(LARGE["autoformer"]), topology)
    assert reason in str(found.reason)
    assert all(torch.equal(value, found.state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("space", sorted(LARGE))
def test_rows_of_the_last_layer_follow_their_class_names(space: str) -> None:
    source = source_of(LARGE[space])
    found = fit(source, LARGE[space], classes=("c", "d", "a", "e"))
    name = f"{found.last_layer}.weight"
    fresh = build_model(LARGE[space], task(4), seed=2, device=CPU).state_dict()[name]
    assert torch.equal(found.state[name][[0, 2]], source.tensors[name][[2, 0]])
    assert torch.equal(found.state[name][[1, 3]], fresh[[1, 3]])
    assert found.known_classes == ("c", "a")
    assert "2 of 4 classes known by name (c, a), the others new" in found.text


def test_classes_in_another_order_are_matched_by_name() -> None:
    source = source_of(LARGE["pit"])
    found = fit(source, LARGE["pit"], classes=("c", "a", "b"))
    assert torch.equal(found.state["head.bias"], source.tensors["head.bias"][[2, 0, 1]])
    assert found.text.endswith("tensors; the last layer matched by class name")


def test_classes_with_other_names_get_a_new_last_layer() -> None:
    found = fit(source_of(LARGE["pit"]), LARGE["pit"], classes=("x", "y"))
    assert found.fresh == ("head.weight", "head.bias")
    assert found.text == "starts from 62 of 64 tensors; a new last layer for 2 classes"


def test_numbers_are_not_taken_for_names_of_classes() -> None:
    source = source_of(LARGE["pit"], classes=("0", "1", "2"))
    assert fit(source, LARGE["pit"], classes=("1", "0")).known_classes == ()
    assert fit(source, LARGE["pit"], classes=("0", "1", "2")).known_classes is None


@pytest.mark.parametrize("space", ["autoformer", "pit"])
def test_positions_are_interpolated_to_another_image_size(space: str) -> None:
    source = source_of(LARGE[space])
    constant = {**source.tensors, "position": torch.full_like(source.tensors["position"], 0.25)}
    found = fit(SourceWeights(**{**vars(source), "tensors": constant}), LARGE[space], size=64)
    numbers = found.state["position"].flatten().tolist()
    assert numbers == rounded([0.25] * len(numbers), 16, torch.float32)
    assert "positions interpolated from" in found.text
    assert found.selected == ()


def test_a_patch_embedding_responds_to_a_resized_patch_as_before() -> None:
    """FlexiViT's defining property, exact where patches are enlarged: <x, w> = <resize(x), w'>."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    patch = torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    larger = F.interpolate(patch, size=(8, 8), mode="bilinear")
    before, after = (weight * patch).sum((1, 2, 3)), (resize_patches(weight, 8) * larger).sum((1, 2, 3))
    assert after.tolist() == rounded(before.tolist(), 64, torch.float64)


def test_smaller_patches_of_a_constant_respond_as_before() -> None:
    weight = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    constant = torch.full((1, 1, 16, 16), 0.5).double()
    small = resize_patches(weight, 4)
    smooth = F.interpolate(constant, size=(4, 4), mode="bilinear", antialias=True)
    assert float(smooth.std()) == pytest.approx(0)
    assert small.shape == (2, 1, 4, 4)


def test_a_grey_image_gives_the_same_response_with_one_channel() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    grey = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    one = F.conv2d(grey, change_channels(weight, 1))
    three = F.conv2d(grey.repeat(1, 3, 1, 1), weight)
    assert one.flatten().tolist() == rounded(three.flatten().tolist(), 12, torch.float32)
    again = F.conv2d(grey.repeat(1, 3, 1, 1), change_channels(change_channels(weight, 1), 3))
    assert again.flatten().tolist() == rounded(three.flatten().tolist(), 12, torch.float32)


@pytest.mark.parametrize("space", sorted(LARGE))
def test_a_colour_model_starts_a_grey_one(space: str) -> None:
    found = fit(source_of(LARGE[space]), LARGE[space], channels=1)
    assert "first layer changed from 3 to 1 channels" in found.text
    assert found.fresh == ()


def test_overlapping_patches_of_the_same_grid_keep_the_weights_of_their_pixels() -> None:
    source = source_of(LARGE["as-vit"])
    found = fit(source, LARGE["as-vit"].replace(":8,", ":4,"))
    name = "stages.0.embed.proj.weight"
    assert torch.equal(found.state[name], source.tensors[name][..., 2:6, 2:6])


def test_merged_tokens_keep_their_places_in_a_smaller_kernel() -> None:
    """A kernel of 4 begins one token before a kernel of 2, so its inner tokens are kept."""
    large = "as-vit:4,4,2,1|4,4,2,1|2,2,2,1|2,1,2,1|16,4"
    source = source_of(large)
    found = fit(source, large.replace("|4,4,2,1|", "|2,4,2,1|"))
    kept = source.tensors["stages.1.embed.reduction.weight"].view(-1, 4, 4, 4)[:, 1:3, 1:3].flatten(1)
    assert torch.equal(found.state["stages.1.embed.reduction.weight"], kept)
    assert "patch merging cut or padded" in found.text


def test_a_larger_merging_kernel_can_learn_in_its_new_places() -> None:
    small = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
    found = fit(source_of(small), small.replace("|2,4,2,1|", "|4,4,2,1|"))
    scale: Tensor = found.state["stages.1.embed.norm.weight"].view(4, 4, 4)
    assert (scale[0] == 1).all()
    assert (scale[1:3, 1:3] != 1).all()


# --- options of blocks ---


@pytest.mark.parametrize("space", sorted(LARGE))
def test_options_are_selected_with_the_layers_that_they_belong_to(space: str) -> None:
    options = "|qk_norm,layer_scale,grn,sigmoid_attention"
    source = source_of(LARGE[space] + options)
    assert fit(source, LARGE[space] + options).text == "starts from all weights as they are"
    found = fit(source, SMALL[space] + options)
    assert found.fresh == ()
    for name, rows in (("attn.scale.gamma", "attn.proj.bias"), ("mlp.grn.gamma", "mlp.fc1.bias")):
        for scale, layer in ((key.replace(rows, name), key) for key in found.state if key.endswith(rows)):
            places = [source.tensors[layer].tolist().index(value) for value in found.state[layer].tolist()]
            assert torch.equal(found.state[scale], source.tensors[scale][places])


def test_a_layer_scale_that_only_one_side_has_changes_nothing() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, scaled = LARGE["autoformer"], f"{LARGE['autoformer']}|layer_scale"
    for old, new, words in (
        (plain, scaled, "layer scales of 1"),
        (scaled, plain, "layer scales multiplied into their layers"),
    ):
        source = source_of(old)
        source = replace(source, tensors={name: 0.2 * value for name, value in source.tensors.items()})
        found = fit(source, new)
        assert found.fresh == ()
        assert words in found.text
        logits = []
        for topology, state in ((old, source.tensors), (new, found.state)):
            model = build_model(topology, task(), seed=0, device=CPU).eval()
            model.load_state_dict(dict(state))
            logits.append(model(images).detach())
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_a_layer_keeps_its_weights_if_its_options_are_new() -> None:
    found = fit(source_of(LARGE["pit"]), f"{LARGE['pit']}|qk_norm,grn")
    assert {name.rsplit(".", 2)[1] for name in found.fresh} == {"query_norm", "key_norm", "grn"}
    assert all(name in found.exact for name in found.state if name.endswith(("qkv.weight", "fc1.weight")))


def test_a_layer_scale_is_as_new_as_its_layer() -> None:
    found = fit(source_of("autoformer:2,2|32,8"), "autoformer:2,4|32,8|layer_scale")
    assert torch.equal(found.state["blocks.0.mlp.scale.gamma"], torch.full((32,), 0.1))
    assert torch.equal(found.state["blocks.0.attn.scale.gamma"], torch.ones(32))
