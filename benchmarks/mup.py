"""Whether the best learning rate stays the same when the network grows, with and without muP.

`python -m benchmarks.mup` takes about 5 minutes on one core; `--quick` takes one. AutoFormers of one topology and three
widths are trained on the built-in digits with several learning rates: in the standard way, and with the rates `mup` of
the smallest width. "lost" is what it costs to tune the rate on the smallest network only: the training loss at the best
rate of the smallest width minus the loss at the best rate of the width.
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
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sweep:
    """What is trained."""

    widths: tuple[int, ...] = (16, 48, 144)
    rates: tuple[float, ...] = tuple(2.0**power for power in range(-11, -3))
    seeds: int = 2
    images: int = 1000
    epochs: int = 3


QUICK = Sweep(widths=(16, 48), rates=tuple(2.0**power for power in range(-10, -4, 2)), seeds=1, images=400, epochs=2)


def topology(width: int) -> str:
    """Two blocks of two heads on 8 x 8 patches."""
    return f"autoformer:2,2|2,2|{width},8"


def final_loss(data: ImageData, config: DataConfig, sweep: Sweep, rates: str, width: int, rate: float) -> float:
    """Training loss of the last epoch, the mean over the seeds; infinite if a training diverges."""
    rule: dict[str, Any] = {"name": rates} | ({"base_width": sweep.widths[0]} if rates == "mup" else {})
    recipe = Recipe.model_validate(
        {"learning_rate": rate, "weight_decay": 0.0, "gradient_clip": None, "batch_size": 32, "rates": rule}
    )
    losses = []
    for seed in range(sweep.seeds):
        configuration = Configuration(
            data=config, topology=topology(width), recipe=recipe, epochs=sweep.epochs, seed=seed
        )
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(TrainTask(configuration=configuration, folder=Path(folder)), data, SilentReporter(), CPU)
        losses.append(outcome.metrics["train_loss"] if outcome.state == "complete" else math.inf)
    return fmean(losses)


def measure(sweep: Sweep) -> list[dict[str, Any]]:
    """One row per kind of rates and width: the loss at each rate, the best rate, and what the base's rate loses."""
    config = DataConfig(source="digits", max_images=sweep.images)
    data = load_images(config)
    rows: list[dict[str, Any]] = []
    for rates in ("uniform", "mup"):
        at_base: float | None = None
        for width in sweep.widths:
            losses = {rate: final_loss(data, config, sweep, rates, width, rate) for rate in sweep.rates}
            best = min(losses, key=lambda rate: losses[rate])
            at_base = best if at_base is None else at_base
            shown = {f"2^{math.log2(rate):.0f}": loss for rate, loss in losses.items()}
            lost = losses[at_base] - losses[best]
            rows.append({"rates": rates, "width": width, **shown, "best": f"2^{math.log2(best):.0f}", "lost": lost})
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
