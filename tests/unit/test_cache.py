"""The cache of decoded images: what is decoded when, how it is shared and bounded, and that no result depends on it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.test_data import config, encoded, make_folder, make_parquet, picture
from trainers.data import cache
from trainers.data.cache import evict
from trainers.data.cache_settings import CACHE_VARIABLE, GIB, use_cache, verified_cache, watch_decoding
from trainers.data.describing import describe_data
from trainers.data.images import ImageData, load_images, load_test_images
from trainers.data.listing import DataError
from trainers.data.mapping import is_mapped

PROCESS = """
import sys
from PIL import Image
from trainers.config import DataConfig
from trainers.data.images import load_images
opened, begin = [], Image.open
Image.open = lambda *given, **options: opened.append(1) or begin(*given, **options)
data = load_images(DataConfig(source=sys.argv[1], image_size=8))
print(data.digest, len(opened))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, "")  # restored afterwards
    use_cache(tmp_path / "cache", 1.0)
    return tmp_path / "cache"


@pytest.fixture
def num_opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one for each file or content that Pillow opens."""
    opened: list[Any] = []
    begin = Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **options: opened.append(given[0]) or begin(*given, **options))
    return opened


def load(source: Path, **fields: Any) -> ImageData:
    """Load as a new process would."""
    load_images.cache_clear()
    return load_images(config(source, **fields))


def load_without_cache(source: Path, **fields: Any) -> ImageData:
    given = os.environ[CACHE_VARIABLE]
    use_cache(source.parent / "unused", 0.0)
    try:
        return load(source, **fields)
    finally:
        os.environ[CACHE_VARIABLE] = given
        assert not (source.parent / "unused").exists()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pixels"))


# --- what is decoded ---


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_second_start_decodes_nothing(tmp_path: Path, folder: Path, num_opened: list[Any], kind: str) -> None:
    source = make_folder(tmp_path / "pets") if kind == "folder" else make_parquet(tmp_path / "pets.parquet")
    first, test = load(source), load_test_images(config(source))
    assert len(num_opened) == 20
    assert len(files(folder)) == 2  # no search reads the test part
    again = load(source)
    assert torch.equal(load_test_images(config(source)).images, test.images)
    assert len(num_opened) == 20
    assert again.digest == first.digest
    assert again.originals == first.originals


def test_results_do_not_depend_on_the_cache(tmp_path: Path) -> None:
    """Grey, colour and deep images, several frames and broken files in one set."""
    source = make_folder(tmp_path / "pets", mode="L", count=30)
    for number in range(5):
        picture(number).save(source / "cat" / f"{number:03d}.png")
        Image.fromarray(np.full((8, 8), 900 + number, np.uint16)).save(source / "dog" / f"{number:03d}.png")
        (source / "dog" / f"{number + 10:03d}.png").write_bytes(b"broken")
        picture(1).save(source / "cat" / f"film-{number}.gif", save_all=True, append_images=[picture(90)])
    given = {"skip_broken": True, "resize": "stretch", "split_seed": 1}
    expected = load_without_cache(source, **given)
    report = describe_data(config(source, **given)).report
    for _ in range(2):
        found = load(source, **given)
        for part in ("train", "validation"):
            assert torch.equal(getattr(found, part).images, getattr(expected, part).images)
            assert torch.equal(getattr(found, part).labels, getattr(expected, part).labels)
        assert found.digest == expected.digest
        assert found.scales == expected.scales == {"16-bit": 1023.0}
        assert found.findings == expected.findings
        assert describe_data(config(source, **given)).report == report


def test_the_first_colour_image_widens_the_grey_ones_before_it(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pets", mode="L", count=40)
    picture(200).save(source / "dog" / "zz.png")
    data = load(source)
    for part in (data.train, data.validation):
        grey = part.images[(part.images[:, 0] == part.images[:, 2]).flatten(1).all(1)]
        assert len(grey) >= len(part) - 1
        assert len(grey.unique()) > 8
    assert torch.equal(data.train.images, load_without_cache(source).train.images)


@pytest.mark.parametrize("kind", ["changed", "new", "fewer"])
def test_only_new_and_changed_images_are_decoded(tmp_path: Path, num_opened: list[Any], kind: str) -> None:
    source = make_folder(tmp_path / "pets", count=20)
    load(source)
    load_test_images(config(source))
    del num_opened[:]
    if kind == "changed":
        picture(250).save(source / "cat" / "003.png")
    elif kind == "new":
        picture(250).save(source / "cat" / "new.png")
    else:
        (source / "cat" / "003.png").unlink()
    data = load(source, max_images=None)
    load_test_images(config(source))
    assert len(num_opened) <= {"changed": 1, "new": 9, "fewer": 8}[kind]  # images may move between the parts
    assert data.digest == load_without_cache(source).digest


def test_a_change_that_keeps_size_and_time_is_found_by_content(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pets", count=20)
    before = load(source)
    for path in source.glob("cat/*.png"):
        stamp = path.stat()
        other = picture(255)
        for red in range(200, 255):  # one whose file is as large
            other = picture(red)
            if len(encoded(other)) == stamp.st_size:
                break
        path.write_bytes(encoded(other))
        assert path.stat().st_size == stamp.st_size
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    expected = load_without_cache(source).digest
    assert expected != before.digest
    assert load(source).digest == before.digest
    with verified_cache():
        assert load(source).digest == expected
    assert load(source).digest == expected


def test_a_file_that_a_parquet_row_names_is_watched(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(20):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [{"bytes": None, "path": f"{number}.png"} for number in range(20)]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 10}), tmp_path / "train.parquet")
    before = load(tmp_path)
    for number in range(20):
        picture(number + 100).save(tmp_path / f"{number}.png")
    assert load(tmp_path).digest != before.digest


def test_progress_is_told_while_images_are_decoded(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "pets", count=10)
    told: list[tuple[int, int]] = []
    with watch_decoding(lambda done, total: told.append((done, total))):
        load(source)
        assert told == [(done, 16) for done in range(17)]
        load(source)
        assert len(told) == 17


# --- files ---


@pytest.mark.slow
def test_two_processes_decode_a_set_once(tmp_path: Path, folder: Path) -> None:
    source = make_folder(tmp_path / "pets", count=200)
    command = [sys.executable, "-c", PROCESS, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0].split() for process in running]
    assert answers[0][0] == answers[1][0]
    assert sorted(int(count) for _, count in answers) == [0, 320]
    assert len(files(folder)) == 1


def test_a_kill_while_decoding_leaves_nothing_that_is_used(tmp_path: Path, folder: Path) -> None:
    source = make_folder(tmp_path / "pets", count=100, size=(64, 64))
    with subprocess.Popen([sys.executable, "-c", PROCESS, str(source)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(folder.glob(".*.unfinished")):
            time.sleep(0.002)
        process.kill()
    assert load(source).digest == load_without_cache(source).digest
    assert len(files(folder)) == 1
    assert not any(folder.glob(".*.unfinished"))


def test_an_unfinished_file_is_never_used_and_removed(tmp_path: Path, folder: Path) -> None:
    source = make_folder(tmp_path / "pets")
    expected = load_without_cache(source).digest
    load(source)
    (file,) = files(folder)
    unfinished = folder / f".{file.stem}.unfinished"
    other = folder / ".0123-4567.unfinished"
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:-3]):
        file.write_bytes(damaged)
        unfinished.write_bytes(damaged)
        other.write_bytes(damaged)
        assert load(source).digest == expected
        assert len(file.read_bytes()) == len(content)
        assert not unfinished.exists()
        assert not other.exists()


def test_nothing_is_left_of_a_set_that_cannot_be_used(tmp_path: Path, folder: Path) -> None:
    source = make_folder(tmp_path / "pets")
    picture(1, size=(9, 9)).save(source / "dog" / "000.png")
    for seed in range(5):
        with contextlib.suppress(DataError):  # the odd image may be in the test part
            load(source, split_seed=seed)
    with pytest.raises(DataError, match="all images must have the same size"):
        describe_data(config(source))
    assert [path for path in folder.iterdir() if path.suffix not in (".pixels", ".lock")] == []


def test_what_was_not_used_for_longest_is_removed_first(tmp_path: Path, folder: Path) -> None:
    sources = [make_folder(tmp_path / name, count=40) for name in ("one", "two", "three")]
    kept = load(sources[0]).train.images
    one = files(folder)[0]
    load(sources[1])
    (two,) = set(files(folder)) - {one}
    for age, file in ((200, one), (100, two)):
        os.utime(file, (0, 1e9 - age))
    load(sources[0])  # now `one` was used last
    use_cache(folder, 2.5 * one.stat().st_size / GIB)
    load(sources[2])
    assert one in files(folder)
    assert two not in files(folder)
    assert len(files(folder)) == 2
    evict(folder, 0, keep=tmp_path)
    assert files(folder) == []
    assert int(kept.sum()) > 0


def test_a_set_that_is_too_large_for_the_cache_stays_in_memory(tmp_path: Path, folder: Path) -> None:
    source = make_folder(tmp_path / "pets")
    use_cache(folder, 1000 / GIB)
    assert load(source).digest == load_without_cache(source).digest
    assert files(folder) == []


def test_a_set_that_fits_nowhere_is_refused_with_the_way_out(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(tmp_path / "pets")
    monkeypatch.setattr(cache, "available_memory_gib", lambda: 100 / GIB)
    use_cache(folder, 1000 / GIB)
    with pytest.raises(DataError, match=r"the 16 images of .* must fit into the memory or into the cache.*Raise VITS"):
        load(source)
    use_cache(folder, 1.0)
    data = load(source)
    assert is_mapped(data.train.images)
    monkeypatch.undo()
    assert not is_mapped(load(source).train.images)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_folder(tmp_path / "pets")
    (tmp_path / "occupied").write_text("")
    use_cache(tmp_path / "occupied", 1.0)
    assert load(source).digest == load_without_cache(source).digest
    assert "Decoded images are not kept for the next start" in caplog.text
