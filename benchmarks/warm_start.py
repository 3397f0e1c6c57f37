"""What a warm start gains: the best validation accuracy after a few trials, with and without.

`python -m benchmarks.warm_start` takes about 12 minutes on 2 cores; `--quick` takes one. For each seed, an earlier
study trains models on some of scikit-learn's digits. Then two studies search again, with and without `warm_start`: on
other digits (only the best points are taken) and on the same ones (the sampler also knows the earlier results).
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import processor
from benchmarks._pairs import paired_difference
from benchmarks._timing import print_table
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import make_spec
from orchestrator.stages.progress import SilentProgress
from orchestrator.store.repository import Store
from orchestrator.study.driver import run_study

TOPOLOGY = "as-vit:4,4,2,1|2,2,2,1|2,2,2,1|2,1,2,1|16,8"
RECIPE = {
    "batch_size": 32,
    "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
    "weight_decay": {"low": 1e-3, "high": 0.5, "log": True},
    "label_smoothing": {"low": 0.0, "high": 0.3},
    "drop_path": {"low": 0.0, "high": 0.3},
    "augmentation": ["none", "shift", "affine"],
}


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    seeds: int = 8
    earlier_trials: int = 16
    trials: int = 6
    epochs: int = 8
    images: int = 500


QUICK = Sizes(seeds=2, earlier_trials=3, trials=3, epochs=1, images=100)


class _Unstopped:
    def should_stop(self) -> bool:
        return False


def best_after(name: str, settings: Settings, sizes: Sizes, *, split: int, seed: int, **stage: Any) -> list[float]:
    """Best validation accuracy after each trial of a study."""
    train = {"stage": "train", "topologies": [TOPOLOGY], "epochs": sizes.epochs, "recipe": RECIPE, **stage}
    spec = make_spec(
        {
            "study": name,
            "seed": seed,
            "data": {"source": "digits", "max_images": sizes.images, "split_seed": split},
            "engine": "optuna",
            "pool": "inline",
            "stages": [train],
        }
    )
    study = run_study(spec, "", settings, progress=SilentProgress(), control=_Unstopped())
    assert study.state == "complete", study.reason
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    try:
        trials = store.trials(store.stages(study.id)[0].id)
    finally:
        store.close()
    found, best = [], 0.0
    for trial in trials:
        best = max(best, trial.metrics.get("val_accuracy", 0.0))
        found.append(best)
    return found


def measure(sizes: Sizes) -> dict[str, list[list[float]]]:
    """Curves of each way, one per seed."""
    found: dict[str, list[list[float]]] = {}
    started = time.perf_counter()
    for seed in range(sizes.seeds):
        with tempfile.TemporaryDirectory() as place:
            settings = load_settings(home=Path(place), tracking=False)
            best_after("earlier", settings, sizes, split=seed, seed=seed, num_trials=sizes.earlier_trials)
            warm = {"warm_start": {"study": "earlier", "top": 3}}
            for images, split in (("other images", 1000 + seed), ("same images", seed)):
                for way, extra in (("with", warm), ("without", {})):
                    name = f"{images}-{way}".replace(" ", "-")
                    curve = best_after(
                        name, settings, sizes, split=split, seed=100 + seed, num_trials=sizes.trials, **extra
                    )
                    found.setdefault(f"{images}, {way}", []).append(curve)
        print(f"seed {seed + 1} of {sizes.seeds}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, seeds=options.seeds or sizes.seeds)
    head = {"processor": processor(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0], **vars(sizes)}
    print(f"{head['processor']}, {head['threads']} threads, load average {head['load']:.1f}")
    started = time.perf_counter()
    found = measure(sizes)
    rows = []
    for images in ("other images", "same images"):
        for after in sorted({2, 4, sizes.trials} - set(range(sizes.trials + 1, 9))):
            with_it, without = (
                [curve[after - 1] for curve in found[f"{images}, {way}"]] for way in ("with", "without")
            )
            rows.append(
                {
                    "second study": images,
                    "trials": str(after),
                    "with, %": f"{100 * sum(with_it) / len(with_it):.1f}",
                    "without, %": f"{100 * sum(without) / len(without):.1f}",
                    "difference, points [95 %]": paired_difference(with_it, without).text(scale=100),
                }
            )
    print_table(f"best validation accuracy after some trials, {sizes.seeds} seeds", rows, medians=False)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps({**head, "curves": found, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
