"""Scores of all topologies of published tables on one batch of images, kept in a file so that a run can be resumed."""

import hashlib
import io
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.engines.pools.score_cache import scoring_code
from orchestrator.spec.proxy_choices import resolved_settings
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from trainers.config import DataConfig, ScoreTask
from trainers.tasks.scoring import score_topology


class ScoringBatch(NamedTuple):
    """The images on which all topologies are scored."""

    images: Tensor
    """Normalised, shape (B, 3, H, W)."""
    labels: Tensor
    """Shape (B,), int64."""
    description: str

    @property
    def digest(self) -> str:
        """Hex digest of the images and labels."""
        content = self.images.numpy().tobytes() + self.labels.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def natural_batch(path: Path, *, num_images: int, image_size: int, seed: int = 0) -> ScoringBatch:
    """Draw images from a Parquet file with the columns `image` (encoded bytes) and `label`, resized and normalised."""
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path)
    chosen = sorted(random.Random(seed).sample(range(len(table)), num_images))
    rows = table.take(chosen).to_pylist()
    pixels = []
    for row in rows:
        encoded = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        with Image.open(io.BytesIO(encoded)) as image:
            pixels.append(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    images = F.interpolate(images, size=(image_size, image_size), mode="bicubic", antialias=True)
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    labels = torch.tensor([int(row["label"]) for row in rows])
    return ScoringBatch((images - mean) / std, labels, f"{num_images} images of {path.name} at {image_size} px")


def noise_batch(*, num_images: int, image_size: int, seed: int = 0) -> ScoringBatch:
    """Gaussian noise with random labels of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, image_size, image_size, generator=generator)
    labels = torch.randint(10, (num_images,), generator=generator)
    return ScoringBatch(images, labels, f"{num_images} noise images at {image_size} px")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored: the networks' images and classes, and the seed of their weights."""

    batch: ScoringBatch
    num_classes: int
    seed: int

    @property
    def task(self) -> ImageTask:
        """The task for which networks are built."""
        return ImageTask(image_size=self.batch.images.shape[-1], in_channels=3, num_classes=self.num_classes)


class ScoreFile:
    """Known scores in a file of JSON lines, one line per topology and run.

    A score is found again only with the same images, labels, classes, seed, settings and code, or with any code if
    `any_code` is set. Damaged lines, such as the last line of a run that was killed, are skipped.
    """

    def __init__(self, folder: Path, scoring: Scoring, *, any_code: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        key = json.dumps([scoring.batch.digest, scoring.num_classes, scoring.seed])
        self.path = folder / f"scores-{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
        self._known: dict[tuple[str, str, str, str], tuple[float, float]] = {}
        self._newest: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._codes: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._any_code = any_code
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            for name, (settings, code, value, seconds) in row["scores"].items():
                self._add((row["topology"], name, settings), code, (math.nan if value is None else value, seconds))

    def find(self, topology: str, choice: PluginChoice) -> tuple[float, float] | None:
        """Score and seconds of a topology, `None` if unknown; a failed score is nan."""
        settings, code = self._identity(topology, choice)
        if self._any_code:
            return self._newest.get((topology, choice.name, settings))
        return self._known.get((topology, choice.name, settings, code))

    def keep(self, topology: str, choices: Sequence[PluginChoice], found: Mapping[str, tuple[float, float]]) -> None:
        """Append the scores of proxies with their seconds, by name."""
        scores = {}
        for choice in choices:
            (settings, code), (value, seconds) = self._identity(topology, choice), found[choice.name]
            self._add((topology, choice.name, settings), code, (value, seconds))
            scores[choice.name] = (settings, code, value if math.isfinite(value) else None, round(seconds, 4))
        line = json.dumps({"topology": topology, "scores": scores}) + "\n"
        with self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else f"\n{line}"  # after a line that was cut off
            file.write(line.encode())

    def _add(self, key: tuple[str, str, str], code: str, found: tuple[float, float]) -> None:
        self._known[(*key, code)] = found
        self._newest[key] = found

    def _identity(self, topology: str, choice: PluginChoice) -> tuple[str, str]:
        """Digests of the settings and of the code."""
        space = topology.partition(":")[0]
        settings = _short_digest(json.dumps(resolved_settings(choice), sort_keys=True))
        key = (choice.name, settings, space)
        if key not in self._codes:
            self._codes[key] = (settings, _short_digest(scoring_code(choice.name, space)))
        return self._codes[key]


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def score_missing(
    topologies: Sequence[str],
    choices: Sequence[PluginChoice],
    scoring: Scoring,
    file: ScoreFile,
    *,
    deadline: float,
) -> Iterator[tuple[str, float]]:
    """Score what the file lacks, and yield each scored topology with its seconds.

    Args:
        topologies: The topologies, in the order of scoring.
        choices: The proxies; a topology that lacks some of them is scored with these only.
        scoring: Images, classes and seed.
        file: Where known scores are found and new ones are kept.
        deadline: Value of `time.monotonic()` after which no further topology is begun.
    """
    for topology in topologies:
        missing = tuple(choice for choice in choices if file.find(topology, choice) is None)
        if not missing:
            continue
        if time.monotonic() > deadline:
            return
        task = ScoreTask(
            data=DataConfig(source="noise"),
            topology=parse_topology(topology).id,
            proxies=missing,
            batch_size=len(scoring.batch.images),
            seed=scoring.seed,
            num_classes=scoring.num_classes,
            need_all=False,
        )
        outcome = score_topology(task, scoring.batch.images, scoring.task, scoring.batch.labels)
        seconds = outcome.details["seconds"]
        found = {choice.name: (outcome.metrics.get(choice.name, math.nan), seconds[choice.name]) for choice in missing}
        file.keep(topology, missing, found)
        yield topology, sum(seconds.values())
