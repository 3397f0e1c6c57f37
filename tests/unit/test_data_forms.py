"""Forms of data sets: what is read, what is left out and counted, and what is refused."""

import itertools
import json
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.unit.test_data import config, encoded, make_folder, picture, problem
from trainers.data.describing import describe_data
from trainers.data.images import load_images, load_test_images
from trainers.data.listing import Item, UnreadableError
from trainers.data.pixels import FORMAT_SCALES, decode
from trainers.data.report import DataReport
from trainers.data.sources import list_source


def report(source: Path, **fields: Any) -> DataReport:
    return describe_data(config(source, **fields)).report


def skipped(source: Path, **fields: Any) -> dict[str, int]:
    return {one.reason: one.count for one in report(source, **fields).skipped}


def kinds_of_warnings(source: Path, **fields: Any) -> list[str]:
    return [warning.kind for warning in report(source, **fields).warnings]


def write_parquet(path: Path, labels: pa.Array, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(picture(7 * number % 256)), "path": None} for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return path


# --- files ---


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    make_folder(tmp_path / "pets")
    more = make_folder(tmp_path / "more", classes=("cat",))
    (tmp_path / "pets" / "cat" / "more").symlink_to(more / "cat")
    (tmp_path / "pets" / "cat" / "again").symlink_to(more / "cat")
    (tmp_path / "pets" / "dog" / "loop").symlink_to(tmp_path / "pets" / "dog")
    (tmp_path / "pets" / "dog" / "same.png").symlink_to(tmp_path / "pets" / "dog" / "000.png")
    (tmp_path / "pets" / "dog" / "self.png").symlink_to(tmp_path / "pets" / "dog" / "self.png")
    (tmp_path / "pets" / "dog" / "up").symlink_to(tmp_path)
    (tmp_path / "pets" / "here").symlink_to(".")
    (tmp_path / "pets" / "gone").symlink_to("/not-mounted")
    found = report(tmp_path / "pets")
    assert {name: sum(part.per_class[name] for part in found.parts.values()) for name in ("cat", "dog")} == {
        "cat": 20,
        "dog": 10,
    }
    assert {one.reason: one.count for one in found.skipped} == {
        "a link to a folder that was already read": 1,
        "a link to a folder above it": 3,
        "a link to a file that was already read": 1,
        "a link that leads nowhere": 2,
    }


def test_every_left_out_file_is_counted_with_its_reason(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "@eaDir" / "cat").mkdir(parents=True)
    picture(1).save(tmp_path / "@eaDir" / "cat" / "thumb.png")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"")
    picture(1).save(tmp_path / "loose.png")
    assert skipped(tmp_path) == {
        "not an image (.txt)": 1,
        "hidden, or left behind by a system": 3,
        "not in a class folder": 1,
    }


@pytest.mark.parametrize("form", ["parts", "table", "parquet"])
def test_hidden_entries_beside_the_images_are_counted(tmp_path: Path, form: str) -> None:
    if form == "parts":
        make_folder(tmp_path / "train")
    elif form == "parquet":
        write_parquet(tmp_path / "train.parquet", pa.array([0, 1] * 10))
    else:
        for number in range(20):
            picture(number).save(tmp_path / f"{number}.png")
        rows = [f"{number}.png,{number % 2}" for number in range(20)]
        (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "train" / "._000.png").write_bytes(b"")
    assert skipped(tmp_path) == {"hidden, or left behind by a system": 2}


def test_broken_images_are_listed_together_or_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path, count=12)
    broken = [tmp_path / "cat" / "001.png", tmp_path / "dog" / "002.png", tmp_path / "dog" / "003.png"]
    for path in broken:
        path.write_bytes(b"no image")
    message = problem(tmp_path)
    assert all(str(path) in message for path in broken)
    assert "data.skip_broken: true" in message
    assert len(message.splitlines()) == 1 + len(broken)
    with pytest.raises(UnreadableError) as caught:
        report(tmp_path)
    assert "leave them out with `--skip-broken`:" in str(caught.value.with_remedy("`--skip-broken`"))
    assert skipped(tmp_path, skip_broken=True) == {"broken, as data.skip_broken allows": 3}
    found = report(tmp_path, skip_broken=True)
    assert found.num_images == 21
    assert found.lines()[1] == "left out: 3 broken, as data.skip_broken allows"


