"""What averages of checkpoints gain before, during and without a decay of the learning rate.

`python -m benchmarks.averaging --json results.json` trains one topology on scikit-learn's digits, with a constant and
with a cosine rate, at 1, 2 and 4 times a base rate; with `--data FOLDER`, which has the parquet files of CIFAR-10, on
4,000 of its images. All checkpoints are kept, and each training is also taken to end after half and three quarters of
its epochs. Methods that choose do so on one half of the validation part; all are measured on the other half, so that
their choice is not counted as a gain. Each gain is over the last checkpoint of the same training at the same epoch,
paired over seeds, with its 95 % interval. `--quick` is a rehearsal.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import processor
from benchmarks._pairs import paired_difference
from benchmarks._timing import print_table
from search_spaces.recipes import PluginChoice, Recipe, describe_plugin
from trainers.config import Configuration, DataConfig, TrainTask
from trainers.data.images import ImageData, ImageSplit, load_images
from trainers.hardware.devices import pick_device
from trainers.tasks.averaging import ValidationJudge, average_checkpoints
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter

TOPOLOGY = "as-vit:4,4,3,1|4,2,3,2|2,2,3,2|2,1,3,1|32,16"
EMA_RATES = (0.9, 0.99)
LAST = PluginChoice(name="last")


def _lawa(window: int, spacing: int) -> PluginChoice:
    return PluginChoice(name="lawa", settings={"window": window, "spacing": spacing})


CONSECUTIVE, SPACED = _lawa(3, 1), _lawa(3, 4)
TRAINED_EMA = PluginChoice(name="trained-ema", settings={"rate": max(EMA_RATES)})
METHODS = (
    LAST,
    CONSECUTIVE,
    _lawa(3, 2),
    SPACED,
    *(_lawa(5, spacing) for spacing in (1, 2, 4)),
    PluginChoice(name="wsm", settings={"window": 5}),
    PluginChoice(name="trained-ema", settings={"rate": min(EMA_RATES)}),
    TRAINED_EMA,
    PluginChoice(name="greedy-soup", settings={"window": 5}),
    PluginChoice(name="lcsc", settings={"window": 5}),
)


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    seeds: int = 5
    epochs: int = 24
    images: int = 4000
    factors: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Multiples of the base rate."""


QUICK = Sizes(seeds=2, epochs=6, images=150, factors=(1.0, 4.0))


@dataclass(frozen=True)
class Measured:
    """One average of one training."""

    schedule: str
    factor: float
    stop_at: int
    method: str
    seed: int
    accuracy: float
    """On the half of the validation part that no method sees."""
    passes: int
    """Forward passes of the other half that the method took."""


def halves(data: ImageData) -> tuple[ImageData, ImageData]:
    """The data with the even and with the odd images of the validation part."""

    def part(first: int) -> ImageData:
        split = data.validation
        return replace(data, validation=ImageSplit(images=split.images[first::2], labels=split.labels[first::2]))

    return part(0), part(1)


