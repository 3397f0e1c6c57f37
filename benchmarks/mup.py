"""Whether the best learning rate stays the same when the network grows, with and without muP.

`python -m benchmarks.mup` takes a minute or two on one core, `--quick` a few seconds. AutoFormers of one topology and
three widths are trained on the built-in digits with several learning rates: in the standard way, and with the rates
`mup` of the smallest width. "lost" is what it costs to tune the rate on the smallest network only: the training loss at
the best rate of the smallest width minus the loss at the best rate of the width.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks._machine import processor
from benchmarks._timing import print_table
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, TrainTask
from trainers.data.images import ImageData, load_images
from trainers.training.packed import train_packed
from trainers.training.reporting import SilentReporter

CPU = torch.device("cpu")
RULES = ("uniform", "mup")


@dataclass(frozen=True)
class Sweep:
    """What is trained."""

    widths: tuple[int, ...] = (16, 32, 64)
    rates: tuple[float, ...] = tuple(2.0**power for power in range(-9, -3))
    seeds: int = 1
    images: int = 1000
    epochs: int = 5


QUICK = Sweep(widths=(16, 32), rates=(2.0**-8, 2.0**-5), images=400, epochs=2)


def topology(width: int) -> str:
    """Two blocks of two heads on 8 x 8 patches."""
    return f"autoformer:2,2|2,2|{width},8"


def recipe_of(rate: float, rule: str, base_width: int) -> Recipe:
    """AdamW without weight decay and clipping, which muP does not cover."""
    rates: dict[str, Any] = {"name": rule} | ({"base_width": base_width} if rule == "mup" else {})
    return Recipe.model_validate(
        {"learning_rate": rate, "weight_decay": 0.0, "gradient_clip": None, "batch_size": 32, "rates": rates}
    )


def final_losses(data: ImageData, config: DataConfig, sweep: Sweep, width: int) -> dict[tuple[str, float], float]:
    """Training loss of the last epoch for each rule and rate, the mean over the seeds; infinite if one diverges."""
    keys = [(rule, rate) for rule in RULES for rate in sweep.rates for _ in range(sweep.seeds)]
    losses: dict[tuple[str, float], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            TrainTask(
                configuration=Configuration(
                    data=config,
                    topology=topology(width),
                    recipe=recipe_of(rate, rule, sweep.widths[0]),
                    epochs=sweep.epochs,
                    seed=number % sweep.seeds,
                ),
                folder=Path(folder) / str(number),
            )
            for number, (rule, rate) in enumerate(keys)
        ]
        for number, outcome in train_packed(tasks, data, [SilentReporter() for _ in tasks], CPU):
            found = outcome.metrics["train_loss"] if outcome.state == "complete" else math.inf
            losses.setdefault(keys[number], []).append(found)
    return {key: fmean(found) for key, found in losses.items()}


def measure(sweep: Sweep) -> list[dict[str, Any]]:
    """One row per rule and width: the loss at each rate, the best rate, and what the best rate of the base loses."""
    config = DataConfig(source="digits", max_images=sweep.images)
    data = load_images(config)
    losses = {width: final_losses(data, config, sweep, width) for width in sweep.widths}
    rows: list[dict[str, Any]] = []
    for rule in RULES:
        at_base: float | None = None
        for width in sweep.widths:
            own = {rate: losses[width][rule, rate] for rate in sweep.rates}
            best = min(own, key=own.__getitem__)
            at_base = best if at_base is None else at_base
            shown = {f"2^{math.log2(rate):.0f}": loss for rate, loss in own.items()}
            lost = own[at_base] - own[best]
            rows.append({"rates": rule, "width": width, **shown, "best": f"2^{math.log2(best):.0f}", "lost": lost})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sweep = QUICK if options.quick else Sweep()
    head = {"processor": processor(), "load": os.getloadavg()[0], **vars(sweep)}
    print(f"{head['processor']}, 1 thread, load average {head['load']:.1f}")
    started = time.perf_counter()
    rows = measure(sweep)
    title = f"Training loss after {sweep.epochs} epochs of {sweep.images} digits, {sweep.seeds} seeds, by learning rate"
    print_table(title, rows, medians=False)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        finite = [{key: None if value == math.inf else value for key, value in row.items()} for row in rows]
        options.json.write_text(json.dumps({**head, "rows": finite}, indent=2) + "\n")


if __name__ == "__main__":
    main()
