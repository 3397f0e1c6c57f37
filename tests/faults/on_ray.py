"""Small studies on Ray: their settings, and the driver as a separate process."""

import functools
from pathlib import Path
from typing import Any

from tests.fakes import RecordingProgress
from tests.faults.driver import TIMEOUT_S, Driver, start
from tests.faults.ray_processes import comes_true
from tests.places import Place
from tests.tiny import TINY, FinishedStudy, read_rows, run_here

WAYS = {"pool": "engine: optuna\npool: ray", "engine": "engine: ray"}
"""How trials get onto Ray."""
EACH = [("pool", "sqlite"), ("engine", "postgresql")]
"""Each of them, and each kind of database."""
SHORT = """\
study: tiny
seed: 7
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:4,2,3,1|2,1,2,1|2,1,4,1|2,1,6,1|32,8", "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"]
    sampler: random
    num_trials: 6
    epochs: 3
    keep_checkpoints: 3
    recipe:
      batch_size: 32
      learning_rate: {low: 5e-4, high: 8e-3, log: true}
  - stage: promote
"""
"""A study whose trials do not depend on the order in which others end."""
_RANDOM = {
    "sampler: {name: tpe, num_startup_trials: 3}": "sampler: random",
    "sampler: {name: tpe, num_startup_trials: 7}": "sampler: random",
    "sampler: {name: nsga2, population_size: 4}": "sampler: random",
    "num_trials: 9": "num_trials: 6",
    "num_trials: 14": "num_trials: 4",
    "epochs: 4": "epochs: 3",
}
WHOLE = functools.reduce(lambda text, pair: text.replace(*pair), _RANDOM.items(), TINY)
"""The same of all stages."""


def run_undisturbed(text: str, folder: Path) -> FinishedStudy:
    """A study without Ray and without a fault."""
    home, file = folder / "home", folder / "tiny.yaml"
    file.write_text(text, encoding="utf-8")
    run_here(file, home)
    return FinishedStudy(home, file, read_rows(home), RecordingProgress(), 0.0)


def write_study(place: Place, text: str) -> Path:
    """A study's file beside the home."""
    place.home.parent.mkdir(exist_ok=True)
    file = place.home.parent / "tiny.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def on_ray(text: str, way: str, resources: str = "{}") -> str:
    """A study's file with how it is run."""
    return text.replace("seed: 7", f"seed: 7\n{WAYS[way]}\nresources: {resources}", 1)


def start_on_ray(place: Place, file: Path, trouble: str | None = None, **given: Any) -> Driver:
    """Start its driver; `trouble` names a function of `tests.faults.ray_troubles`."""
    prepare = f"tests.faults.ray_troubles:{trouble}" if trouble else None
    return start(place, "run", file, "--quiet", prepare=prepare, **given)


def wait_for_epochs(place: Place, count: int, driver: Driver) -> None:
    """Until so many epochs are written down."""

    def is_there() -> bool:
        assert driver.is_alive(), driver.err
        found = query("SELECT count(*) FROM reports")
        return bool(found) and found[0][0] >= count

    with place.watch() as query:
        assert comes_true(is_there, TIMEOUT_S), f"the study does not come forward: {driver.err[-2000:]}"


def stage_folder(place: Place, stage: str) -> Path:
    """Where a stage keeps its files."""
    return next(place.home.rglob(f"studies/*/{stage}"))
