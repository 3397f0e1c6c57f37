"""When to stop a training whose labels are partly wrong: every criterion, on one long training per seed.

`python -m benchmarks.noisy_labels` replaces 40 % of the training labels of scikit-learn's digits by other classes
(`--label-noise` for another share, 0 for a comparison without noise); with `--data FOLDER`, which has the parquet files
of CIFAR-10, those of 3,000 of its images. The recipe is a constant learning rate, so that a training that stops is not
one that has not decayed yet. Each training is recorded to its end and the criteria are replayed on its curve; the test
accuracy after the epoch in which a criterion stops is compared with that after the last epoch, paired over seeds. Two
rows need no criterion: the epoch with the best validation accuracy, whose labels are right, and the best test epoch,
which no criterion can know. `--quick` is a rehearsal.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from benchmarks._machine import processor
from benchmarks._pairs import paired_difference
from benchmarks._timing import print_table
from benchmarks.methods import AS_VIT, CIFAR10, DIGITS
from benchmarks.stopping_rules import criteria
from plugins.protocols import CurvePoint, Signal, Stopper, reads_earlier_curves
from plugins.registry import create
from search_spaces.recipes import PluginChoice, Recipe, describe_plugin
from trainers.config import Configuration, DataConfig, EpochReport, TrainTask
from trainers.data.images import ImageData, ImageSplit, load_images, load_test_images
from trainers.hardware.devices import describe_device, pick_device
from trainers.models.building import build_model
from trainers.tasks.replay import replay_curve
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter

SIGNALS = (
    Signal.CHANGED_TRAINING_PREDICTIONS,
    Signal.CLASS_TRAINING_ACCURACY,
    Signal.GRADIENT_DISPARITY,
    Signal.GRADIENT_NOISE,
    Signal.NEURAL_PERSISTENCE,
    Signal.TRAINING_ACCURACY,
    Signal.WEIGHT_PERSISTENCE,
)
"""Signals of the criteria, without `evidence`, which costs more than the training."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is trained."""

    data: DataConfig
    recipe: dict[str, Any]
    epochs: int = 60
    seeds: int = 5


class Recorded(NamedTuple):
    """One training to its end."""

    curve: tuple[CurvePoint, ...]
    test: tuple[float, ...]
    """Test accuracy after each epoch."""


class _Recorder(SilentReporter):
    def __init__(self) -> None:
        self.reports: dict[int, EpochReport] = {}

    def report(self, report: EpochReport) -> None:
        self.reports[report.epoch] = report


def record(comparison: Comparison, device: torch.device) -> list[Recorded]:
    """Train once per seed, and test the weights of every epoch.

    Raises:
        RuntimeError: A training did not reach its end.
    """
    data, test = load_images(comparison.data), load_test_images(comparison.data)
    recipe = Recipe.model_validate({**comparison.recipe, "schedule": "constant", "learning_rate": 2e-3})
    found = []
    for seed in range(comparison.seeds):
        configuration = Configuration(
            data=comparison.data, topology=AS_VIT, recipe=recipe, epochs=comparison.epochs, seed=seed
        )
        recorder = _Recorder()
        with tempfile.TemporaryDirectory() as place:
            task = TrainTask(
                configuration=configuration,
                folder=Path(place),
                keep_checkpoints=comparison.epochs,
                signals=SIGNALS,
            )
            outcome = train(task, data, recorder, device)
            if outcome.state != "complete":
                raise RuntimeError(f"the training with seed {seed} must end as complete, but got {outcome.reason}")
            folders = {one.epoch: one.path for one in outcome.checkpoints}
            found.append(
                Recorded(
                    curve=tuple(report.point for _, report in sorted(recorder.reports.items())),
                    test=_tested([folders[epoch] for epoch in sorted(folders)], data, test, device),
                )
            )
        print(f"seed {seed + 1} of {comparison.seeds}: test {100 * found[-1].test[-1]:.1f} % at the end", flush=True)
    return found


