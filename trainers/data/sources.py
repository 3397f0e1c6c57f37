"""Data sources: digits, class folders and parquet files. Lists labelled images without decoding them or using torch."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from search_spaces.base import ImageTask
from trainers.config import NOISE, DataConfig

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MIN_IMAGES_PER_CLASS = 3
DIGITS = "digits"
BUILT_IN = (DIGITS, NOISE)
"""Values of `data.source` that are not paths."""
_HEADERS_CHECKED = 1000
_NOISE_CLASSES = 10


class DataError(ValueError):
    """The data cannot be used. The message names the place, the requirement, the problem and a remedy."""


class Item(NamedTuple):
    """One image before decoding."""

    name: str
    """File, or row of a file, for messages."""
    content: Any
    """A file's path, an encoded file's bytes, grey pixels (H, W), uint8, or a Pillow image."""


class Listing(Protocol):
    """The labelled images of one part of a source."""

    @property
    def where(self) -> str:
        """The source, for messages."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> tuple[int, ...]:
        """Class of each image, as an index into `class_names`."""
        ...

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """The images at ascending `indices`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DigitsListing:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, one channel."""

    where: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    pixels: Any

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Pixels scaled to 0..255."""
        for index in indices:
            yield Item(f"digit {index}", self.pixels[index])


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """A folder with one sub-folder per class."""

    where: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    files: tuple[Path, ...]

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Paths of image files."""
        for index in indices:
            yield Item(str(self.files[index]), self.files[index])


