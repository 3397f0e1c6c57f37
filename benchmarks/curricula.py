"""Every curriculum against none, with equal work: paired differences of the test accuracy with 95 % intervals.

`python -m benchmarks.curricula --json results.json` compares on scikit-learn's digits; with `--data FOLDER`, which has
the parquet files of CIFAR-10, also on 4,000 of its images. `--quick` is a rehearsal with little training. A run that
was interrupted continues with the same command. The work of a measurement before training counts; arms marked with `*`
show what remains if it is free, because another study has already paid for it. Of the intervals of 20 arms, one leaves
out 0 by chance.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._arms import Arm, Results, Setting, compare, rows_of
from benchmarks._machine import processor
from benchmarks._timing import print_table
from trainers.config import DataConfig
from trainers.hardware.devices import describe_device, pick_device

AS_VIT = "as-vit:4,4,3,1|4,2,3,2|2,2,3,2|2,1,3,1|32,16"
AUTOFORMER = "autoformer:4,2|4,2|32,4"
CONTROL = Arm("none")
_ONE_RUN = {"difficulty_runs": 1, "difficulty_epochs": 3}


def _curriculum(name: str, **settings: Any) -> dict[str, Any]:
    return {"curriculum": {"name": name, **settings}}


ARMS = (
    CONTROL,
    Arm("cyclical", _curriculum("cyclical")),
    Arm("cyclical, trained loss", _curriculum("cyclical", difficulty="trained-loss", difficulty_runs=1)),
    Arm(
        "cyclical, trained loss *",
        _curriculum("cyclical", difficulty="trained-loss", difficulty_runs=1),
        counts_measurement=False,
    ),
    Arm("paced", _curriculum("paced")),
    *(Arm(f"pacing, {form}", _curriculum("pacing", form=form)) for form in ("linear", "root", "exponential")),
    Arm("pacing, linear, hard", _curriculum("pacing", order="hard")),
    Arm("pacing, linear, random", _curriculum("pacing", order="random")),
    Arm("difficulty weights", _curriculum("difficulty-weights")),
    Arm("difficulty weights, anti", _curriculum("difficulty-weights", prefer="hard")),
    Arm("half, random", _curriculum("pruning", prefer="random")),
    Arm("half, hard by EL2N", _curriculum("pruning", **_ONE_RUN)),
    Arm("half, hard by EL2N *", _curriculum("pruning"), counts_measurement=False),
    Arm("half, easy by EL2N *", _curriculum("pruning", prefer="easy"), counts_measurement=False),
    Arm("half, hard by GraNd *", _curriculum("pruning", difficulty="grand"), counts_measurement=False),
    Arm("half, hard by another model's EL2N *", _curriculum("pruning", difficulty_topology=AUTOFORMER), None, False),
    Arm("half, by budget *", _curriculum("pruning-by-budget"), counts_measurement=False),
    Arm("skill-it", _curriculum("skill-it")),
    Arm("class errors", _curriculum("class-errors")),
    Arm("noise batches", _curriculum("noise-batches")),
    Arm("gradient harmonizing", {"loss": "gradient-harmonizing"}),
    Arm("progressive tokens", _curriculum("progressive-tokenization")),
)
"""Arms of the As-ViT model."""
SIZED_ARMS = (CONTROL, Arm("progressive resolution", _curriculum("progressive-resolution", multiple=4)))
"""Arms of a model that takes images of several sizes."""

DIGITS = Setting(
    data=DataConfig(source="digits", image_size=32),
    topology=AS_VIT,
    recipe={"batch_size": 32, "augmentation": "shift"},
    epochs=20,
    rates=(1e-3, 2e-3, 4e-3),
)
CIFAR10 = Setting(
    data=DataConfig(source="cifar10", image_size=32, max_images=6000, validation=1 / 3, max_test_images=5000),
    topology=AS_VIT,
    recipe={"batch_size": 64, "augmentation": "flip-crop"},
    epochs=20,
    rates=(1e-3, 2e-3, 4e-3),
)


def settings_of(options: argparse.Namespace) -> dict[str, Setting]:
    """The settings to compare in, by the name of their images."""
    found = {"digits": DIGITS}
    if options.data is not None:
        found["CIFAR-10"] = replace(CIFAR10, data=CIFAR10.data.model_copy(update={"source": options.data}))
    for name, setting in found.items():
        if options.quick:
            small = setting.data.model_copy(update={"max_images": 240, "max_test_images": 100})
            setting = replace(setting, data=small, epochs=6, rates=setting.rates[:2], seeds=2)
        if options.seeds is not None:
            setting = replace(setting, seeds=options.seeds)
        if options.epochs is not None:
            setting = replace(setting, epochs=options.epochs)
        found[name] = setting
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10 as parquet files")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, at least 2")
    parser.add_argument("--epochs", type=int, metavar="N", help="number of epochs of the control")
    parser.add_argument("--only", metavar="TEXT", help="only arms whose name contains this, and the control")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results, and continue from them")
    options = parser.parse_args()
    device = pick_device()
    head = {"processor": processor(), "device": describe_device(device), "load": os.getloadavg()[0]}
    print(f"{head['processor']}, on {head['device']}, load average {head['load']:.1f}")
    results = Results(options.json, head)
    for images, setting in settings_of(options).items():
        for topology, arms in ((AS_VIT, ARMS), (AUTOFORMER, SIZED_ARMS)):
            own = replace(setting, topology=topology)
            chosen = [arm for arm in arms if arm is CONTROL or options.only is None or options.only in arm.name]
            if len(chosen) == 1:
                continue
            group, started = f"{images}, {topology}", time.perf_counter()
            by_name = {arm.name: arm for arm in chosen}

            def save(name: str, result: dict[str, Any], group: str = group, arms: dict[str, Arm] = by_name) -> None:
                results.keep(group, arms[name], result)
                print(f"{group}, {name}: {100 * sum(result['test']) / len(result['test']):.1f} %", flush=True)

            found = compare(chosen, own, device, known=results.known(group, own, chosen), save=save)
            title = f"{group}: {own.epochs} epochs, {own.seeds} seeds, {time.perf_counter() - started:.0f} s"
            print_table(title, rows_of(found, CONTROL.name), medians=False)


if __name__ == "__main__":
    main()