def test_broken_images_are_named_although_the_test_part_has_another_problem(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", count=4)
    (tmp_path / "train" / "cat" / "001.png").write_bytes(b"no image")
    (tmp_path / "train" / "dog" / "001.png").write_bytes(b"no image")
    picture(1, size=(9, 9)).save(tmp_path / "test" / "dog" / "000.png")
    assert "2 images must be readable by Pillow" in problem(tmp_path)


# --- parts ---


def test_a_validation_part_of_the_user_is_the_validation_part(tmp_path: Path) -> None:
    make_folder(tmp_path / "Training", count=10)
    make_folder(tmp_path / "dev", count=3)
    data = load_images(config(tmp_path))
    assert (len(data.train), len(data.validation)) == (16, 6)  # a fifth of the training part is held out for the test
    limited = load_images(config(tmp_path, max_images=13))
    assert (len(limited.train), len(limited.validation)) == (10, 3)


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        make_folder(tmp_path / name)
    assert "one validation part, but has the folders val and valid" in problem(tmp_path)


def test_copies_in_another_part_are_counted_and_can_be_dropped(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10)
    make_folder(tmp_path / "test", count=4)
    assert "leak" in kinds_of_warnings(tmp_path)
    assert "8 of the 8 test images" in " ".join(one.message for one in report(tmp_path).warnings)
    cleaned = load_images(config(tmp_path, duplicates="drop"))
    test = {image.numpy().tobytes() for image in load_test_images(config(tmp_path, duplicates="drop")).images}
    assert not test & {image.numpy().tobytes() for image in cleaned.train.images}
    (left_out,) = cleaned.findings.skipped.values()
    assert left_out.count == 16 - len(cleaned.train)


def test_the_advice_on_copies_depends_on_whether_they_are_dropped(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", count=10)
    make_folder(tmp_path / "val", count=4)
    make_folder(tmp_path / "test", count=3)
    (kept,) = [one.message for one in report(tmp_path).warnings if "test images" in one.message]
    assert "`data.duplicates: drop` leaves the copies out" in kept
    dropped = [one.message for one in report(tmp_path, duplicates="drop").warnings if one.kind == "leak"]
    assert len(dropped) == 1  # the test images are still in the validation part
    assert "6 of the 6 test images" in dropped[0]
    assert "remove them from one of the parts" in dropped[0]


def test_a_picture_in_two_classes_is_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path)
    picture(3).save(tmp_path / "dog" / "extra.png")
    assert "two-classes" in kinds_of_warnings(tmp_path)


def test_classes_that_differ_by_case_are_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("cat", "Cat"))
    assert "similar-classes" in kinds_of_warnings(tmp_path)


# --- tables of labels ---


@pytest.mark.parametrize("form", ["labels.csv", "metadata.jsonl"])
def test_a_table_gives_labels_and_parts(tmp_path: Path, form: str) -> None:
    rows = [
        {"file_name": f"{number}.png", "label": "ab"[number % 2], "split": "test" if number < 6 else "train"}
        for number in range(30)
    ]
    rows.append({"file_name": "30.png", "label": "", "split": "train"})
    for number in range(32):
        picture(number).save(tmp_path / f"{number}.png")
    if form.endswith("csv"):
        lines = [";".join(rows[0]), *(";".join(row.values()) for row in rows)]
        (tmp_path / form).write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    else:
        (tmp_path / form).write_text("\n".join(json.dumps(row) for row in rows))
    found = report(tmp_path)
    assert found.classes == ["a", "b"]
    assert (found.parts["test"].num_images, found.num_images) == (6, 30)
    assert {one.reason: one.count for one in found.skipped} == {"no label": 1, "not in the table of labels": 1}


