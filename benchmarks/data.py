"""Decoding photographs, starting again, and training from a set of images that is larger than the memory.

`python -m benchmarks.data` draws 2,000 JPEG files of 2048 x 1536 pixels and 0.68 MB in a temporary folder, and takes
about five minutes on two CPU cores; `--quick` takes one. The files are in the page cache for all ways.
Times are those of the calls, without starting Python and loading libraries. Resident memory is the peak of another
process, as Linux counts it: its own pages (`RssAnon`) and those of mapped files (`RssFile`, with all libraries).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._machine import processor
from benchmarks._timing import print_table
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, TrainTask
from trainers.data.cache_settings import use_cache
from trainers.data.images import ImageData, ImageSplit, load_images, load_test_images
from trainers.data.mapping import is_mapped, map_pixels
from trainers.hardware.host import available_cores
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter

PHOTO_SIZE = (2048, 1536)
SIDE = 64
LARGE_SIDE = 256
CACHE_GIB = 64.0


def main() -> None:
    options = _options()
    if options.resident_of:
        print(json.dumps(_train_large_set(Path(options.resident_of), options.cache)))
        return
    head = {
        "processor": processor(),
        "cores": available_cores(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
        "photos": options.photos,
    }
    print(f"{head['processor']}, {head['cores']} cores, {platform.system()}, torch {head['torch']}")
    print(f"load average before the start {head['load']:.1f}")
    with _folder(options.folder) as folder:
        starts = _compare_starts(folder, options)
        print_table(f"{options.photos} photographs of 2048 x 1536 to {SIDE} pixels", starts, medians=False)
        large = _measure_large_set(folder, options)
        print_table(
            f"{large['images']} images of {LARGE_SIDE} pixels, {large['decoded GB']:.1f} GB decoded, at the peak",
            [large],
            medians=False,
        )
        speed = _compare_training(folder, options)
        print_table(f"training on {options.trained} images of {SIDE} pixels, one epoch", speed, medians=False)
    if options.json:
        report = head | {"starts": starts, "large": large, "training": speed}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images")
    parser.add_argument("--photos", type=int, help="number of photographs (2000)")
    parser.add_argument("--large", type=int, help="number of images of the large set (16384, which are 3.2 GB decoded)")
    parser.add_argument("--trained", type=int, help="number of images for the speed of training (20000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way of training (3)")
    parser.add_argument("--folder", type=Path, help="keeps the images for another run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the results to a file")
    parser.add_argument("--resident-of", help=argparse.SUPPRESS)  # the images for the process that is measured
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.photos = options.photos or (100 if options.quick else 2000)
    options.large = options.large or (2048 if options.quick else 16384)
    options.trained = options.trained or (2000 if options.quick else 20000)
    return options


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="vitsearch-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- the first and the second start ---


def _compare_starts(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    photos = folder / f"photos-{options.photos}"
    _draw(photos, options.photos, _photo)
    files = sorted(photos.glob("*/*.jpg"))
    cache = folder / "cache-of-photos"
    shutil.rmtree(cache, ignore_errors=True)
    use_cache(cache, CACHE_GIB)
    ways: dict[str, Callable[[], object]] = {
        "a loop with Pillow": lambda: np.stack([_plainly(file) for file in files]),
        "first start": lambda: _start(photos),
        "second start": lambda: _start(photos),
    }
    _plainly(files[0])
    few = folder / "few"  # the first start loads libraries
    _draw(few, 40, _small_picture)
    _start(few)
    rows: list[dict[str, Any]] = []
    for way, call in ways.items():
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        seconds = time.perf_counter() - wall
        base = rows[0]["s"] if rows else seconds
        rows.append(
            {
                "way": way,
                "s": seconds,
                "CPU s": time.process_time() - cpu,
                "ms per image": 1000 * seconds / len(files),
                "times as fast": base / seconds,
            }
        )
    return rows


def _plainly(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _start(photos: Path) -> None:
    """What a study does with its images at its start."""
    load_images.cache_clear()
    config = _config(photos, SIDE)
    load_images(config)
    load_test_images(config)


def _config(folder: Path, side: int, **fields: Any) -> DataConfig:
    return DataConfig(source=str(folder), image_size=side, resize="stretch", **fields)


# --- a set that is larger than the memory ---


def _measure_large_set(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Decode and train in another process, without and then with decoded images."""
    images = folder / f"large-{options.large}"
    _draw(images, options.large, _small_picture)
    cache = folder / "cache-of-large"
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.data", "--resident-of", str(images), "--cache", str(cache)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _train_large_set(images: Path, cache: Path) -> dict[str, Any]:
    """Runs in a separate process."""
    use_cache(cache, CACHE_GIB)
    torch.set_num_threads(available_cores())
    with _Peaks() as peaks:
        config = _config(images, LARGE_SIDE, validation=0.05, test=0.05)
        started = time.perf_counter()
        data = load_images(config)
        loaded = time.perf_counter()
        num_trained = _train(data, config, batch_size=32)
        trained = time.perf_counter()
    pixels = len(data.train) * data.train.images[0].numel() + len(data.validation) * data.train.images[0].numel()
    return {
        "images": len(data.train) + len(data.validation),
        "decoded GB": pixels / 1e9,
        "stays in the file": is_mapped(data.train.images),
        "decoding s": loaded - started,
        "training s": trained - loaded,
        "images per s": num_trained / (trained - loaded),
        "own MB": peaks.anonymous / 1e6,
        "file MB": peaks.file / 1e6,
        "together MB": peaks.together / 1e6,
    }


