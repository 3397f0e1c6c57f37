"""Image loading: every source, the split, and messages about unusable data."""

import datetime
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers.config import DataConfig
from trainers.data.images import channel_statistics, load_images, load_test_images
from trainers.data.listing import DataError
from trainers.data.sources import check_source, list_source
from trainers.data.splits import split_indices, stratified_sample

CIFAR10 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10"


def picture(value: int, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value))


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10, **kind: Any) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index, **kind).save(root / name / f"{index:03d}.png")
    return root


def make_parquet(
    path: Path,
    *,
    count: int = 20,
    labels: list[Any] | None = None,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    row_group_size: int = 7,
) -> Path:
    labels = labels if labels is not None else [index % 2 for index in range(count)]
    images = [{"bytes": encoded(picture(10 * index % 256)), "path": None} for index in range(len(labels))]
    table = pa.table({columns[0]: images, columns[1]: labels})
    features: dict[str, Any] = {columns[0]: {"_type": "Image"}}
    if names:
        features[columns[1]] = {"_type": "ClassLabel", "names": names}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def config(source: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(source=str(source), image_size=8, **fields)


def problem(source: Path | str, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_images(config(source, **fields))
    return str(caught.value)


def test_digits_are_grey_and_split_into_three() -> None:
    data = load_images(DataConfig(source="digits"))
    test = load_test_images(DataConfig(source="digits"))
    assert (len(data.train), len(data.validation), len(test)) == (1078, 360, 359)
    assert data.train.images.shape == (1078, 1, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.class_names == tuple("0123456789")
    assert int(data.train.images.max()) == 255
    shares = torch.bincount(data.validation.labels) / len(data.validation)
    assert shares.min() > 0.09


def test_the_test_part_shares_no_image_with_the_search() -> None:
    labels = [index % 5 for index in range(400)]
    for limit in (None, 100):
        train, validation, test = split_indices(labels, config("digits", max_images=limit), own_test=False)
        assert len(set(train) | set(validation) | set(test)) == len(train) + len(validation) + len(test)
        assert len(test) == 80
        assert len(train) + len(validation) == (limit or 320)
        assert all(np.all(np.diff(part) > 0) for part in (train, validation, test))


def test_the_split_depends_on_its_seed_only() -> None:
    labels = [index % 5 for index in range(400)]
    first, again, other = (
        split_indices(labels, config("digits", split_seed=seed), own_test=False)[0].tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("sizes", [[40, 40, 40], [2, 2, 2, 2], [7, 150, 31, 2], [13] * 11, [3, 3, 5, 5, 5]], ids=str)
def test_a_sample_is_the_one_that_scikit_learn_draws(sizes: list[int]) -> None:
    """So that the parts of a study are those of every earlier version."""
    from sklearn.model_selection import train_test_split

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for count in {len(sizes), len(labels) // 2, len(labels) - len(sizes)}:
        for seed in range(5):
            _, expected = train_test_split(np.arange(len(labels)), test_size=count, random_state=seed, stratify=labels)
            assert np.flatnonzero(stratified_sample(labels, count, seed=seed)).tolist() == sorted(expected.tolist())


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    listed, expected = list_source(DataConfig(source="digits")), load_digits()
    assert listed.train.labels == tuple(expected.target)
    assert listed.class_names == tuple(map(str, expected.target_names))
    pixels = np.stack([item.content for item in listed.train.items(range(len(expected.images)))])
    assert np.array_equal(pixels, (expected.images * (255 / 16)).round())


def test_digits_without_scikit_learn_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match="Install scikit-learn, or use another source"):
        list_source(DataConfig(source="digits"))


def test_fractions_are_of_all_images() -> None:
    labels = [index % 4 for index in range(1000)]
    parts = split_indices(labels, config("digits", validation=0.3, test=0.1), own_test=False)
    assert [len(part) for part in parts] == [600, 300, 100]
    parts = split_indices(labels, config("digits", validation=0.3, test=0.1), own_test=True)
    assert [len(part) for part in parts] == [700, 300, 0]


def test_a_folder_per_class_is_read_with_its_names(tmp_path: Path) -> None:
    data = load_images(config(make_folder(tmp_path / "pets", count=20)))
    assert data.name == "pets"
    assert data.class_names == ("cat", "dog")
    assert data.task.in_channels == 3
    for part in (data.train, data.validation):
        red = part.images[:, 0, 0, 0].long()
        assert torch.equal(red >= 100, part.labels == 1)  # each picture kept its own label


def test_a_train_and_a_test_folder_are_kept_apart(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10, size=(8, 8))
    make_folder(tmp_path / "test", count=4)
    data = load_images(config(tmp_path))
    assert len(data.train) + len(data.validation) == 20
    assert len(load_test_images(config(tmp_path))) == 8


def test_a_test_folder_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", classes=("cat", "horse"))
    assert "must be one of the training classes cat, dog" in problem(tmp_path)


def test_a_folder_called_train_is_never_a_class(tmp_path: Path) -> None:
    message = problem(make_folder(tmp_path, classes=("bus", "train")))
    assert "its name means the training part" in message
    assert "If it is a class, rename it." in message


def test_other_files_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    assert load_images(config(tmp_path)).class_names == ("cat", "dog")


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    make_folder(tmp_path / "grey", mode="L")
    assert load_images(config(tmp_path / "grey")).task.in_channels == 1
    make_folder(tmp_path / "mixed", mode="L")
    for index in range(10):
        picture(1).save(tmp_path / "mixed" / "cat" / f"{index:03d}.png")
    data = load_images(config(tmp_path / "mixed"))
    assert data.task.in_channels == 3
    dog = data.train.images[data.train.labels == 1][0]
    assert torch.equal(dog[0], dog[1])


@pytest.mark.parametrize(("training", "channels"), [("L", 1), ("RGB", 3)])
def test_test_images_get_the_channels_of_the_others(tmp_path: Path, training: str, channels: int) -> None:
    make_folder(tmp_path / "train", mode=training)
    make_folder(tmp_path / "test", mode="L" if training == "RGB" else "RGB")
    assert load_test_images(config(tmp_path)).images.shape[1] == channels


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    make_folder(tmp_path, mode="L")
    for index in range(10):
        Image.fromarray(np.full((8, 8), 257 * 200, dtype=np.uint16)).save(tmp_path / "dog" / f"{index:03d}.png")
    data = load_images(config(tmp_path))
    assert set(data.train.images[data.train.labels == 1].flatten().tolist()) == {200}


def test_a_photo_is_turned_as_its_camera_noted(tmp_path: Path) -> None:
    make_folder(tmp_path)
    image = Image.new("RGB", (8, 8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show it
    for index in range(10):
        image.save(tmp_path / "dog" / f"{index:03d}.png", exif=exif)
    data = load_images(config(tmp_path))
    dog = data.train.images[data.train.labels == 1][0]
    assert dog[0].nonzero().tolist() == [[0, 7]]


def test_crop_cuts_the_centre_and_stretch_keeps_the_sides(tmp_path: Path) -> None:
    make_folder(tmp_path)
    wide = Image.new("RGB", (24, 8))
    wide.paste((255, 255, 255), (0, 0, 8, 8))
    for index in range(10):
        wide.save(tmp_path / "dog" / f"{index:03d}.png")
    cropped = load_images(config(tmp_path, resize="crop"))
    stretched = load_images(config(tmp_path, resize="stretch"))
    assert cropped.train.images[cropped.train.labels == 1].max() == 0
    assert stretched.train.images[stretched.train.labels == 1].max() > 200


@pytest.mark.parametrize("names", [None, ["ant", "bee"]])
def test_a_parquet_file_is_read_with_its_labels(tmp_path: Path, names: list[str] | None) -> None:
    data = load_images(config(make_parquet(tmp_path / "insects.parquet", names=names)))
    assert data.name == "insects"
    assert data.class_names == (tuple(names) if names else ("0", "1"))
    for part in (data.train, data.validation):
        assert torch.equal((part.images[:, 0, 0, 0] // 10) % 2, part.labels.to(torch.uint8))


def test_parquet_parts_and_shards_are_read(tmp_path: Path) -> None:
    make_parquet(tmp_path / "train-00000-of-00002.parquet", count=20)
    make_parquet(tmp_path / "train-00001-of-00002.parquet", count=20)
    make_parquet(tmp_path / "test.parquet", count=6)
    data = load_images(config(tmp_path))
    assert len(data.train) + len(data.validation) == 40
    assert len(load_test_images(config(tmp_path))) == 6


def test_parquet_labels_may_be_words(tmp_path: Path) -> None:
    make_parquet(tmp_path / "train.parquet", labels=["no", "yes"] * 10)
    make_parquet(tmp_path / "test.parquet", labels=["yes"] * 4)
    assert load_images(config(tmp_path)).class_names == ("no", "yes")
    assert load_test_images(config(tmp_path)).labels.tolist() == [1] * 4


def test_the_content_decides_the_digest(tmp_path: Path) -> None:
    first = make_folder(tmp_path / "first")
    second = make_folder(tmp_path / "second")
    assert load_images(config(first)).digest == load_images(config(second)).digest
    third = make_folder(tmp_path / "third")
    for path in third.glob("*/*.png"):
        picture(77).save(path)
    assert load_images(config(third)).digest != load_images(config(first)).digest


def test_statistics_are_those_of_numpy() -> None:
    images = torch.randint(0, 256, (20, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.numpy() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert std == pytest.approx(scaled.std((0, 2, 3)))


def test_a_channel_without_variation_can_be_divided_by() -> None:
    assert channel_statistics(torch.full((4, 1, 2, 2), 9, dtype=torch.uint8))[1] == (1.0,)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs the shared CIFAR-10 files")
def test_a_subset_of_cifar10_is_stratified_and_quick() -> None:
    limits = config(CIFAR10, max_images=400, max_test_images=100)
    data, test = load_images(limits), load_test_images(limits)
    assert (len(data.train), len(data.validation), len(test)) == (320, 80, 100)
    assert data.class_names[0] == "airplane"
    assert torch.bincount(data.train.labels).tolist() == [32] * 10


# --- data that cannot be used ---------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = problem(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert check_source(config(tmp_path / "nowhere")) == message


def test_an_empty_folder_is_told_what_it_must_hold(tmp_path: Path) -> None:
    assert "one sub-folder per class" in problem(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "must contain images" in problem(tmp_path)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    message = problem(make_folder(tmp_path, classes=("cat",)))
    assert "at least 2 classes, but has only cat" in message
    assert check_source(config(tmp_path)) == message


def test_a_class_with_too_few_images_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_folder(tmp_path / "more", classes=())
    (tmp_path / "eel").mkdir()
    picture(1).save(tmp_path / "eel" / "a.png")
    assert "at least 3 images" in problem(tmp_path)
    assert "'eel' has 1" in problem(tmp_path)


@pytest.mark.parametrize("content", [b"not an image", b"", None], ids=["text", "empty", "torn"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    make_folder(tmp_path, count=6, size=(64, 64))
    victim = tmp_path / "dog" / "003.png"
    victim.write_bytes(victim.read_bytes()[:120] if content is None else content)
    with pytest.raises(DataError, match=r"dog/003\.png must be an image"):
        load_test_images(config(tmp_path))  # whichever part it falls into


def test_an_unreadable_row_is_named(tmp_path: Path) -> None:
    rows = [{"bytes": encoded(picture(1)), "path": None}] * 20
    rows[13] = {"bytes": b"torn", "path": None}
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 10}), tmp_path / "train.parquet", row_group_size=6)
    with pytest.raises(DataError, match=r"row 13 of .*train\.parquet must be an image"):
        load_test_images(config(tmp_path))


def test_mixed_sizes_are_named_with_the_way_out(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for index in range(5):
        picture(1, size=(9, 9)).save(tmp_path / "dog" / f"{index:03d}.png")
    for message in (problem(tmp_path), check_source(config(tmp_path)) or ""):
        assert "is 8 x 8 pixels" in message
        assert "is 9 x 9 pixels" in message
        assert "`resize: crop`" in message
    assert check_source(config(tmp_path, resize="crop")) is None


def test_same_does_not_squeeze_images_that_are_not_square(tmp_path: Path) -> None:
    assert "must be square" in problem(make_folder(tmp_path, size=(8, 6)))


def test_a_limit_below_the_number_of_classes_is_explained(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=tuple("abcdefgh"), count=5)
    assert "max_images" in problem(tmp_path, max_images=10)


def test_a_parquet_file_without_the_columns_lists_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train.parquet")
    assert "must have an image column (a struct with `bytes`), but its columns are text, label" in problem(tmp_path)
    make_parquet(tmp_path / "other.parquet", columns=("image", "picture_of"), labels=[datetime.date(2026, 1, 1)] * 4)
    assert "must have a label column" in problem(tmp_path / "other.parquet")


def test_regression_and_several_labels_are_refused_by_name(tmp_path: Path) -> None:
    assert "regression is not supported" in problem(make_parquet(tmp_path / "a.parquet", labels=[0.5] * 4))
    several = problem(make_parquet(tmp_path / "b.parquet", labels=[[0, 1]] * 4))
    assert "several labels per image is not supported" in several


def test_labels_outside_the_declared_classes_are_named(tmp_path: Path) -> None:
    labels = [0, 1] * 9 + [2, 1]
    message = problem(make_parquet(tmp_path / "x.parquet", labels=labels, names=["ant", "bee"]))
    assert "row 18 has 2" in message


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    assert "must be a parquet file" in problem(tmp_path / "a.parquet")
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert "another kind of file" in problem(tmp_path / "a.zip")


def test_listing_and_splitting_need_no_heavy_package(tmp_path: Path) -> None:
    make_folder(tmp_path)
    code = (
        "import sys\n"
        "from trainers.config import DataConfig\n"
        "from trainers.data.sources import check_source, list_source\n"
        "from trainers.data.splits import split_indices\n"
        f"assert check_source(DataConfig(source={str(tmp_path)!r})) is None\n"
        "digits = DataConfig(source='digits')\n"
        "split_indices(list_source(digits).train.labels, digits, own_test=False)\n"
        "print(*{'torch', 'sklearn', 'datasets', 'kornia'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
