"""A study with trainings that can be packed, and several ways to run it."""

from pathlib import Path

from tests.tiny import Rows

STUDY = """\
study: packs
seed: 7
HOW
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8", "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,4"]
    sampler: random
    num_trials: 10
    epochs: 4
    stopping: {name: patience, epochs: 1, min_delta: 0.02}
    recipe:
      batch_size: 32
      learning_rate: {low: 5e-4, high: 8e-3, log: true}
      label_smoothing: {low: 0.0, high: 0.2}
"""
ALONE = "engine: optuna\npool: inline"
PACKED = "engine: optuna\npool: inline\nresources: {trials_per_pack: 4}"
ON_RAY = "engine: optuna\npool: ray\nresources: {trials_per_pack: 4}"
ROUNDING = 1e-4
"""Rounding differences of float32 over the epochs of this study: stacked weights are summed in another order."""


def write_packs(folder: Path, how: str, *, sampler: str = "random") -> Path:
    """Write the study file with one of the ways to run it, such as `PACKED`."""
    file = folder / "packs.yaml"
    file.write_text(STUDY.replace("HOW", how).replace("sampler: random", f"sampler: {sampler}"))
    return file


def pack_sizes(rows: Rows) -> list[int]:
    """Size of each trial's pack; 1 for a trial that trained alone."""
    return [trial.details.get("pack_size", 1) for trial in rows.trials["train"]]
