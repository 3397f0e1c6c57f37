"""Every curriculum, loss, optimizer, schedule and regulariser against plain AdamW with cosine decay, with equal work.

`python -m benchmarks.methods --json results.json` compares on scikit-learn's digits; with `--data FOLDER`, which has
the parquet files of CIFAR-10, also on 3,000 of its images. The figures are paired differences of the test accuracy
with 95 % intervals. `--kind` chooses a kind of method, `--label-noise 0.4` replaces that share of the training labels,
and `--quick` is a rehearsal with little training. A run that was interrupted continues with the same command. The work
of a measurement before training, of a teacher's forward passes and of a second model counts; arms marked with `*` show
what remains if a measurement is free, because another study has already paid for it. The training of a teacher does
not count. Of the intervals of 20 arms, one leaves out 0 by chance.
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
DEEPER = "autoformer:4,2|4,2|4,2|4,2|32,4"
CONTROL = Arm("none")
TEACHER = "as-vit:4,4,4,1|4,2,4,2|2,2,4,2|2,1,4,2|32,32"
TAUGHT = ("soft-distillation", "hard-distillation", "teacher-labels")
"""Losses that need a teacher."""
_FIRST_HALF = {"from": 1.0, "to": 0.0, "until": 0.5, "shape": "step"}
LARGE_BATCHES = (128, 512)
_SCALED = {"learning_rate_scaling": "linear", "base_batch_size": 32}
"""Rates that are meant for the batches of the digits."""
_ONE_RUN = {"difficulty_runs": 1, "difficulty_epochs": 3}


def _curriculum(name: str, **settings: Any) -> dict[str, Any]:
    return {"curriculum": {"name": name, **settings}}


CURRICULA = (
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
    Arm("progressive tokens", _curriculum("progressive-tokenization")),
)
OPTIMIZERS = (
    *(Arm(name, {"optimizer": name}) for name in ("lamb", "muon", "root", "sam", "sophia", "tvlars", "adabound")),
    Arm("muon, equal time", {"optimizer": "muon"}, work=2 / 3),
    Arm("lion", {"optimizer": "lion"}, rates=(1e-4, 3e-4, 1e-3)),
    Arm("schedule-free AdamW", {"optimizer": "schedule-free-adamw", "schedule": "constant"}),
    Arm("sgd", {"optimizer": "sgd"}, rates=(0.03, 0.1, 0.3)),
    Arm("blockwise rates", {"rates": "blockwise"}, rates=(2.5e-4, 5e-4, 1e-3)),
    Arm("layer-wise decay", {"rates": "layer-decay"}),
)
SCHEDULES = (
    *(Arm(name, {"schedule": name}) for name in ("constant", "linear", "uba", "step")),
    Arm("refined linear", {"schedule": "linear"}, is_refined=True),
    Arm("refined linear *", {"schedule": "linear"}, counts_measurement=False, is_refined=True),
    Arm("warm-up-stable-decay", {"schedule": "warmup-stable-decay"}),
    Arm("cosine with restarts", {"schedule": "cosine-restarts"}),
)
LOSSES = (
    *(
        Arm(name, {"loss": name})
        for name in ("balanced-softmax", "focal", "z-loss", "early-learning", "gradient-harmonizing", "guidance")
    ),
    Arm("mutual", {"loss": "mutual"}),
    Arm("cross-split", {"loss": "cross-split"}),
    *(Arm(name, {"loss": name}, is_taught=True) for name in TAUGHT),
)
REGULARISERS = (
    Arm("label smoothing", {"label_smoothing": 0.1}),
    Arm("label smoothing, first half", {"label_smoothing": {"from": 0.1, "to": 0.0, "until": 0.5, "shape": "step"}}),
    Arm("mixup", {"mixing": "mixup"}),
    Arm("mixup, first half", {"mixing": "mixup", "mixing_strength": _FIRST_HALF}),
    Arm("cutmix", {"mixing": "cutmix"}),
    Arm("maskmix", {"mixing": "maskmix"}),
    Arm("dropout", {"dropout": 0.1}),
    Arm("early dropout", {"dropout": {"from": 0.1, "to": 0.0, "until": 0.5, "shape": "step"}}),
    Arm("late dropout", {"dropout": {"from": 0.0, "to": 0.1, "until": 0.5, "shape": "step"}}),
    Arm("drop path", {"drop_path": 0.1}),
    Arm("weight decay 0.2", {"weight_decay": 0.2}),
)
BATCHES = (
    Arm("growing batches", {"batch_size": {"from": 16, "to": 64, "until": 1.0, "shape": "linear"}}),
    *(Arm(f"batches of {size}, linear scaling", {"batch_size": size, **_SCALED}) for size in LARGE_BATCHES),
)
KINDS = {
    "curricula": CURRICULA,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "losses": LOSSES,
    "regularisers": REGULARISERS,
    "batches": BATCHES,
}
"""Arms of the As-ViT model, besides the control."""
ELSEWHERE = {
    AUTOFORMER: (Arm("progressive resolution", _curriculum("progressive-resolution", multiple=4)),),
    DEEPER: (Arm("masked growth", _curriculum("masked-growth")), Arm("v-cycle", _curriculum("v-cycle"))),
}
"""Curricula of other models, by topology: one that takes images of several sizes, and one of several equal blocks."""

DIGITS = Setting(
    data=DataConfig(source="digits", image_size=32),
    topology=AS_VIT,
    teacher=TEACHER,
    recipe={"batch_size": 32, "augmentation": "shift"},
    epochs=20,
    rates=(1e-3, 2e-3, 4e-3),
)
CIFAR10 = Setting(
    data=DataConfig(source="cifar10", image_size=32, max_images=4500, validation=1 / 3, max_test_images=5000),
    topology=AS_VIT,
    teacher=TEACHER,
    recipe={"batch_size": 64, "augmentation": "flip-crop"},
    epochs=12,
    rates=(1e-3, 2e-3, 4e-3),
)


def settings_of(options: argparse.Namespace) -> dict[str, Setting]:
    """The settings to compare in, by the name of their images."""
    found = {"digits": DIGITS}
    if options.data is not None:
        found["CIFAR-10"] = replace(CIFAR10, data=CIFAR10.data.model_copy(update={"source": options.data}))
    if options.images is not None:
        found = {name: setting for name, setting in found.items() if name == options.images}
    for name, setting in found.items():
        if options.quick:
            small = setting.data.model_copy(update={"max_images": 240, "max_test_images": 100})
            setting = replace(setting, data=small, epochs=6, rates=setting.rates[:2], seeds=2)
        if options.seeds is not None:
            setting = replace(setting, seeds=options.seeds)
        if options.epochs is not None:
            setting = replace(setting, epochs=options.epochs)
        if options.label_noise:
            noisy = setting.data.model_copy(update={"label_noise": options.label_noise})
            setting = replace(setting, data=noisy)
        found[name] = setting
    return found


def arms_of(options: argparse.Namespace, num_rates: int) -> dict[str, list[Arm]]:
    """The arms to compare, by topology, with as many learning rates as the control has."""
    kinds = options.kind or tuple(KINDS)
    found = {AS_VIT: [arm for kind in kinds for arm in KINDS[kind]]}
    if "curricula" in kinds:
        found |= {topology: list(arms) for topology, arms in ELSEWHERE.items()}
    return {
        topology: [replace(arm, rates=None if arm.rates is None else arm.rates[:num_rates]) for arm in chosen]
        for topology, arms in found.items()
        if (chosen := [arm for arm in arms if options.only is None or options.only in arm.name])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10 as parquet files")
    parser.add_argument("--images", choices=("digits", "CIFAR-10"), help="only these images")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind of method; can be repeated")
    parser.add_argument("--label-noise", type=float, metavar="SHARE", help="share of training labels to replace")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, at least 2")
    parser.add_argument("--epochs", type=int, metavar="N", help="number of epochs of the control")
    parser.add_argument("--only", metavar="TEXT", help="only arms whose name contains this, and the control")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results, and continue from them")
    options = parser.parse_args()
    if options.images == "CIFAR-10" and options.data is None:
        parser.error("give the folder of CIFAR-10 with `--data`")
    device = pick_device()
    head = {"processor": processor(), "device": describe_device(device), "load": os.getloadavg()[0]}
    print(f"{head['processor']}, on {head['device']}, load average {head['load']:.1f}")
    results = Results(options.json, head)
    noise = f" with {100 * options.label_noise:.0f} % label noise" if options.label_noise else ""
    for images, setting in settings_of(options).items():
        for topology, arms in arms_of(options, len(setting.rates)).items():
            own, chosen = replace(setting, topology=topology), (CONTROL, *arms)
            group, started = f"{images}{noise}, {topology}", time.perf_counter()
            by_name = {arm.name: arm for arm in chosen}

            def save(name: str, result: dict[str, Any], group: str = group, arms: dict[str, Arm] = by_name) -> None:
                results.keep(group, arms[name], result)
                print(f"{group}, {name}: {100 * sum(result['test']) / len(result['test']):.1f} %", flush=True)

            found = compare(chosen, own, device, known=results.known(group, own, chosen), save=save)
            title = f"{group}: {own.epochs} epochs, {own.seeds} seeds, {time.perf_counter() - started:.0f} s"
            print_table(title, rows_of(found, CONTROL.name), medians=False)


if __name__ == "__main__":
    main()
