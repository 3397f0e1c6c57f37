"""A training small enough for tests: a few digits, a tiny As-ViT and a few epochs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from plugins.protocols import Signal
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, EpochReport, TaskOutcome, TrainTask
from trainers.data.images import ImageData, load_images
from trainers.training.loop import train
from trainers.training.reporting import Reporter

DIGITS = DataConfig(source="digits", max_images=120, max_test_images=60)
TOPOLOGY = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
CPU = torch.device("cpu")


def configuration(*, epochs: int = 3, recipe: dict[str, Any] | None = None, **fields: Any) -> Configuration:
    """A configuration that trains in a fraction of a second."""
    given = {"batch_size": 16, **(recipe or {})}
    return Configuration(
        data=DIGITS, topology=TOPOLOGY, recipe=Recipe.model_validate(given), epochs=epochs, seed=5, **fields
    )


@cache
def digits() -> ImageData:
    """90 training and 30 validation images."""
    return load_images(DIGITS)


class Recorder(Reporter):
    """A reporter that keeps what it is told and never asks to stop."""

    def __init__(self) -> None:
        self.reports: list[EpochReport] = []
        self.asked = 0
        self.is_running = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self.is_running = True
        yield
        self.is_running = False

    def report(self, report: EpochReport) -> None:
        self.reports.append(report)

    def should_stop(self) -> bool:
        self.asked += 1
        return False


def run(
    config: Configuration,
    folder: Path,
    reporter: Recorder | None = None,
    *,
    keep: int = 1,
    data: ImageData | None = None,
    signals: tuple[Signal, ...] = (),
    earlier_scores: tuple[tuple[float, ...], ...] = (),
    device: torch.device = CPU,
) -> TaskOutcome:
    """Train alone, by default on the CPU."""
    task = TrainTask(
        configuration=config, folder=folder, keep_checkpoints=keep, signals=signals, earlier_scores=earlier_scores
    )
    return train(task, data or digits(), reporter or Recorder(), device)