@dataclass(frozen=True, kw_only=True)
class ParquetListing:
    """Parquet files in the Hugging Face image/label form."""

    where: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    files: tuple[Path, ...]
    image_column: str

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Encoded images, read batch by batch.

        Raises:
            DataError: A row has no bytes.
        """
        import pyarrow.parquet as pq

        wanted = iter(indices)
        index = next(wanted, None)
        offset = 0
        for path in self.files:
            first_of_file = offset
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=[self.image_column]):
                column = batch.column(0)
                while index is not None and index < offset + len(batch):
                    value = column[index - offset].as_py()
                    content = value.get("bytes") if isinstance(value, dict) else value
                    name = f"row {index - first_of_file} of {path}"
                    if not content:
                        raise DataError(f"{name} must contain the bytes of an image, but has none. Remove the row.")
                    yield Item(name, content)
                    index = next(wanted, None)
                offset += len(batch)


def list_source(config: DataConfig) -> tuple[Listing, Listing | None]:
    """The images that trials may use, and the source's own test part if it has one.

    Raises:
        DataError: The source is missing, empty or of an unknown form, or has too few classes or images.
    """
    if config.source == DIGITS:
        return _list_digits(), None
    path = Path(config.source).expanduser()
    if not path.exists():
        raise DataError(
            f"data.source must be {DIGITS!r}, {NOISE!r}, a folder or a parquet file, but {path} does not exist "
            f"(working directory: {Path.cwd()}). Correct the path."
        )
    main: Listing
    test: Listing | None
    if path.is_file():
        main, test = _list_file(path), None
    elif parquet := _parquet_files(path, "train"):
        main = _list_parquet(str(path), parquet)
        held_out = _parquet_files(path, "test")
        test = _list_parquet(str(path), held_out, class_names=main.class_names) if held_out else None
    elif _holds_class_folders(path / "train"):
        main = _list_folder(path / "train")
        own_test = _holds_class_folders(path / "test")
        test = _list_folder(path / "test", class_names=main.class_names) if own_test else None
    else:
        main, test = _list_folder(path), None
    _check_classes(main)
    return main, test


def check_source(config: DataConfig) -> str | None:
    """Check the data without decoding images, in well under a second; returns the problem or `None`.

    The headers of up to 1,000 image files are read, which reveals invalid files and mixed sizes.
    """
    if config.source in BUILT_IN:
        return None
    try:
        listing, _ = list_source(config)
        if isinstance(listing, FolderListing):
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


def unreadable(name: str, error: Exception) -> DataError:
    """The error for a file that is not an image."""
    return DataError(f"{name} must be an image that Pillow can read, but: {error}. Replace or remove it.")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _list_digits() -> DigitsListing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    return DigitsListing(
        where="scikit-learn's digits",
        class_names=tuple(str(name) for name in digits.target_names),
        labels=tuple(int(label) for label in digits.target),
        pixels=pixels,
    )


def _list_file(path: Path) -> ParquetListing:
    if path.suffix != ".parquet":
        raise DataError(f"data.source must be a folder or a .parquet file, but {path} is another kind of file.")
    return _list_parquet(str(path), (path,))


def _parquet_files(folder: Path, part: str) -> tuple[Path, ...]:
    """`train.parquet`, or shards named as on the Hugging Face hub: `train-00000-of-00002.parquet`."""
    whole = folder / f"{part}.parquet"
    return (whole,) if whole.is_file() else tuple(sorted(folder.glob(f"{part}-*.parquet")))


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_class_folders(folder: Path) -> bool:
    return folder.is_dir() and bool(_class_folders(folder))


def _list_folder(folder: Path, class_names: tuple[str, ...] | None = None) -> FolderListing:
    found = _class_folders(folder)
    if not found:
        raise DataError(
            f"{folder} must contain one sub-folder per class, or train.parquet, but it has neither. "
            "Put the images of each class into a separate folder."
        )
    names = class_names or tuple(path.name for path in found)
    files: list[Path] = []
    labels: list[int] = []
    for path in found:
        if path.name not in names:
            raise DataError(
                f"{path} must be one of the training classes {_few(names)}, but it is not. Rename or move it."
            )
        images = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        files += images
        labels += [names.index(path.name)] * len(images)
    if not files:
        raise DataError(
            f"{folder} must contain images ({', '.join(sorted(IMAGE_SUFFIXES))}) in its sub-folders {_few(names)}, "
            "but there are none. Add images or choose another folder."
        )
    return FolderListing(where=str(folder), class_names=names, labels=tuple(labels), files=tuple(files))


def _list_parquet(where: str, files: tuple[Path, ...], class_names: tuple[str, ...] | None = None) -> ParquetListing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values: list[Any] = []
    declared: tuple[str, ...] | None = None
    image = ""
    for path in files:
        try:
            schema = pq.read_schema(path)
            image, label = _columns(path, schema)
            values += pq.read_table(path, columns=[label]).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} must be a parquet file, but: {error}. Download or write it again.") from error
        declared = declared or _declared_names(schema, label)
    if not values:
        raise DataError(f"{where} must contain images, but its parquet files have no rows. Use other files.")
    if None in values:
        row = values.index(None)
        raise DataError(f"every row of {where} must have a label, but row {row} has none. Remove the row.")
    names = class_names or declared or tuple(str(value) for value in sorted(set(values)))
    labels = _number_labels(where, values, names=names, declared=declared)
    return ParquetListing(where=where, class_names=names, labels=labels, files=files, image_column=image)


def _number_labels(
    where: str, values: Sequence[int | str], *, names: tuple[str, ...], declared: tuple[str, ...] | None
) -> tuple[int, ...]:
    """Labels as indices into `names`; an integer is an index into the `declared` names, if there are any."""
    numbers = {name: number for number, name in enumerate(names)}
    labels = []
    for row, value in enumerate(values):
        name = str(value)
        if declared and isinstance(value, int):
            name = declared[value] if 0 <= value < len(declared) else name
        if name not in numbers:
            raise DataError(
                f"each label of {where} must be one of the {len(names)} classes {_few(names)}, but row {row} has "
                f"{value!r}. Remove or relabel the row."
            )
        labels.append(numbers[name])
    return tuple(labels)


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """Names of the image column and the label column."""
    import pyarrow as pa

    def holds_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = [field.name for field in schema if holds_image(field.type)]
    whole = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_string(field.type)]
    declared = [name for name, kind in _features(schema).items() if kind.get("_type") == "ClassLabel" and name in whole]
    usual = [name for name in ("label", "labels", "fine_label", "class", "target") if name in whole]
    label = next(iter([*usual, *declared, *(whole if len(whole) == 1 else ())]), None)
    if not images or label is None:
        missing = (
            "an image column (a struct with `bytes`)" if not images else "a label column (integers, named `label`)"
        )
        raise DataError(f"{path} must have {missing}, but its columns are {_few(schema.names)}. Rename or add it.")
    return images[0], label


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's description of the columns; empty if there is none."""
    raw = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(raw).get("info", {}).get("features", {}) if raw else {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def _declared_names(schema: Any, label: str) -> tuple[str, ...] | None:
    names = _features(schema).get(label, {}).get("names")
    return tuple(names) if names else None


def _check_classes(listing: Listing) -> None:
    counts = Counter(listing.labels)
    names = listing.class_names
    if len(names) < 2:
        raise DataError(
            f"{listing.where} must have at least 2 classes, but has only {_few(names)}. Add the images of another "
            "class."
        )
    for number, name in enumerate(names):
        if counts[number] < MIN_IMAGES_PER_CLASS:
            raise DataError(
                f"every class of {listing.where} must have at least {MIN_IMAGES_PER_CLASS} images, to be split "
                f"into parts, but {name!r} has {counts[number]}. Add images or remove the class."
            )


def _check_headers(files: Sequence[Path], config: DataConfig) -> None:
    from PIL import Image

    step = max(1, len(files) // _HEADERS_CHECKED)
    first: tuple[str, tuple[int, int]] | None = None
    for path in files[::step]:
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:  # includes Pillow's UnidentifiedImageError
            raise unreadable(str(path), error) from error
        if config.resize != "same":
            continue
        first = first or (str(path), size)
        if size != first[1]:
            raise mixed_sizes(*first, str(path), size)
        if size[0] != size[1]:
            raise not_square(str(path), size)


def _few(names: Sequence[str]) -> str:
    """Up to eight names, and the number of names if there are more."""
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"