def measure(
    config: DataConfig,
    sizes: Sizes,
    base_rate: float,
    device: torch.device,
    *,
    known: Sequence[Measured] = (),
    save: Callable[[Sequence[Measured]], None],
) -> list[Measured]:
    """Train with each schedule, rate and seed, and measure all averages.

    Args:
        config: The images.
        sizes: How much is trained.
        base_rate: Learning rate that is multiplied.
        device: Device of the trainings.
        known: Averages of an earlier call; their seeds are not trained again.
        save: Called with all averages after each seed.
    """
    data = load_images(config)
    choosing, judging = halves(data)
    found = list(known)
    started = time.perf_counter()
    for seed in sorted(set(range(sizes.seeds)) - {one.seed for one in known}):
        for schedule in ("constant", "cosine"):
            for factor in sizes.factors:
                fields = {
                    "learning_rate": factor * base_rate,
                    "schedule": schedule,
                    "augmentation": "shift",
                    "ema": {"rates": EMA_RATES},
                }
                configuration = Configuration(
                    data=config,
                    topology=TOPOLOGY,
                    recipe=Recipe.model_validate(fields),
                    epochs=sizes.epochs,
                    seed=seed,
                )
                with tempfile.TemporaryDirectory() as place:
                    task = TrainTask(configuration=configuration, folder=Path(place), keep_checkpoints=sizes.epochs)
                    outcome = train(task, data, SilentReporter(), device)
                    folders = [record.path for record in outcome.checkpoints]
                    if outcome.state != "complete":
                        print(f"{schedule}, rate x {factor:g}, seed {seed}: {outcome.reason}")
                        continue
                    found += _averages(configuration, folders, choosing, judging, device, factor=factor)
        save(found)
        print(f"seed {seed + 1} of {sizes.seeds}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def _averages(
    configuration: Configuration,
    folders: Sequence[Path],
    choosing: ImageData,
    judging: ImageData,
    device: torch.device,
    *,
    factor: float,
) -> list[Measured]:
    found = []
    judge = ValidationJudge(configuration, judging, device)
    epochs = configuration.epochs
    for stop_at in (epochs // 2, 3 * epochs // 4, epochs):
        for method in METHODS:
            chooser = ValidationJudge(configuration, choosing, device)
            try:
                weights, _ = average_checkpoints(
                    method, folders, chooser, stop_at=None if stop_at == epochs else stop_at
                )
            except ValueError:
                continue  # the average needs more checkpoints than there are up to this epoch
            found.append(
                Measured(
                    schedule=configuration.recipe.schedule.name,
                    factor=factor,
                    stop_at=stop_at,
                    method=describe_plugin(method),
                    seed=configuration.seed,
                    accuracy=judge(weights).accuracy,
                    passes=chooser.num_passes,
                )
            )
    return found


def rows_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row for each schedule, rate, epoch and method, with its gain over the last checkpoint."""
    groups: dict[tuple[str, float, int, str], dict[int, Measured]] = {}
    for one in measured:
        groups.setdefault((one.schedule, one.factor, one.stop_at, one.method), {})[one.seed] = one
    rows = []
    for (schedule, factor, stop_at, method), by_seed in groups.items():
        plain = groups[schedule, factor, stop_at, describe_plugin(LAST)]
        seeds = sorted(by_seed.keys() & plain.keys())
        row: dict[str, Any] = {
            "schedule": schedule,
            "rate": f"x {factor:g}",
            "ends at": str(stop_at),
            "method": method,
            "accuracy, %": f"{100 * sum(by_seed[seed].accuracy for seed in seeds) / len(seeds):.2f}",
            "gain, points [95 %]": "",
            "passes": str(max(by_seed[seed].passes for seed in seeds)),
        }
        if method != describe_plugin(LAST) and len(seeds) > 1:
            row["gain, points [95 %]"] = _gain(by_seed, plain, seeds)
        rows.append(row)
    return rows


def _gain(by_seed: Mapping[int, Measured], plain: Mapping[int, Measured], seeds: Sequence[int]) -> str:
    with_it, without = ([group[seed].accuracy for seed in seeds] for group in (by_seed, plain))
    return paired_difference(with_it, without).text(scale=100, digits=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--data", metavar="FOLDER", help="parquet files of CIFAR-10; the digits without it")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results, and continue from them")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, seeds=options.seeds or sizes.seeds)
    config = DataConfig(
        source=options.data or "digits",
        image_size=32,
        validation=0.4,
        max_images=min(sizes.images, 1400) if options.data is None else sizes.images,
    )
    device = pick_device()
    head = {"processor": processor(), "device": str(device), "threads": torch.get_num_threads()}
    print(f"{head['processor']}, {device}, {head['threads']} threads, load average {os.getloadavg()[0]:.1f}")
    described = {"data": described_data(config), "sizes": json.loads(json.dumps(vars(sizes)))}

    def save(measured: Sequence[Measured]) -> None:
        if options.json:
            content = {**head, **described, "measured": [vars(one) for one in measured]}
            options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    started = time.perf_counter()
    measured = measure(config, sizes, 2e-3, device, known=known_of(options.json, described), save=save)
    title = f"averages of checkpoints, {sizes.seeds} seeds, {described['data']['source']}"
    print_table(title, rows_of(measured), medians=False)
    print(f"{time.perf_counter() - started:.0f} s in all")


def known_of(file: Path | None, described: Mapping[str, Any]) -> list[Measured]:
    """Averages of an earlier run in a file, whatever its number of seeds, if its images and sizes are these."""
    if file is None or not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    seeds = described["sizes"]["seeds"]
    earlier = {**content.get("sizes", {}), "seeds": seeds}
    if (content.get("data"), earlier) != (described["data"], described["sizes"]):
        return []
    return [one for fields in content["measured"] if (one := Measured(**fields)).seed < seeds]


def described_data(config: DataConfig) -> dict[str, Any]:
    """The images as plain data, without their place."""
    return config.model_dump(mode="json") | {"source": Path(config.source).name}


if __name__ == "__main__":
    main()
