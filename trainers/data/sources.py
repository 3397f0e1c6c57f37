"""Data sources: digits, folders and parquet files. Lists labelled images without decoding them or using torch."""

import importlib.util
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugins.regular_files import require_regular_file
from search_spaces.base import ImageTask
from trainers.config import NOISE, DataConfig
from trainers.data.folders import count_hidden, list_class_folders, loose_images, visible_folders
from trainers.data.label_files import find_label_file, find_part_tables, list_label_files
from trainers.data.labels import similar_names
from trainers.data.listing import DataError, DataFindings, FileListing, Item, Listing, Source, UnreadableError, few
from trainers.data.parquet import find_parquet, list_parquet
from trainers.data.splits import part_of

MIN_IMAGES_PER_CLASS = 3
DIGITS = "digits"
BUILT_IN = (DIGITS, NOISE)
"""Values of `data.source` that are not paths."""
_HEADERS_CHECKED = 1000
_NOISE_CLASSES = 10
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class DigitsListing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, one channel."""

    where: str
    labels: tuple[int, ...]
    pixels: Any

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Pixels scaled to 0..255."""
        for index in indices:
            yield Item(f"digit {index}", self.pixels[index])

    def origins(self, indices: Sequence[int]) -> None:
        """The digits are a part of scikit-learn, and need no decoding."""


def list_source(config: DataConfig) -> Source:
    """The labelled images of a source, by part, and what was ignored.

    Raises:
        DataError: The source is missing, empty or of an unknown form, or has too few classes or images.
    """
    if config.source == DIGITS:
        return _list_digits()
    findings = DataFindings()
    names, parts = list_parts(config, findings)
    path = Path(config.source).expanduser()
    if "train" not in parts:
        found = few(sorted(parts)) or "no images"
        raise DataError(f"{path} must have a training part, but has {found}. Add a folder or file named `train`.")
    source = Source(
        where=str(path),
        class_names=names,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
        findings=findings,
    )
    _check_classes(source)
    return source


def list_parts(config: DataConfig, findings: DataFindings) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Class names, and the parts that a source has, which need not include a training part.

    Args:
        config: The source.
        findings: Receives what is ignored, and what is suspicious.

    Raises:
        DataError: The source is missing, empty or of an unknown form.
    """
    if config.source == DIGITS:
        digits = _list_digits()
        return digits.class_names, digits.parts
    path = Path(config.source).expanduser()
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null byte
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(
                f"data.source must be readable, but {str(path)[:_SHOWN]!r}: {error.strerror}. Correct the path."
            ) from None
        raise DataError(
            f"data.source must be {DIGITS!r}, {NOISE!r}, a folder or a parquet file, but {path} does not exist "
            f"(working directory: {Path.cwd()}). Correct the path."
        ) from None
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise DataError(
            f"data.source must be a folder or a regular file, but {path} is a device or a pipe. Save its content first."
        )
    return _list_file(path, findings) if stat.S_ISREG(kind) else _list_folder(path, findings)


def check_source(config: DataConfig) -> str | None:
    """Check the data without decoding images, in well under a second; returns the problem or `None`.

    The headers of up to 1,000 image files are read, which reveals invalid files and mixed sizes.
    """
    if config.source in BUILT_IN:
        return None
    try:
        source = list_source(config)
        for listing in source.parts.values():
            if isinstance(listing, FileListing):
                _check_headers(listing.files, config)
    except DataError as error:
        return str(error)
    return None


def noise_task(config: DataConfig) -> ImageTask:
    """Size, channels and classes of the source `noise`: three channels, `num_classes` classes (10 by default)."""
    return ImageTask(image_size=config.image_size, in_channels=3, num_classes=config.num_classes or _NOISE_CLASSES)


def mixed_sizes(first: str, first_size: tuple[int, int], other: str, other_size: tuple[int, int]) -> DataError:
    """The error for images of different sizes with `resize: same`."""
    return DataError(
        f"with `resize: same` all images must have the same size, but {first} is {_size(first_size)} and {other} is "
        f"{_size(other_size)}. Use `resize: crop` (or `stretch`)."
    )


def not_square(name: str, size: tuple[int, int]) -> DataError:
    """The error for an image that is not square with `resize: same`."""
    return DataError(
        f"with `resize: same` images must be square, but {name} is {_size(size)}. Use `resize: crop` (or `stretch`)."
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _list_digits() -> Source:
    where = "scikit-learn's digits"
    rows = np.loadtxt(_digits_file(), delimiter=",")  # 8 x 8 pixels from 0 to 16, and the digit
    pixels = (rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    labels = tuple(int(label) for label in rows[:, -1])
    return Source(
        where=where,
        class_names=tuple(str(digit) for digit in range(10)),
        train=DigitsListing(where=where, labels=labels, pixels=pixels),
    )


def _digits_file() -> Path:
    """The file that `sklearn.datasets.load_digits` reads; importing scikit-learn would take seconds."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return file
    raise DataError(
        "data.source: digits needs the file datasets/data/digits.csv.gz of scikit-learn, but it is not installed. "
        "Install scikit-learn, or use another source."
    )


