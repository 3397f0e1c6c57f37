"""Results of a table in the making, as JSON files in a work folder, so that a killed process loses little."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from benchmarks._machine import processor
from benchmarks.tables.plan import Cell
from trainers.hardware.devices import describe_device

Record = TypeVar("Record", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(_Frozen):
    """Hardware and versions with which a result was computed."""

    processor: str
    device: str
    threads: int
    python_version: str
    torch_version: str
    vitsearch_version: str

    @classmethod
    def here(cls, device: torch.device) -> "Environment":
        """The environment of this process."""
        return cls(
            processor=processor(),
            device=describe_device(device),
            threads=torch.get_num_threads(),
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            vitsearch_version=version("vitsearch"),
        )


class TrainingRecord(_Frozen):
    """A finished training with all its measurements."""

    cell: Cell
    state: Literal["complete", "failed"]
    reason: str | None
    epochs: tuple[dict[str, float | None], ...]
    """Columns of the table by name, for each epoch."""
    pack_size: int
    """Number of trainings that were computed together and share the wall time."""
    measuring_s: float
    """Time of the measurements that follow a training, divided by the number of trainings that share it."""
    environment: Environment


class TopologyRecord(_Frozen):
    """Costs and scores of a topology."""

    topology: str
    parameters: int
    macs: int
    scores: dict[str, float]
    failures: dict[str, str]
    """Reasons why proxies have no score."""
    wall_time_s: float
    environment: Environment


class Results:
    """The files of a work folder.

    Args:
        folder: The work folder; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("trainings", "topologies", "running", "claims"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Keep other processes from computing a result; `False` if one of them already does.

        The claim of a killed process ends with it.
        """
        lock = FileLock(self._folder / "claims" / key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def running(self, key: str) -> Path:
        """Folder of the checkpoints of an unfinished training."""
        return self._folder / "running" / key

    def training(self, key: str) -> TrainingRecord | None:
        """The record of a training; `None` if it is not finished."""
        return _read(self._folder / "trainings" / f"{key}.json", TrainingRecord)

    def topology(self, key: str) -> TopologyRecord | None:
        """The record of a topology; `None` if it is not scored."""
        return _read(self._folder / "topologies" / f"{key}.json", TopologyRecord)

    def keep_training(self, key: str, record: TrainingRecord) -> None:
        """Write the record of a training."""
        _write(self._folder / "trainings" / f"{key}.json", record)

    def keep_topology(self, key: str, record: TopologyRecord) -> None:
        """Write the record of a topology."""
        _write(self._folder / "topologies" / f"{key}.json", record)


def _read(file: Path, model: type[Record]) -> Record | None:
    return model.model_validate_json(file.read_bytes()) if file.exists() else None


def _write(file: Path, record: BaseModel) -> None:
    """Write a file so that it is never seen in part."""
    part = file.with_suffix(".part")
    part.write_text(record.model_dump_json(), encoding="utf-8")
    part.replace(file)