def test_files_that_a_table_names_must_exist(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file_name,label\na.png,x\nb.png,y\n")
    assert "2 do not: a.png, b.png" in problem(tmp_path)


def test_a_table_may_be_written_on_windows_and_name_its_column_as_cifar_does(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for number in range(20):
        picture(number).save(tmp_path / "img" / f"{number}.png")
    rows = [f"img\\{number}.png,{number % 2}" for number in range(20)]
    (tmp_path / "labels.csv").write_text("\r\n".join(["file_name,fine_label", *rows]))
    assert report(tmp_path).num_images == 20


def test_a_file_with_two_labels_is_refused(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file_name,label\na.png,x\na.png,y\n")
    assert "several labels per image is not supported" in problem(tmp_path)


def test_tables_may_be_named_after_parts(tmp_path: Path) -> None:
    for number in range(30):
        picture(number).save(tmp_path / f"{number}.png")
    for name, numbers in (("Train.csv", range(18)), ("val.csv", range(18, 24)), ("test.csv", range(24, 30))):
        lines = ["image,class", *(f"{number}.png,{number % 2}" for number in numbers)]
        (tmp_path / name).write_text("\n".join(lines))
    assert [part.num_images for part in report(tmp_path).parts.values()] == [18, 6, 6]


def test_whole_numbers_in_a_table_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = ["007", "010", "-1"]
    for number in range(18):
        picture(number).save(tmp_path / f"{number}.png")
    lines = ["file_name,label", *(f"{number}.png,{rows[number % 3]}" for number in range(18))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert report(tmp_path).classes == ["007", "010"]
    assert skipped(tmp_path) == {"no label": 6}


def test_numbers_to_predict_in_a_table_are_refused(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file_name,label\na.png,0.53\na.png,2\n")
    assert "regression is not supported" in problem(tmp_path)


# --- parquet ---


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([False, True] * 10), ["False", "True"]),
        (pa.array([0.0, 10.0, 2.0, 2.0] * 5), ["0", "2", "10"]),
        (pa.array(["no", "yes"] * 10).dictionary_encode(), ["no", "yes"]),
        (pa.array(["no", "yes"] * 10, pa.string_view()), ["no", "yes"]),
        (pa.array(["no", "yes"] * 10, pa.large_string()), ["no", "yes"]),
    ],
    ids=["truth values", "whole floats", "dictionary", "string view", "large strings"],
)
def test_labels_of_every_type(tmp_path: Path, labels: pa.Array, names: list[str]) -> None:
    assert report(write_parquet(tmp_path / "a.parquet", labels)).classes == names


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([0, 1] * 10 + [-1, None]))
    assert skipped(path) == {"no label": 2}


def test_a_column_gives_the_parts(tmp_path: Path) -> None:
    splits = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    path = write_parquet(tmp_path / "a.parquet", pa.array([0, 1] * 10), split=splits)
    assert {name: part.num_images for name, part in report(path).parts.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }


def test_shards_must_be_there_once(tmp_path: Path) -> None:
    labels = pa.array([0, 1] * 5)
    for number in (0, 2):
        write_parquet(tmp_path / f"train-{number:05d}-of-00003.parquet", labels)
    assert "missing: 00001-of-00003" in problem(tmp_path)
    for name in ("train-00001-of-00003-0a1b.parquet", "train-00001-of-00003-2c3d.parquet"):
        write_parquet(tmp_path / name, labels)
    assert "must exist once" in problem(tmp_path)


@pytest.mark.parametrize("name", ["train-00001-of-00002.parquet", "labels.csv", "cat/a.png"])
def test_a_clone_without_its_large_files_is_told_how_to_get_them(name: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        write_parquet(tmp_path / "train-00000-of-00002.parquet", pa.array([0, 1] * 5))
    else:
        make_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 23940850\n")
    message = problem(tmp_path)
    assert name.rpartition("/")[2] in message
    assert "Git LFS pointer" in message
    assert "git lfs pull" in message


def test_files_beside_the_parts_are_left_out_and_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", pa.array([0, 1] * 10))
    write_parquet(tmp_path / "extra.parquet", pa.array([0, 1] * 10))
    assert report(tmp_path).num_images == 20
    assert skipped(tmp_path) == {"a parquet file that is no part": 1}


def test_a_column_called_part_need_not_mean_parts(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "plants.parquet", pa.array([0, 1] * 10), part=["leaf", "root"] * 10)
    assert report(path).num_images == 20


def test_two_data_sets_in_a_clone_are_refused(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write_parquet(tmp_path / name / "train-00000-of-00001.parquet", pa.array([0, 1] * 5))
    assert "lies in several folders: large, small" in problem(tmp_path)
    assert load_images(config(tmp_path / "small")).name == "small"


def test_further_frames_are_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path)
    picture(1).save(tmp_path / "cat" / "film.gif", save_all=True, append_images=[picture(90)])
    assert "frames" in kinds_of_warnings(tmp_path, split_seed=1) + kinds_of_warnings(tmp_path, split_seed=2)


def test_a_name_that_is_no_utf8_can_be_shown(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "\udcff.txt").write_bytes(b"")
    assert json.dumps(report(tmp_path).model_dump(mode="json")).isascii()
    assert "\\udcff.txt" in report(tmp_path).skipped[0].examples[0]


# --- pixels ---


def decoded(image: Image.Image, background: str = "white") -> Image.Image:
    return decode(Item("it", image), scales=FORMAT_SCALES, background=background).image


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_transparent_pixels_get_the_background(mode: str) -> None:
    image = Image.new("L", (2, 1), 10).convert(mode.removesuffix("A"))  # `P` for `PA`
    image.putalpha(Image.frombytes("L", (2, 1), bytes([255, 0])))
    assert image.mode == mode
    assert np.asarray(decoded(image).convert("L")).tolist() == [[10, 255]]
    assert np.asarray(decoded(image, "black").convert("L")).tolist() == [[10, 0]]
    assert np.asarray(decoded(image, "#ff0000").convert("RGB"))[0, 1].tolist() == [255, 0, 0]


def test_colours_go_through_a_profile_to_srgb() -> None:
    """The profile is sRGB with red and blue exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "sBGR".encode("utf-16-be"))
    exchanged = renamed.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    image = Image.new("RGB", (1, 1), (200, 30, 60))
    image.info["icc_profile"] = exchanged
    assert np.asarray(decoded(image))[0, 0].tolist() == pytest.approx([60, 30, 200], abs=2)


def test_a_profile_of_srgb_or_one_that_does_not_fit_changes_nothing() -> None:
    image = Image.new("RGB", (1, 1), (200, 30, 30))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    image.info["icc_profile"] = lab.tobytes()
    assert np.asarray(decoded(image)).tolist() == [[[200, 30, 30]]]  # a profile that does not fit is ignored
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.asarray(decoded(image)).tolist() == [[[200, 30, 30]]]
    image.info["icc_profile"] = b"damaged"
    assert np.asarray(decoded(image)).tolist() == [[[200, 30, 30]]]


def deep_png(pixels: NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16 bits per channel; 2 is RGB, 4 grey with alpha, 6 RGB with alpha. Pillow writes none of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(pixels: NDArray[np.uint16]) -> bytes:
    """An uncompressed TIFF of 16 bits per channel, RGB."""
    height, width, channels = pixels.shape
    content = pixels.astype("<u2").tobytes()
    bits = 8 + len(content)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(content)),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = bits + 2 * channels
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + content
        + struct.pack(f"<{channels}H", *[16] * channels)
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize("form", ["png", "alpha", "grey alpha", "tiff"])
def test_sixteen_bits_per_colour_become_eight(tmp_path: Path, form: str) -> None:
    values = np.array([51, 102, 204], np.uint16) * 257
    for name, share in (("dark", 0.5), ("light", 1.0)):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = np.tile((values * share).astype(np.uint16), (8, 8, 1))
            opaque = np.concatenate([pixels, np.full((8, 8, 1), 65535, np.uint16)], axis=2)
            if form == "tiff":
                (tmp_path / name / f"{number}.tiff").write_bytes(deep_tiff(pixels))
            else:
                kind, channels = {"png": (2, [0, 1, 2]), "alpha": (6, [0, 1, 2, 3]), "grey alpha": (4, [0, 3])}[form]
                (tmp_path / name / f"{number}.png").write_bytes(deep_png(opaque[:, :, channels], kind))
    found = report(tmp_path)
    expected = [51 * 0.75] if form.startswith("grey") else [51 * 0.75, 102 * 0.75, 204 * 0.75]
    assert [255 * value for value in found.mean] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_colour_of_twelve_bits_in_sixteen_is_refused_rather_than_black(tmp_path: Path, form: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = np.full((8, 8, 3), 3000 + 50 * number, np.uint16)
            (tmp_path / name / f"{number}.{form}").write_bytes(
                deep_tiff(pixels) if form == "tiff" else deep_png(pixels, 2)
            )
    assert "must have a known range, but its mode RGB (16-bit colour)" in problem(tmp_path)


def ink_profile() -> bytes:
    """A CMYK profile of inks that are all grey: cyan, magenta and yellow take a fifth of the lightness each."""

    def lightness(cyan: int, magenta: int, yellow: int, black: int) -> float:
        return (1 - black) * (1 - 0.2 * (cyan + magenta + yellow))

    corners = [lightness(*inks) for inks in itertools.product((0, 1), repeat=4)]
    unit = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 16]
    curve = bytes(range(256))
    table = b"".join(bytes([round(255 * value), 128, 128]) for value in corners)
    white = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"A2B0": b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *unit) + curve * 4 + table + curve * 3,
    }
    place = 128 + 4 + 12 * len(tags)
    index, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        padded = tag + bytes(-len(tag) % 4)
        index += name + struct.pack(">II", place + len(content), len(tag))
        content += padded
    head = struct.pack(">I4sI4s4s4s", place + len(content), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + index + content


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
@pytest.mark.parametrize(
    ("ink", "grey"), [((0, 0, 0, 0), 255), ((255, 0, 0, 0), 198), ((0, 255, 255, 0), 145), ((0, 0, 0, 255), 0)]
)
def test_ink_goes_through_its_profile(form: str, ink: tuple[int, int, int, int], grey: int) -> None:
    """A lightness of 80 is 198 in sRGB, and one of 60 is 145."""
    image, buffer = Image.new("CMYK", (16, 16), ink), BytesIO()
    image.save(buffer, form, icc_profile=ink_profile(), **({"quality": 95} if form == "JPEG" else {}))
    found = decode(Item("it", buffer.getvalue()), scales=FORMAT_SCALES)
    assert found.mode == "CMYK"
    assert np.asarray(found.image)[8, 8].tolist() == pytest.approx([grey] * 3, abs=2)


@pytest.mark.parametrize(
    ("dtype", "top", "white", "warns"),
    [
        ("uint16", 4000, 4095, True),
        ("uint16", 60000, 65535, False),
        ("int32", 250, 255, True),
        ("float32", 0.9, 1, False),
    ],
)
def test_deep_pixels_are_scaled_by_the_range_of_the_whole_set(
    tmp_path: Path, dtype: str, top: float, white: float, warns: bool
) -> None:
    for name, share in (("dark", 0.1), ("light", 1.0)):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = np.full((8, 8), top * share * (1 - number / 50)).astype(dtype)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.tiff")
    found = report(tmp_path)
    assert found.channels == 1
    assert found.mean[0] == pytest.approx(0.5 * 1.1 * 0.91 * top / white, abs=0.03)
    assert ("depth" in kinds_of_warnings(tmp_path)) == warns
    assert list(load_images(config(tmp_path)).scales.values()) == [white]


def test_pixels_without_a_known_range_are_refused_with_file_and_mode(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(np.full((8, 8), -5.0 * number, np.float32)).save(tmp_path / name / f"{number}.tiff")
    message = problem(tmp_path)
    assert ".tiff must have a known range, but its mode F" in message


def test_listing_decodes_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "000.png").write_bytes(b"broken")
    assert len(list_source(config(tmp_path)).train.labels) == 20
