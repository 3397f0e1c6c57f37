"""Loads, resizes and splits images in memory. A separate function, which no search calls, loads the test part."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from search_spaces.base import ImageTask
from trainers.config import NOISE, DataConfig
from trainers.data.cache import Notes, load_rows
from trainers.data.cache_settings import cache_settings
from trainers.data.decoding import Chosen
from trainers.data.label_noise import noisy_labels, tell_of_noise
from trainers.data.listing import DataError, DataFindings, Source, UnreadableError
from trainers.data.mapping import batches, gather, select
from trainers.data.noise import draw_noise
from trainers.data.pixels import Scales
from trainers.data.sources import BUILT_IN, list_source, noise_task
from trainers.data.splits import draw, split_indices

_IMAGES_PER_BATCH = 256
"""Number of images that are examined at a time."""


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """Images and their classes. Legend: `N` images of `C` channels, `S` x `S` pixels."""

    images: Tensor
    """Shape (N, C, S, S), uint8."""
    labels: Tensor
    """Shape (N,), int64."""
    true_labels: Tensor | None = None
    """Classes before `data.label_noise`, shape (N,); `None` if the labels are as in the source."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageSplit":
        """A copy on another device."""
        truth = None if self.true_labels is None else self.true_labels.to(device)
        return ImageSplit(images=self.images.to(device), labels=self.labels.to(device), true_labels=truth)

    def as_in_source(self) -> "ImageSplit":
        """The same images with their labels before `data.label_noise`."""
        return self if self.true_labels is None else ImageSplit(images=self.images, labels=self.true_labels)


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The parts of a data set that trials may use: training and validation."""

    name: str
    task: ImageTask
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of the training part per channel, with pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation, computed in the same way."""
    train: ImageSplit
    validation: ImageSplit
    digest: str
    """sha256 of the pixels and labels of both parts and of the class names."""
    scales: Scales = field(default_factory=dict)
    """The value that means white in images with more than 8 bits per channel, by kind (`trainers.data.pixels`)."""
    findings: DataFindings = field(default_factory=DataFindings)
    """What was ignored, and what is suspicious."""
    originals: Mapping[tuple[str, tuple[int, int]], int] = field(default_factory=dict)
    """Number of images by Pillow's mode and size (width, height) before they were converted and resized."""


@lru_cache(maxsize=2)
def load_images(config: DataConfig) -> ImageData:
    """Load the training and validation parts. The two most recent results are cached.

    Raises:
        DataError: The source is missing, empty or unusable, or contains an unreadable image.
    """
    if config.source == NOISE:
        return _load_noise(config)
    source = list_source(config)
    chosen = choose_parts(source, config)
    # Decoded together, so that both parts have the same number of channels and deep pixels are scaled equally.
    decoded = decode_images([chosen["train"], chosen["validation"]], config, findings=source.findings)
    if decoded.broken and not config.skip_broken:
        raise UnreadableError(decoded.broken | _broken_test_images(chosen["test"], config))
    train, validation = decoded.splits
    notes = decoded.notes
    if config.duplicates == "drop":
        test = decode_images(
            [chosen["test"]], config, findings=DataFindings(), num_channels=decoded.num_channels, scales=decoded.scales
        )
        train, notes = without_copies(train, [validation, *test.splits], source.findings), None
    if config.label_noise > 0:
        labels = noisy_labels(train.labels, config, len(source.class_names))
        tell_of_noise(config, train.labels, labels, source.findings)
        train = ImageSplit(images=train.images, labels=labels, true_labels=train.labels)
    mean, std, digest, constant = _facts(source.class_names, train, validation, notes)
    for message in constant:
        source.findings.warn("constant", message)
    return ImageData(
        name=config.source if config.source in BUILT_IN else Path(config.source).stem,
        task=ImageTask(
            image_size=config.image_size, in_channels=train.images.shape[1], num_classes=len(source.class_names)
        ),
        class_names=source.class_names,
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        digest=digest,
        scales=decoded.scales,
        findings=source.findings,
        originals=decoded.originals,
    )


def _broken_test_images(test: Chosen, config: DataConfig) -> dict[str, str]:
    """Test images that Pillow cannot read, so that a message names those of all parts."""
    try:
        return decode_images([test], config, findings=DataFindings()).broken
    except DataError:  # of another kind, such as mixed sizes, which is reported once the broken images are gone
        return {}


