"""Rules for every augmentation and mixing method, and the behaviour of ours."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import kornia.augmentation as kornia
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from plugins.augmentations.cutmix import draw_box
from plugins.augmentations.maskmix import draw_masks, progressive_shares
from plugins.augmentations.mixup import draw_share
from plugins.augmentations.randaugment import scale_operation
from plugins.protocols import Augmentation, JointAugmentation, Mixing, Mixture, PluginCard
from plugins.registry import PluginSettingsError, available, create

NAMES = sorted(available("augmentations"))
AUGMENTING = [name for name in NAMES if hasattr(create("augmentations", name), "augment")]
JOINT = [name for name in NAMES if isinstance(create("augmentations", name), JointAugmentation)]
MIXING = [name for name in NAMES if isinstance(create("augmentations", name), Mixing)]
NUM_CLASSES = 5
MIRRORING = {"flip-crop": True, "randaugment": True, "shift": False, "affine": False, "none": False}


@pytest.fixture(params=AUGMENTING)
def augmentation(request: pytest.FixtureRequest) -> Augmentation:
    return create("augmentations", request.param)


@pytest.fixture(params=MIXING)
def mixing(request: pytest.FixtureRequest) -> Mixing:
    return create("augmentations", request.param)


def batch(channels: int = 3, *, num_images: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(num_images, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def edges() -> Tensor:
    """Grey images, white on the left and black on the right."""
    images = torch.zeros(64, 1, 16, 16)
    images[..., :8] = 1
    return images


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_card_and_augments_or_mixes(name: str) -> None:
    plugin = create("augmentations", name)
    assert isinstance(plugin.card, PluginCard)
    assert plugin.card.source
    assert plugin.card.cost
    assert name in AUGMENTING or name in MIXING


# --- augmentations ---


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_alone_decides(augmentation: Augmentation, channels: int, strength: float) -> None:
    images = batch(channels)
    state = torch.get_rng_state()
    first = augmentation.augment(images, strength=strength, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    augmentation.augment(images, strength=strength, seed=5)
    assert torch.equal(first, augmentation.augment(images, strength=strength, seed=1))
    others = [augmentation.augment(images, strength=strength, seed=seed) for seed in (2, 3, 4)]
    assert torch.equal(first, images) or not all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_stay_pixels_of_the_same_shape(augmentation: Augmentation, channels: int, strength: float) -> None:
    images = batch(channels)
    before = images.clone()
    for seed in range(4):
        result = augmentation.augment(images, strength=strength, seed=seed)
        assert result.shape == images.shape
        assert result.dtype == torch.float32
        assert -1e-4 <= result.min() <= result.max() <= 1.0001
        assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_strength_zero_an_image_is_itself_or_its_mirror_image(augmentation: Augmentation, channels: int) -> None:
    images = batch(channels)
    result = augmentation.augment(images, strength=0.0, seed=3)
    for image, found in zip(images, result, strict=True):
        distances = [(found - other).abs().max() for other in (image, image.flip(-1))]
        assert min(distances) < 1e-6


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0])
def test_batches_together_are_augmented_as_each_alone(name: str, strength: float) -> None:
    augmentation = create("augmentations", name)
    batches = [batch(seed=0), batch(seed=1, num_images=3), batch(seed=2)]
    for members in (batches, batches[:1]):
        seeds = list(range(len(members)))
        together = augmentation.augment_together(members, strength=strength, seeds=seeds)
        for images, seed, found in zip(members, seeds, together, strict=True):
            alone = augmentation.augment(images, strength=strength, seed=seed)
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


# --- mixing ---


def targets_of(num_images: int) -> Tensor:
    return torch.eye(NUM_CLASSES)[torch.arange(num_images) % NUM_CLASSES]


def mix(mixing: Mixing, images: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    return mixing.mix(images, targets_of(len(images)), generator=torch.Generator().manual_seed(seed))


def test_the_generator_alone_decides_what_is_mixed(mixing: Mixing) -> None:
    images, state = batch(), torch.get_rng_state()
    first = mix(mixing, images, seed=1)
    torch.manual_seed(4)
    again = mix(mixing, images, seed=1)
    torch.set_rng_state(state)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = mix(mixing, images, seed=2)
    assert torch.equal(first[0], images) or not torch.equal(first[0], other[0])


def test_mixing_leaves_its_inputs_and_the_global_generator_as_they_were(mixing: Mixing) -> None:
    images, targets, state = batch(), targets_of(8), torch.get_rng_state()
    mixing.mix(images, targets, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, batch())
    assert torch.equal(targets, targets_of(8))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_targets_stay_distributions_and_pixels_stay_pixels(mixing: Mixing, num_images: int) -> None:
    for seed in range(10):
        images, targets = mix(mixing, batch(num_images=num_images), seed=seed)
        assert images.shape == (num_images, 3, 16, 16)
        assert images.dtype == torch.float32
        assert targets.shape == (num_images, NUM_CLASSES)
        assert 0 <= images.min() <= images.max() <= 1
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(num_images), rtol=1e-6, atol=1e-6)


def test_the_targets_tell_what_the_images_are_made_of(mixing: Mixing) -> None:
    """Each image is white in the colour of its class, so its mean colours are its targets."""
    colours = targets_of(NUM_CLASSES)[:, :, None, None].expand(-1, -1, 16, 16)
    for seed in range(10):
        images, targets = mix(mixing, colours, seed=seed)
        torch.testing.assert_close(images.mean((2, 3)), targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "maskmix"])
def test_mixing_mixes(name: str) -> None:
    mixed = [mix(create("augmentations", name, {"alpha": 1.0}), batch(), seed=seed) for seed in range(20)]
    assert sum(bool((targets.max(1).values < 0.999).any()) for _, targets in mixed) > 10
    assert sum(not torch.equal(images, batch()) for images, _ in mixed) > 10


# --- ours ---


MIRROR_CASES = [(name, strength) for name in sorted(MIRRORING) for strength in (0.0, 1.0)]
MIRROR_CASES.remove(("randaugment", 1.0))  # it may invert an image, which looks like a mirror image here


@pytest.mark.parametrize(("name", "strength"), MIRROR_CASES)
def test_an_augmentation_of_ours_makes_mirror_images_if_it_says_so(name: str, strength: float) -> None:
    result = create("augmentations", name).augment(edges(), strength=strength, seed=0)
    left, right = result[..., 2:6].mean((1, 2, 3)), result[..., 10:14].mean((1, 2, 3))
    assert bool((right > left).any()) == MIRRORING[name]


def test_a_shift_moves_by_an_eighth_at_most() -> None:
    result = create("augmentations", "shift").augment(edges(), strength=1.0, seed=0)
    inner = result[:, 0, 2:14]
    assert torch.all(inner[..., 2:6] > 0.99)
    assert torch.all(inner[..., 10:] < 0.01)
    assert inner[..., 6:10].std(0).max() > 0.1


KORNIAS = {
    "shift": [kornia.RandomAffine(degrees=0.0, translate=(0.125, 0.125), p=1.0)],
    "affine": [kornia.RandomAffine(degrees=12.0, translate=(0.125, 0.125), scale=(0.9, 1.1), p=1.0)],
    "flip-crop": [kornia.RandomHorizontalFlip(p=0.5), kornia.RandomCrop((16, 16), padding=2)],
    "randaugment": [kornia.RandomHorizontalFlip(p=0.5), kornia.auto.RandAugment(n=2, m=9)],
}


@pytest.mark.parametrize("name", sorted(KORNIAS))
def test_at_strength_one_it_is_what_version_0_1_0_did(name: str) -> None:
    for seed in range(10):
        found = create("augmentations", name).augment(batch(), strength=1.0, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = nn.Sequential(*KORNIAS[name])(batch())
        assert torch.equal(found, expected)


def distances(name: str, strengths: Sequence[float], seeds: Sequence[int]) -> list[float]:
    """Mean change of the pixels of smooth, symmetric images, at each strength."""
    ramp = torch.linspace(-1, 1, 16)
    images = (1 - (ramp[:, None].square() + ramp.square()) / 2).expand(8, 3, 16, 16).contiguous()
    plugin = create("augmentations", name)
    return [
        sum(float((plugin.augment(images, strength=strength, seed=seed) - images).abs().mean()) for seed in seeds)
        for strength in strengths
    ]


@pytest.mark.parametrize("name", ["shift", "affine", "flip-crop"])
def test_strength_scales_the_change(name: str) -> None:
    found = distances(name, (0.0, 0.5, 1.0, 2.0), range(10))
    assert found[0] == pytest.approx(0.0, abs=1e-4)
    assert all(weaker < stronger for weaker, stronger in pairwise(found))


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("rotate", -30.0, 30.0, (-15.0, 15.0)),
        ("brightness", 0.1, 1.9, (0.82, 0.82)),  # 0.64 at m = 9, and 1 changes nothing
        ("posterize", 4.0, 8.0, (7.4, 7.4)),  # 6.8 bits, and 8 change nothing
        ("solarize", 0.0, 1.0, (0.65, 0.65)),  # a threshold of 0.3, and 1 changes nothing
        ("solarize_add", 0.0, 0.43, (0.0645, 0.0645)),
        ("invert", 0, 1, (0, 1)),
    ],
)
def test_half_the_strength_of_randaugment_goes_half_as_far_from_doing_nothing(
    name: str, low: float, high: float, expected: tuple[float, float]
) -> None:
    assert scale_operation(name, low, high, 0.5) == (name, *(pytest.approx(value) for value in expected))


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.5, 2.0])
def test_kornia_takes_every_operation_of_randaugment_at_every_strength(strength: float) -> None:
    from kornia.augmentation.auto.rand_augment.rand_augment import default_policy

    for ((name, low, high),) in default_policy:
        layer = kornia.auto.RandAugment(n=1, m=9, policy=[[scale_operation(name, low, high, strength)]])
        with torch.random.fork_rng():
            assert torch.all(layer(batch()).isfinite())


def test_mixup_blends_images_by_the_share_of_their_targets() -> None:
    plain = batch(num_images=NUM_CLASSES)  # one image of each class, so that the targets name the images
    images, targets = mix(create("augmentations", "mixup", {"alpha": 1.0}), plain)
    assert (targets.max(1).values < 0.99).any()
    torch.testing.assert_close(images, torch.einsum("bn,nchw->bchw", targets, plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cutmix", "maskmix"])
def test_cutmix_and_maskmix_take_each_pixel_from_one_of_two_images(name: str) -> None:
    plain = batch(num_images=NUM_CLASSES)
    images, targets = mix(create("augmentations", name), plain, seed=3)
    own = images.eq(plain)
    assert 0 < own.float().mean() < 1
    # An image's own class weighs as much as the share of pixels that it keeps.
    torch.testing.assert_close(own.float().mean((1, 2, 3)), targets.diagonal())
    for image, target in zip(images, targets, strict=True):
        first, second = plain[target.topk(2).indices]
        assert torch.all(image.eq(first) | image.eq(second))


def drawn(seed: int, alpha: float) -> tuple[Generator, float]:
    """The generator of a mixing after it has drawn the share, and the share."""
    generator = Generator().manual_seed(seed)
    own_seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return generator, np.random.default_rng(own_seed).beta(alpha, alpha)


def mixed_by(
    mask: NDArray[np.float64] | Sequence[NDArray[np.float64]], share: float, partners: Sequence[int], images: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`m x + (1 - m) x'` and `share y + (1 - share) y'`, image by image, with one mask or one for each image."""
    pixels, targets = images.double().numpy(), targets_of(len(images)).double().numpy()
    pairs = list(enumerate(partners))
    masks = [mask] * len(images) if isinstance(mask, np.ndarray) else mask
    return (
        np.stack([masks[own] * pixels[own] + (1 - masks[own]) * pixels[other] for own, other in pairs]),
        np.stack([share * targets[own] + (1 - share) * targets[other] for own, other in pairs]),
    )


