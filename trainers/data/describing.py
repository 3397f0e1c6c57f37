"""Describes a data set: counts, statistics, what was ignored, and what is suspicious; and draws some images."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from trainers.config import NOISE, DataConfig
from trainers.data.images import ImageData, ImageSplit, image_digests, load_images, load_test_images
from trainers.data.listing import DataFindings
from trainers.data.mapping import gather
from trainers.data.report import DataReport, PartReport, SkippedReport, WarningReport

_MAX_ROWS, _MAX_COLUMNS, _MIN_SIDE, _MARGIN = 20, 10, 64, 4


class DescribedData(NamedTuple):
    """A report, and the training part that it is about."""

    report: DataReport
    data: ImageData


def describe_data(config: DataConfig) -> DescribedData:
    """Read and decode all parts, and report what was understood.

    Raises:
        DataError: The data cannot be used.
    """
    data = load_images(config)
    findings = DataFindings(copy.deepcopy(data.findings.skipped), list(data.findings.warnings))
    parts = {"train": data.train, "validation": data.validation, "test": load_test_images(config, findings)}
    if config.source != NOISE:
        warn_of_copies(parts, findings, are_dropped=config.duplicates == "drop")
    report = DataReport(
        source=config.source,
        classes=list(data.class_names),
        parts={name: _part_report(split, data.class_names) for name, split in parts.items()},
        image_size=config.image_size,
        resize=config.resize,
        channels=data.task.in_channels,
        mean=[round(value, 6) for value in data.mean],
        std=[round(value, 6) if value < 1 else 0.0 for value in data.std],  # no channel from 0 to 1 deviates by more
        originals=[
            f"{mode} {width} x {height}: {count}"
            for (mode, (width, height)), count in Counter(data.originals).most_common()
        ],
        skipped=[
            SkippedReport(reason=one.reason, count=one.count, examples=one.examples)
            for one in findings.skipped.values()
        ],
        warnings=[WarningReport(kind=one.kind, message=one.message) for one in findings.warnings],
    )
    return DescribedData(report, data)


def warn_of_copies(parts: Mapping[str, ImageSplit], findings: DataFindings, *, are_dropped: bool = False) -> None:
    """Warn of images that are equal in two parts, or that have two classes; compared by their decoded pixels.

    Args:
        parts: All parts.
        findings: Receives the warnings.
        are_dropped: Whether copies of validation and test images are left out of the training part already.
    """
    advice = (
        "`data.duplicates: drop` leaves copies out of the training part only: remove them from one of the parts"
        if are_dropped
        else "`data.duplicates: drop` leaves the copies out of the training part"
    )
    digests = {name: image_digests(split) for name, split in parts.items()}
    before: set[bytes] = set()
    for name, others in (("validation", "training"), ("test", "training or validation")):
        before |= set(digests["train" if name == "validation" else "validation"])
        copies = sum(digest in before for digest in digests[name])
        if copies:
            findings.warn(
                "leak",
                f"{copies} of the {len(digests[name])} {name} images are also in the {others} part (equal pixels), so "
                f"that its figures are too good; {advice}",
            )
    classes: dict[bytes, set[int]] = {}
    for name, split in parts.items():
        for digest, label in zip(digests[name], split.as_in_source().labels.tolist(), strict=True):
            classes.setdefault(digest, set()).add(label)
    doubtful = sum(len(labels) > 1 for labels in classes.values())
    if doubtful:
        findings.warn("two-classes", f"{doubtful} pictures occur in more than one class (equal pixels)")


def draw_sheet(data: ImageData, file: Path) -> None:
    """Draw some training images of each class, as the model sees them, into a picture file.

    Raises:
        OSError: The file cannot be written.
        ValueError: Its suffix is that of no picture format.
    """
    size = data.task.image_size
    factor = max(1, -(-_MIN_SIDE // size))
    side = size * factor + _MARGIN
    names = data.class_names[:_MAX_ROWS]
    font = ImageFont.load_default(size=14)
    titles = [f"{name} ({int((data.train.labels == number).sum())})" for number, name in enumerate(names)]
    left = _MARGIN * 2 + max(int(font.getlength(title)) for title in titles)
    rest = len(data.class_names) - len(names)
    height = len(names) * side + _MARGIN + (20 if rest else 0)
    sheet = Image.new("RGB", (left + _MAX_COLUMNS * side + _MARGIN, height), "white")
    pen = ImageDraw.Draw(sheet)
    for row, title in enumerate(titles):
        top = _MARGIN + row * side
        pen.text((_MARGIN, top + side // 2 - 9), title, fill="black", font=font)
        mine = (data.train.labels == row).nonzero().flatten()[:_MAX_COLUMNS]
        for column, image in enumerate(gather(data.train.images, mine)):
            pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
            picture = Image.fromarray(pixels).resize((size * factor,) * 2, Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * side, top))
    if rest:
        pen.text((_MARGIN, height - 20), f"and {rest} more classes", fill="black", font=font)
    unfinished = file.with_name(f".unfinished-{file.name}")
    sheet.save(unfinished)
    unfinished.replace(file)


def _part_report(split: ImageSplit, class_names: Sequence[str]) -> PartReport:
    counts = split.labels.bincount(minlength=len(class_names)).tolist()
    return PartReport(num_images=len(split), per_class=dict(zip(class_names, counts, strict=True)))