def _load_noise(config: DataConfig) -> ImageData:
    """Noise for both parts, split without stratification: the labels are random."""
    images, labels = draw_noise(config, test=False)
    count = len(labels) - max(1, round(config.validation * len(labels)))
    parts = [
        ImageSplit(images=images[:count], labels=labels[:count]),
        ImageSplit(images=images[count:], labels=labels[count:]),
    ]
    mean, std = channel_statistics(parts[0].images)
    task = noise_task(config)
    names = tuple(str(number) for number in range(task.num_classes))
    return ImageData(
        name=NOISE,
        task=task,
        class_names=names,
        mean=mean,
        std=std,
        train=parts[0],
        validation=parts[1],
        digest=_digest(names, parts),
    )


def load_test_images(config: DataConfig, findings: DataFindings | None = None) -> ImageSplit:
    """Load the test part, for the champion only: the source's own, or the part that the split holds out.

    The images have as many channels as those of the other parts, and deep pixels are scaled as theirs are.

    Args:
        config: Source and split.
        findings: Receives broken images that are left out.

    Raises:
        DataError: For the same reasons as in `load_images`.
    """
    if config.source == NOISE:
        images, labels = draw_noise(config, test=True)
        return ImageSplit(images=images, labels=labels)
    data = load_images(config)
    chosen = choose_parts(list_source(config), config)["test"]
    decoded = decode_images(
        [chosen], config, findings=findings or DataFindings(), num_channels=data.task.in_channels, scales=data.scales
    )
    if decoded.broken and not config.skip_broken:
        raise UnreadableError(decoded.broken)
    return decoded.splits[0]


def choose_parts(source: Source, config: DataConfig) -> dict[str, Chosen]:
    """The images of the training, validation and test part: the source's own parts, or random splits.

    Raises:
        DataError: A part would be too small to contain every class.
    """
    whole = {part: Chosen(listing, np.arange(len(listing.labels))) for part, listing in source.parts.items()}
    share = config
    if "validation" in whole and config.max_images is not None:
        size, size_of_train = len(whole["validation"].indices), len(whole["train"].indices)
        for_validation = round(config.max_images * size / (size + size_of_train))
        share = config.model_copy(update={"max_images": config.max_images - for_validation})
        whole["validation"] = _some(whole["validation"], for_validation, config, part="max_images")
    train, validation, test = split_indices(
        source.train.labels, share, own_test="test" in whole, own_validation="validation" in whole
    )
    drawn = {"train": train, "validation": validation, "test": test}
    parts = {part: Chosen(source.train, indices) for part, indices in drawn.items()}
    parts |= {part: whole[part] for part in ("validation", "test") if part in whole}
    if config.max_test_images is not None:
        parts["test"] = _some(parts["test"], config.max_test_images, config, part="max_test_images")
    return parts


def _some(chosen: Chosen, count: int, config: DataConfig, *, part: str) -> Chosen:
    """A stratified sample, if there are more images than `count`."""
    if count >= len(chosen.indices):
        return chosen
    classes = np.asarray(chosen.listing.labels)
    return Chosen(chosen.listing, draw(chosen.indices, classes, count, config, part=part)[0])


class Decoded(NamedTuple):
    """Decoded parts."""

    splits: list[ImageSplit]
    num_channels: int
    scales: Scales
    """The value that means white in deep images, by kind."""
    originals: Mapping[tuple[str, tuple[int, int]], int]
    """Number of images by Pillow's mode and size (width, height) before they were converted and resized."""
    broken: dict[str, str]
    """Images that Pillow cannot read, which the splits lack: the reason by name."""
    notes: Notes | None
    """Facts that the cache keeps with the images."""


def decode_images(
    parts: Sequence[Chosen],
    config: DataConfig,
    *,
    findings: DataFindings,
    num_channels: int | None = None,
    scales: Scales | None = None,
) -> Decoded:
    """Decode several parts, with equal numbers of channels, or load them from the cache of decoded images.

    Args:
        parts: The images of each part.
        config: Size, and what to do with images that are not square, transparent or broken.
        findings: Receives broken images that are left out, and remarks on deep images.
        num_channels: Number of channels. Default: one if all images are grey, otherwise three.
        scales: Values that mean white in deep images. Default: told by the values of all parts.

    Raises:
        DataError: Images differ in size although `resize` is `same`, or have an unknown range.
    """
    pixels, rows, notes = load_rows(parts, config, num_channels=num_channels, scales=scales)
    for remark in rows.remarks:
        findings.warn("depth", remark)
    is_whole = rows.records["row"] >= 0
    num_with_frames = int(rows.records["has_frames"][is_whole].sum())
    if num_with_frames:
        findings.warn("frames", f"{num_with_frames} files have several frames or pages: only the first is used")
    if config.skip_broken:
        for name, reason in rows.broken.items():
            findings.skip("broken, as data.skip_broken allows", f"{name} ({reason})")
    splits = []
    first = first_row = 0
    for listing, indices in parts:
        kept = is_whole[first : first + len(indices)]
        num_rows = int(kept.sum())
        labels = torch.from_numpy(np.asarray(listing.labels)[indices[kept]])
        splits.append(ImageSplit(images=pixels[first_row : first_row + num_rows], labels=labels))
        first, first_row = first + len(indices), first_row + num_rows
    return Decoded(splits, pixels.shape[1], rows.scales, rows.originals, rows.broken, notes)