def _list_file(path: Path, findings: DataFindings) -> tuple[tuple[str, ...], dict[str, Listing]]:
    if path.suffix == ".parquet":
        return list_parquet(str(path), {"train": (path,)}, findings)
    if path.suffix in (".csv", ".jsonl"):
        return list_label_files(str(path), {"train": path}, findings)
    raise DataError(
        f"data.source must be a folder, a .parquet file or a table of labels (.csv, .jsonl), but {path} is another "
        "kind of file."
    )


def _list_folder(folder: Path, findings: DataFindings) -> tuple[tuple[str, ...], dict[str, Listing]]:
    table = find_label_file(folder)
    if table is not None:
        return list_label_files(str(folder), {"train": table}, findings)
    parquet = find_parquet(folder, findings)
    if parquet:
        return list_parquet(str(folder), parquet, findings)
    part_tables = find_part_tables(folder)
    if "train" in part_tables:
        return list_label_files(str(folder), part_tables, findings)
    parts = _part_folders(folder)
    tables = {part: find_label_file(path) for part, path in parts.items()}
    if tables.get("train"):
        return list_label_files(str(folder), {part: path for part, path in tables.items() if path}, findings)
    return _list_class_folders(folder, parts, findings)


def _part_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders whose names mean a part."""
    parts: dict[str, Path] = {}
    for path in visible_folders(folder):
        part = part_of(path.name)
        if part is not None and part in parts:
            raise DataError(
                f"{folder} must have one {part} part, but has the folders {parts[part].name} and {path.name}. Merge or "
                "remove one."
            )
        if part is not None:
            parts[part] = path
    return parts


def _list_class_folders(
    folder: Path, parts: Mapping[str, Path], findings: DataFindings
) -> tuple[tuple[str, ...], dict[str, Listing]]:
    """Class folders, either below `train` or, if there is no such folder, beside the other parts."""
    beside = [path for path in visible_folders(folder) if path not in parts.values()]
    training = parts.get("train", folder)
    if training is not folder and not visible_folders(training):
        raise DataError(
            f"{training} must contain one sub-folder per class, because its name means the training part, but has "
            "none. "
            + ("If it is a class, rename it." if beside else "Put the images of each class into a separate folder.")
        )
    names, listing = list_class_folders(
        training, findings, leave_out=frozenset(parts.values()) if training is folder else frozenset()
    )
    if training is not folder:
        count_hidden(folder, findings)
        for path in beside:
            findings.skip("a folder beside the parts", str(path))
    found: dict[str, Listing] = {"train": listing}
    for part, path in parts.items():
        if part == "train":
            continue
        if visible_folders(path):
            found[part] = list_class_folders(path, findings, class_names=names)[1]
            continue
        images = loose_images(path)
        findings.warn(
            "unused-part",
            f"{path} is not used: its name means the {part} part, but its {len(images)} images are not in class "
            f"folders, so that their classes are unknown",
        )
        if images:
            findings.skip(f"in {path.name}, without a class", str(images[0]), count=len(images))
    return names, found


def _check_classes(source: Source) -> None:
    names = source.class_names
    if len(names) < 2:
        raise DataError(
            f"{source.where} must have at least 2 classes, but has only {few(names)}. Add the images of another class."
        )
    counts = Counter(source.train.labels)
    for number, name in enumerate(names):
        if counts[number] < MIN_IMAGES_PER_CLASS:
            raise DataError(
                f"every class of {source.where} must have at least {MIN_IMAGES_PER_CLASS} images, to be split "
                f"into parts, but {name!r} has {counts[number]}. Add images or remove the class."
            )
    for group in similar_names(names):
        alike = few([repr(name) for name in group])
        source.findings.warn(
            "similar-classes", f"the classes {alike} differ only in case, spaces, hyphens or underscores"
        )
    for part, listing in source.parts.items():
        missing = [names[number] for number in sorted(set(range(len(names))) - set(listing.labels))]
        if missing:
            source.findings.warn("missing-class", f"the {part} part has no images of {few(missing)}")


def _check_headers(files: Sequence[Path], config: DataConfig) -> None:
    from PIL import Image

    from trainers.data.pixels import large_images, why_broken  # imports NumPy

    step = max(1, len(files) // _HEADERS_CHECKED)
    first: tuple[str, tuple[int, int]] | None = None
    reasons: dict[str, str] = {}
    for path in files[::step]:
        try:
            require_regular_file(path)
            with large_images(), Image.open(path) as image:
                size = image.size
        except (OSError, Image.DecompressionBombError) as error:  # OSError includes Pillow's UnidentifiedImageError
            reasons[str(path)] = why_broken(error, path)
            continue
        if config.resize != "same":
            continue
        first = first or (str(path), size)
        if size != first[1]:
            raise mixed_sizes(*first, str(path), size)
        if size[0] != size[1]:
            raise not_square(str(path), size)
    if reasons and not config.skip_broken:
        raise UnreadableError(reasons)