def _tested(folders: Sequence[Path], data: ImageData, test: ImageSplit, device: torch.device) -> tuple[float, ...]:
    model = build_model(AS_VIT, data.task, seed=0, device=device)
    normalizer = Normalizer(data.mean, data.std, device)
    found = []
    for folder in folders:
        model.load_state_dict(load_weights(folder))
        found.append(evaluate(model, test, normalizer).accuracy)
    return tuple(found)


def rows_of(recorded: Sequence[Recorded], chosen: Sequence[PluginChoice]) -> list[dict[str, Any]]:
    """A row per way to choose an epoch, the best by test accuracy first."""
    count = len(recorded[0].curve)
    ends = {
        "the end": [count for _ in recorded],
        "best validation epoch": [1 + _first_best([point.val_accuracy for point in one.curve]) for one in recorded],
        "best test epoch (an oracle)": [1 + _first_best(one.test) for one in recorded],
    }
    for choice in chosen:
        criterion: Stopper = create("stopping", choice.name, choice.settings)
        ends[describe_plugin(choice)] = [replay_curve(criterion, one.curve).stopped_after or count for one in recorded]
    last = [one.test[-1] for one in recorded]
    rows = []
    for name, epochs in ends.items():
        reached = [one.test[epoch - 1] for one, epoch in zip(recorded, epochs, strict=True)]
        rows.append(
            {
                "ends at": name,
                "epoch, mean (range)": f"{fmean(epochs):.0f} ({min(epochs)} to {max(epochs)})",
                "test, %": f"{100 * fmean(reached):.1f}",
                "against the end, points [95 %]": ""
                if name == "the end"
                else paired_difference(reached, last).text(scale=100),
            }
        )
    return sorted(rows, key=lambda row: -float(row["test, %"]))


def _first_best(values: Sequence[float]) -> int:
    return values.index(max(values))


def judges_one_training(choice: PluginChoice) -> bool:
    """Whether a criterion does not compare a training with others, which differ only in their seeds here."""
    return not reads_earlier_curves(create("stopping", choice.name, choice.settings))


def comparison_of(options: argparse.Namespace) -> Comparison:
    """The comparison that the command line asks for."""
    setting = DIGITS
    if options.data is not None:
        setting = replace(CIFAR10, data=CIFAR10.data.model_copy(update={"source": options.data}))
    data = setting.data.model_copy(update={"label_noise": options.label_noise})
    found = Comparison(data=data, recipe=dict(setting.recipe), seeds=options.seeds)
    if options.quick:
        small = data.model_copy(update={"max_images": 240, "max_test_images": 100})
        found = replace(found, data=small, epochs=6, seeds=2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10 as parquet files; the digits without it")
    parser.add_argument("--label-noise", type=float, default=0.4, metavar="SHARE", help="share of wrong labels (0.4)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds, at least 2 (5)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    options = parser.parse_args()
    device, comparison = pick_device(), comparison_of(options)
    head = {"processor": processor(), "device": describe_device(device), "load": os.getloadavg()[0]}
    print(f"{head['processor']}, on {head['device']}, load average {head['load']:.1f}")
    recorded = record(comparison, device)
    found = [one for one in criteria(frozenset(SIGNALS)) if judges_one_training(one[0])]
    rows = rows_of(recorded, [choice for choice, why_not in found if why_not is None])
    images = "digits" if options.data is None else "CIFAR-10"
    noise = f"{100 * options.label_noise:.0f} % wrong labels"
    print_table(f"{images}, {noise}: {comparison.epochs} epochs, {comparison.seeds} seeds", rows, medians=False)
    for choice, why_not in found:
        if why_not is not None:
            print(f"not replayed: {describe_plugin(choice)}: {why_not}")
    if options.json:
        content = {
            **head,
            "data": comparison.data.model_dump(mode="json"),
            "epochs": comparison.epochs,
            "test": [one.test for one in recorded],
            "validation": [[point.val_accuracy for point in one.curve] for one in recorded],
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