def assert_mixed(name: str, settings: dict[str, Any], seed: int, expected: tuple[Any, Any]) -> None:
    for found, wanted in zip(mix(create("augmentations", name, settings), batch(), seed=seed), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixup_is_its_formula(seed: int) -> None:
    generator, share = drawn(seed, 0.4)
    partners = torch.randperm(8, generator=generator).tolist()
    assert_mixed("mixup", {"alpha": 0.4}, seed, mixed_by(np.full((16, 16), share), share, partners, batch()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cutmix_pastes_the_box_of_the_authors_code(seed: int) -> None:
    """Sides `W sqrt(1 - share)` around a uniform centre, cut off at the borders; targets by the area that is left."""
    generator, share = drawn(seed, 1.0)
    side = int(16 * math.sqrt(1 - share))
    row, column = (int(torch.randint(16, (), generator=generator)) for _ in range(2))
    partners = torch.randperm(8, generator=generator).tolist()
    mask = np.ones((16, 16))
    mask[
        max(row - side // 2, 0) : min(row + side // 2, 16), max(column - side // 2, 0) : min(column + side // 2, 16)
    ] = 0
    assert 0 < mask.mean() < 1
    assert_mixed("cutmix", {"alpha": 1.0}, seed, mixed_by(mask, float(mask.mean()), partners, batch()))


def drawn_mask(share: float, generator: Generator) -> NDArray[np.float64]:
    """A mask of 4 x 4 patches of 4 x 4 pixels."""
    order = torch.randperm(16, generator=generator).tolist()
    mask = np.zeros((16, 16))
    for patch in order[: round(share * 16)]:
        top, left = 4 * (patch // 4), 4 * (patch % 4)
        mask[top : top + 4, left : left + 4] = 1
    return mask


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("masks", ["batch", "image"])
def test_maskmix_replaces_whole_patches(masks: str, seed: int) -> None:
    generator, share = drawn(seed, 1.0)
    kept = [drawn_mask(share, generator) for _ in range(8 if masks == "image" else 1)]
    partners = torch.randperm(8, generator=generator).tolist()
    expected = mixed_by(kept if masks == "image" else kept[0], float(kept[0].mean()), partners, batch())
    assert_mixed("maskmix", {"alpha": 1.0, "masks": masks}, seed, expected)


def test_masks_of_images_differ_in_their_patches_but_not_in_their_number() -> None:
    mixing = create("augmentations", "maskmix", {"masks": "image"})
    _, mixture = mixing.mix_two(batch(), targets_of(8), generator=Generator().manual_seed(3))
    assert len({mask.numpy().tobytes() for mask in mixture.kept}) > 1
    assert len(mixture.areas.unique()) == 1


def test_labels_by_attention_have_the_same_images_and_the_areas_of_their_masks() -> None:
    plain, attended = (create("augmentations", "maskmix", {"labels": labels}) for labels in ("area", "attention"))
    images, targets = mix(plain, batch(), seed=3)
    mixed, mixture = attended.mix_two(batch(), targets_of(8), generator=Generator().manual_seed(3))
    assert torch.equal(mixed, images)
    assert torch.equal(mixture.targets(mixture.areas), targets)
    assert (plain.reads_attention, attended.reads_attention) == (False, True)


def test_labels_by_attention_are_the_formula_of_the_authors_code() -> None:
    """`c w1 / (w1 + w2) + (1 - c) area` with `c` the cosine of the target by area and the softmax, image by image."""
    rng = np.random.default_rng(4)
    kept = rng.random((5, 4, 4)).repeat(4, 1).repeat(4, 2) < 0.6  # patches of 4 x 4 pixels, each one token
    attention = rng.dirichlet(np.ones(16), 5).reshape(5, 4, 4)
    own, partner = np.eye(3)[[0, 1, 2, 0, 1]], np.eye(3)[[1, 2, 2, 0, 0]]
    logits = rng.normal(size=(5, 3))
    shares = []
    for image in range(5):
        area = kept[image].mean()
        tokens = kept[image, ::4, ::4]
        first, second = (tokens * attention[image]).sum(), (~tokens * attention[image]).sum()
        target = area * own[image] + (1 - area) * partner[image]
        predicted = np.exp(logits[image]) / np.exp(logits[image]).sum()
        cosine = (target * predicted).sum() / np.sqrt((target**2).sum() * (predicted**2).sum())
        shares.append(cosine * first / (first + second) + (1 - cosine) * area)
    mixture = Mixture(torch.tensor(own), torch.tensor(partner), torch.tensor(kept))
    found = progressive_shares(mixture, torch.tensor(attention), torch.tensor(logits))
    np.testing.assert_allclose(found.numpy(), shares, rtol=0, atol=1e-12)
    expected = np.array(shares)[:, None] * own + (1 - np.array(shares))[:, None] * partner
    np.testing.assert_allclose(mixture.targets(found).numpy(), expected, rtol=0, atol=1e-12)


def test_attention_to_tokens_that_cross_a_mask_counts_by_their_kept_part() -> None:
    kept = torch.zeros(1, 8, 8, dtype=torch.bool)
    kept[:, :, :2] = True  # half of each token of the left column
    mixture = Mixture(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), kept)
    sure = torch.tensor([[0.25, 0.75]]).log()  # exactly the target by area, so that attention alone counts
    attention = torch.tensor([[[0.4, 0.2], [0.4, 0.0]]])
    assert progressive_shares(mixture, attention, sure).item() == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(("alpha", "deviation"), [(0.2, 0.5 / 1.4**0.5), (1.0, 0.5 / 3**0.5), (8.0, 0.5 / 17**0.5)])
def test_shares_have_the_deviation_of_their_beta_distribution(alpha: float, deviation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([draw_share(alpha, generator) for _ in range(4000)])
    assert 0 <= shares.min() <= shares.max() <= 1
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * deviation / 4000**0.5)
    assert float(shares.std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_box_has_at_most_its_share_of_the_image(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(200):
        rows, columns = draw_box(16, 16, share, generator)
        assert 0 <= rows.start <= rows.stop <= 16
        assert 0 <= columns.start <= columns.stop <= 16
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start) / 256)
    assert max(areas) <= 1 - share
    assert max(areas) > 0.5 * (1 - share) or share == 1.0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("size", "patch"), [(16, 4), (16, 5)])
def test_a_mask_of_maskmix_keeps_a_share_of_whole_patches(size: int, patch: int, share: float) -> None:
    (mask,) = draw_masks(1, size, patch, share, torch.Generator().manual_seed(2))
    assert mask.shape == (size, size)
    count = -(-size // patch)
    kept = []
    for row in range(count):
        for column in range(count):
            part = mask[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert part.all() or not part.any()
            kept.append(bool(part.all()))
    assert sum(kept) == round(share * count**2)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "maskmix"])
def test_an_alpha_of_zero_is_refused(name: str) -> None:
    with pytest.raises(PluginSettingsError, match="alpha"):
        create("augmentations", name, {"alpha": 0})
