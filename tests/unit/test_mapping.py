"""Pixels that stay in a file: the same images, and trainings that give the same result."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plugins.protocols import Signal
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import TrainTask
from trainers.data.images import ImageData, ImageSplit, channel_statistics, classes_without_content, image_digests
from trainers.data.mapping import batches, gather, is_mapped, joined, map_pixels, select
from trainers.training.checkpoints import load_weights
from trainers.training.packed import train_packed


def mapped(images: Tensor, file: Path) -> Tensor:
    """The same images as a map of a file, which is removed."""
    file.write_bytes(images.numpy().tobytes())
    with file.open("rb") as opened:
        found = map_pixels(opened.fileno(), tuple(images.shape))
    file.unlink()
    return found


def mapped_digits(folder: Path) -> ImageData:
    data = digits()
    parts = {name: getattr(data, name) for name in ("train", "validation")}
    return replace(
        data,
        **{
            name: ImageSplit(images=mapped(part.images, folder / name), labels=part.labels)
            for name, part in parts.items()
        },
    )


def test_a_map_gives_the_same_images_and_outlives_its_file(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (5000, 3, 64, 64), dtype=torch.uint8)
    part, expected = mapped(pixels, tmp_path / "pixels")[1000:], pixels[1000:]
    assert is_mapped(part)
    assert not is_mapped(pixels)
    indices = torch.randint(len(part), (300,))
    for _ in range(20):  # more than what is given back at once
        assert torch.equal(gather(part, indices), expected[indices])
    assert all(torch.equal(*pair) for pair in zip(batches(part, 700), batches(expected, 700), strict=True))
    neighbours = joined(part[:50], part[50:70])
    assert is_mapped(neighbours)
    assert torch.equal(neighbours, expected[:70])
    assert torch.equal(joined(part[:5], part[7:9]), torch.cat([expected[:5], expected[7:9]]))
    some = select(part, indices, tmp_path)
    assert is_mapped(some)
    assert torch.equal(some, expected[indices])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_reading_a_large_map_does_not_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    count, size = 2500, 3 * 256**2
    with file.open("wb") as opened:
        for number in range(count):
            opened.write(bytes([number % 251]) * size)
    with file.open("rb") as opened:
        images = map_pixels(opened.fileno(), (count, 3, 256, 256))
    split = ImageSplit(images=images, labels=torch.arange(count) % 2)
    before = _resident_bytes()
    for work in (
        lambda: [len(gather(images, torch.randint(count, (64,)))) for _ in range(60)],
        lambda: channel_statistics(images),
        lambda: image_digests(split),
        lambda: classes_without_content(split, ("a", "b")),
    ):
        work()
        assert _resident_bytes() - before < count * size / 2


def _resident_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return sum(int(found) for found in re.findall(r"Rss(?:Anon|File|Shmem):\s+(\d+)", text)) * 1024


def test_trainings_from_a_map_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    recipe = {"curriculum": "paced", "augmentation": "affine", "mixing": "mixup"}
    config, signals = configuration(epochs=3, recipe=recipe), (Signal.GRADIENT_NORM, Signal.CHANGED_PREDICTIONS)
    found = []
    for name, data in (("memory", digits()), ("map", mapped_digits(tmp_path))):
        recorder = Recorder()
        alone = run(config, tmp_path / name / "alone", recorder, data=data, signals=signals)
        tasks = [
            TrainTask(configuration=config, folder=tmp_path / name / str(number), signals=signals)
            for number in range(2)
        ]
        packed = [outcome for _, outcome in train_packed(tasks, data, [Recorder(), Recorder()], CPU)]
        reports = [report.model_copy(update={"wall_time_s": 0.0}) for report in recorder.reports]
        outcomes = [alone, *packed]
        found.append((reports, [load_weights(outcome.checkpoints[-1].path) for outcome in outcomes]))
    (reports, weights), (others, other_weights) = found
    assert reports == others
    for ours, theirs in zip(weights, other_weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
