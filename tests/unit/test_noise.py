"""The data source `noise`: standard-normal images with uniform labels, determined by the seed."""

import pytest
import torch
from pydantic import ValidationError

from trainers.config import DataConfig
from trainers.data.images import load_images, load_test_images
from trainers.data.sources import check_source
from trainers.training.evaluation import Normalizer

NOISE = DataConfig(source="noise", image_size=32, num_classes=7)


def test_the_images_are_standard_normal_once_they_are_normalised() -> None:
    data = load_images(NOISE)
    images = Normalizer(data.mean, data.std, torch.device("cpu"))(data.train.images).double()
    assert images.shape == (256, 3, 32, 32)
    assert images.mean().abs() < 1e-5
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert (images**3).mean().abs() < 0.02
    assert (images**4).mean().item() == pytest.approx(3, abs=0.03)
    flat = images.flatten(1)[:, :200]
    assert torch.corrcoef(flat.T).triu(1).abs().max() < 0.35  # pixels are independent: 1/sqrt(256) is 0.06


def test_the_labels_are_uniform_over_the_classes() -> None:
    data = load_images(NOISE.model_copy(update={"max_images": 7000}))
    assert data.task.num_classes == len(data.class_names) == 7
    counts = torch.bincount(data.train.labels, minlength=7)
    assert (counts - counts.float().mean()).abs().max() < 4 * counts.float().mean().sqrt()


def test_the_parts_differ_and_follow_from_the_seed() -> None:
    data, again = load_images(NOISE), load_images(NOISE.model_copy(update={"max_test_images": 10}))
    other = load_images(NOISE.model_copy(update={"split_seed": 1}))
    assert data.digest == again.digest != other.digest
    assert (len(data.train), len(data.validation)) == (256, 64)
    held_out = load_test_images(NOISE)
    assert len(held_out) == 80
    pixels = {image.numpy().tobytes() for part in (data.train, data.validation, held_out) for image in part.images}
    assert len(pixels) == 256 + 64 + 80


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    load_images(NOISE.model_copy(update={"split_seed": 5}))
    assert torch.equal(before, torch.get_rng_state())


def test_it_needs_no_data_and_takes_the_number_of_classes() -> None:
    assert check_source(NOISE) is None
    assert load_images(DataConfig(source="noise", max_images=10)).task.num_classes == 10
    with pytest.raises(ValidationError, match="`num_classes` needs `source: noise`"):
        DataConfig(source="digits", num_classes=10)