class _Facts(NamedTuple):
    """What all pixels must be read for."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    constant: list[str]


def _facts(class_names: tuple[str, ...], train: ImageSplit, validation: ImageSplit, notes: Notes | None) -> _Facts:
    """The facts, from the notes of the cache if an earlier start left them there."""
    key = json.dumps([class_names, train.labels.tolist(), validation.labels.tolist()]).encode()
    known = notes.read(key) if notes is not None else None
    if known is not None:
        return _Facts(tuple(known["mean"]), tuple(known["std"]), known["digest"], known["constant"])
    found = _Facts(
        *channel_statistics(train.images),
        digest=_digest(class_names, [train, validation]),
        constant=classes_without_content(train.as_in_source(), class_names),
    )
    if notes is not None:
        notes.write(key, found._asdict())
    return found


def classes_without_content(split: ImageSplit, class_names: Sequence[str]) -> list[str]:
    """A warning for each class whose images have no content: each of one colour, or all equal."""
    classes, first = np.unique(split.labels.numpy(), return_index=True)
    of_class = torch.zeros(len(class_names), dtype=torch.int64)
    of_class[torch.from_numpy(classes)] = torch.arange(len(classes))
    examples = gather(split.images, torch.from_numpy(first))
    are_constant, are_equal = (torch.ones(len(classes), dtype=torch.bool) for _ in range(2))
    labels = torch.split(of_class[split.labels], _IMAGES_PER_BATCH)
    for batch, mine in zip(batches(split.images, _IMAGES_PER_BATCH), labels, strict=True):
        are_constant[mine[~(batch == batch[:, :, :1, :1]).flatten(1).all(1)]] = False
        are_equal[mine[~(batch == examples[mine]).flatten(1).all(1)]] = False
    counts = split.labels.bincount()[classes].tolist()
    return [
        f"all {count} training images of class {class_names[number]!r} "
        f"{'are of one colour each' if constant else 'are all equal'}, constant as the model sees them: look at them "
        "with `vitsearch data SOURCE --sheet sheet.png`"
        for number, count, constant, equal in zip(classes.tolist(), counts, are_constant, are_equal, strict=True)
        if count >= 2 and (constant or equal)
    ]


def image_digests(split: ImageSplit) -> list[bytes]:
    """A digest of the pixels of each image."""
    return [
        hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
        for batch in batches(split.images, _IMAGES_PER_BATCH)
        for image in batch
    ]


def without_copies(split: ImageSplit, others: Sequence[ImageSplit], findings: DataFindings) -> ImageSplit:
    """The images that are in none of the other parts, compared by their decoded pixels."""
    elsewhere = {digest for other in others for digest in image_digests(other)}
    kept = [index for index, digest in enumerate(image_digests(split)) if digest not in elsewhere]
    if len(kept) < len(split):
        dropped = len(split) - len(kept)
        findings.skip("a training image that is also in another part, as data.duplicates: drop asks", "", count=dropped)
    indices = torch.tensor(kept, dtype=torch.int64)
    return ImageSplit(images=select(split.images, indices, cache_settings().folder), labels=split.labels[indices])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), with pixels scaled to 0..1.

    The standard deviation of a constant channel is set to 1, so that it can be used as a divisor.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for batch in batches(images, _IMAGES_PER_BATCH):
        for number, channel in enumerate(batch.unbind(1)):
            counts[number] += torch.bincount(channel.flatten(), minlength=256)
    means, deviations = [], []
    for count in counts:
        shares = count.double() / count.sum()
        mean = float(shares @ values)
        deviation = float(shares @ (values - mean) ** 2) ** 0.5
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)


def image_mode(task: ImageTask) -> str:
    """Pillow's image mode for a task: `L` (grey) or `RGB`."""
    return "L" if task.in_channels == 1 else "RGB"


def _digest(class_names: tuple[str, ...], parts: Sequence[ImageSplit]) -> str:
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for part in parts:
        digest.update(json.dumps(list(part.images.shape)).encode())
        for batch in batches(part.images, _IMAGES_PER_BATCH):
            digest.update(batch.contiguous().numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()
