"""Block statistics of many topologies, each computed once and stored in files."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from orchestrator.discovery.objective import BlockTable
from orchestrator.engines.pools.code_digest import code_digest
from orchestrator.evaluation.ground_truth import GroundTruth
from plugins import registry
from plugins.proxies.formulas import all_statistics

if TYPE_CHECKING:
    from torch import Tensor


_VALUES = "values"
_ROOTS = ("plugins.proxies.block_statistics", "trainers.tasks.scoring")


class StatisticsFiles:
    """A folder with the block statistics of networks, one file per network.

    The name of a file is a digest of everything that determines its statistics.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> NDArray[np.float64] | None:
        """Read statistics, shape (statistics, blocks); `None` if the file is missing or damaged."""
        try:
            return np.asarray(load((self._folder / key).read_bytes())[_VALUES], dtype=np.float64)
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def keep(self, key: str, values: NDArray[np.float64]) -> None:
        """Write a file atomically."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({_VALUES: values}))
            Path(name).replace(self._folder / key)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise


def measure_topologies(
    truth: GroundTruth,
    files: StatisticsFiles,
    *,
    batch_size: int,
    num_seeds: int,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> dict[tuple[str, int], NDArray[np.float64]] | None:
    """Compute all statistics of every topology of a truth, for one fresh network per seed.

    Known statistics are read from the files. Scoring a saved formula with the same seed uses the same networks.

    Args:
        truth: The topologies, the images and the task.
        files: Files of the statistics.
        batch_size: Number of training images for each network.
        num_seeds: Number of networks per topology; their seeds are 0, 1, ...
        on_progress: Called with the number of measured networks and the number of networks to measure.
        should_stop: Called before each network. If it returns True, measuring stops.

    Returns:
        Statistics by topology and seed, shape (statistics, blocks). `None` if measuring was stopped.
    """
    from trainers.data.images import load_images  # imports torch
    from trainers.hardware.devices import describe_device, pick_device
    from trainers.tasks.scoring import scoring_batch

    data, device = load_images(truth.data), pick_device(needs_float64=True)
    space = truth.topologies[0].partition(":")[0]
    given = {
        "images": data.digest,
        "split_seed": truth.data.split_seed,
        "batch_size": batch_size,
        "num_classes": truth.task.num_classes,
        "device": describe_device(device),
        "code": code_digest(
            {*_ROOTS, *(registry.available(kind)[space].module for kind in ("spaces", "models"))},
            distributions=("torch",),
        ),
    }
    keys = {
        (topology, seed): _digest({**given, "topology": topology, "seed": seed})
        for topology in truth.topologies
        for seed in range(num_seeds)
    }
    found = {place: values for place, key in keys.items() if (values := files.find(key)) is not None}
    missing = [place for place in keys if place not in found]
    images, labels = scoring_batch(data, split_seed=truth.data.split_seed, size=batch_size, device=device)
    for done, place in enumerate(missing):
        if should_stop():
            return None
        on_progress(done, len(missing))
        found[place] = _measure(place[0], truth, images, labels, seed=place[1])
        files.keep(keys[place], found[place])
    if missing:
        on_progress(len(missing), len(missing))
    return found


def join_tables(
    measured: dict[tuple[str, int], NDArray[np.float64]], topologies: Sequence[str], *, num_seeds: int
) -> BlockTable:
    """Join the statistics of topologies, in the given order, to one table."""
    networks = [measured[topology, seed] for seed in range(num_seeds) for topology in topologies]
    return BlockTable(
        statistics=all_statistics(),
        values=np.concatenate(networks, axis=1),
        counts=np.array([network.shape[1] for network in networks], dtype=np.intp),
        num_seeds=num_seeds,
    )


def _measure(
    topology: str, truth: GroundTruth, images: "Tensor", labels: "Tensor", *, seed: int
) -> NDArray[np.float64]:
    from plugins.proxies.block_statistics import block_statistics
    from plugins.proxies.passes import record_pass
    from plugins.proxies.repeats import repeat_seeds
    from trainers.hardware.devices import full_precision
    from trainers.tasks.scoring import make_candidate

    candidate = make_candidate(registry.parse_topology(topology), images, truth.task, seed=seed, labels=labels)
    (network_seed,) = repeat_seeds(seed, 1)
    with full_precision():
        measured = block_statistics(record_pass(candidate, network_seed), all_statistics())
    values: NDArray[np.float64] = measured.numpy()
    return values


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]