class _Peaks:
    """Samples the resident memory of this process every 20 ms."""

    def __init__(self) -> None:
        self.anonymous = self.file = self.together = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
            anonymous, file = found["RssAnon:"], found["RssFile:"]
            self.anonymous = max(self.anonymous, anonymous)
            self.file = max(self.file, file)
            self.together = max(self.together, anonymous + file)


# --- training from memory and from the map ---


def _compare_training(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.trained, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(options.trained) % 10
    file = folder / "pixels"
    file.write_bytes(pixels.numpy().tobytes())
    with file.open("rb") as opened:
        on_map = map_pixels(opened.fileno(), tuple(pixels.shape))
    config = DataConfig(source="noise", image_size=SIDE, max_images=320, num_classes=10)
    data = load_images(config)
    ways = {
        way: replace(data, train=ImageSplit(images=images, labels=labels))
        for way, images in (("memory", pixels), ("map", on_map))
    }
    torch.set_num_threads(available_cores())
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats + 1):
        for way, one in ways.items():
            started = time.perf_counter()
            count = _train(one, config, batch_size=128)
            if repeat:  # the first run loads libraries
                rates[way].append(count / (time.perf_counter() - started))
    base = statistics.median(rates["memory"])
    return [
        {
            "images from": way,
            "images per s": statistics.median(found),
            "spread": max(found) - min(found),
            "times as fast": statistics.median(found) / base,
        }
        for way, found in rates.items()
    ]


def _train(data: ImageData, config: DataConfig, *, batch_size: int) -> int:
    """Train for an epoch; returns the number of images."""
    recipe = Recipe.model_validate({"batch_size": batch_size})
    # The model is so small that reading the images takes a good part of the time.
    topology = f"autoformer:1,2|16,{data.task.image_size // 8}"
    configuration = Configuration(data=config, topology=topology, recipe=recipe, epochs=1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            TrainTask(configuration=configuration, folder=Path(folder)),
            data,
            SilentReporter(),
            torch.device("cpu"),
        )
    if outcome.state != "complete":
        raise RuntimeError(f"the training must be complete, but is {outcome.state}: {outcome.reason}")
    return len(data.train)


# --- pictures ---


def _draw(folder: Path, count: int, draw: Callable[[int], Image.Image]) -> None:
    """Draw pictures of two classes, once."""
    done = folder / ".done"
    if done.exists():
        return
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    def one(number: int) -> None:
        draw(number).save(folder / "ab"[number % 2] / f"{number:06d}.jpg", quality=90)

    print(f"drawing {count} pictures ...", file=sys.stderr)
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(one, range(count)))
    done.touch()


def _photo(number: int) -> Image.Image:
    """Smooth shapes, fine texture and sensor noise, which make a file of 0.68 MB, as a camera's.

    Eight scenes are shifted at random, because drawing each anew takes ten times as long as reading its file.
    """
    random = np.random.default_rng(number)
    shift = tuple(int(random.integers(side)) for side in reversed(PHOTO_SIZE))
    return Image.fromarray(np.roll(_scene(number % 8), shift, (0, 1)))


@lru_cache(maxsize=8)
def _scene(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(number)
    picture = np.zeros((PHOTO_SIZE[1], PHOTO_SIZE[0], 3), dtype=np.float32)
    for scale, strength in ((256, 90), (32, 30), (8, 12)):
        small = random.normal(0, strength, (PHOTO_SIZE[1] // scale, PHOTO_SIZE[0] // scale, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(small[..., channel]).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(layer)
    picture += 128 + random.standard_normal((*picture.shape[:2], 1), dtype=np.float32) * 3
    return picture.clip(0, 255).astype(np.uint8)


def _small_picture(number: int) -> Image.Image:
    """A few hundred bytes, so that drawing a large set is quick; its size in memory does not depend on it."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8))


if __name__ == "__main__":
    main()
