"""A short study from end to end, in this process, without Ray and MLflow: its time, stage by stage, and its result.

`python -m benchmarks.gpu.study --data CIFAR10` screens 200 topologies, trains 16 trials in packs, replays stopping
criteria, averages checkpoints and promotes a model. CIFAR10 is a folder with train.parquet and test.parquet, or one
sub-folder of images per class.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import vitsearch
from benchmarks._timing import print_table, save_report
from orchestrator.stages.progress import SilentProgress
from orchestrator.store.records import StageRecord
from trainers.hardware.devices import describe_device, pick_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the images (scikit-learn's digits)")
    parser.add_argument("--quick", action="store_true", help="6 topologies, 2 trials of 2 epochs, 300 images")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    source = "digits" if options.data is None else str(options.data.resolve())
    study = make_study(source, is_quick=options.quick)
    head = {"device": describe_device(pick_device()), "images": options.data.name if options.data else "digits"}
    with tempfile.TemporaryDirectory() as home:
        progress = _Stages(options.json, head)
        run = vitsearch.run_study(study, home=home, tracking=False, progress=progress)
        progress.report["state"] = run.state
        if run.state == "complete":
            progress.report["champion"] = dict(run.champion.metrics)
        progress.save()
    print_table("a short study", progress.rows, medians=False)
    if run.state != "complete":
        sys.exit(f"error: the study must end as complete, but it is {run.state}: {run.reason}")
    print(f"test accuracy {run.champion.metrics['test_accuracy']:.1%}")


def make_study(source: str, *, is_quick: bool) -> dict[str, Any]:
    """The study as a mapping.

    Args:
        source: Data source: a folder, or `digits`.
        is_quick: Whether it is only rehearsed, with sizes that mean nothing.
    """
    repeats = 1 if is_quick else 2
    return {
        "study": "short",
        "seed": 0,
        "data": {
            "source": source,
            "image_size": 32,
            "max_images": 300 if is_quick else 12_000,
            "max_test_images": 100 if is_quick else 2_000,
        },
        "pool": "inline",
        "resources": {"trials_per_pack": 2 if is_quick else 8},
        "stages": [
            {
                "stage": "screen",
                "space": {"name": "as-vit", "width": 4 if is_quick else 24, "depths": [1, 1, 1, 1]},
                "num_trials": 6 if is_quick else 200,
                "proxies": [
                    {"name": "length-distortion", "repeats": repeats},
                    {"name": "ntk-condition", "repeats": repeats},
                    "params",
                ],
                "rank_by": ["length-distortion", "ntk-condition"],
            },
            {
                "stage": "train",
                "candidates": {"best": 1 if is_quick else 2, "spread": 0},
                "num_trials": 2 if is_quick else 16,
                "epochs": 2 if is_quick else 6,
                "keep_checkpoints": 2 if is_quick else 6,
                "recipe": {
                    "batch_size": 64 if is_quick else 256,
                    "learning_rate": {"low": 1e-3, "high": 5e-3, "log": True},
                    "weight_decay": {"low": 0.01, "high": 0.2, "log": True},
                },
            },
            {
                "stage": "stopping",
                "num_trials": 2 if is_quick else 12,
                "criteria": [{"name": "patience", "epochs": {"low": 1, "high": 4}}, "label-wave"],
            },
            {
                "stage": "averaging",
                "num_trials": 2 if is_quick else 8,
                "methods": ["last", {"name": "lawa", "window": 2}],
            },
            {"stage": "promote"},
        ],
    }


class _Stages(SilentProgress):
    """Notes the time and the summary of each stage as it ends."""

    def __init__(self, file: Path | None, head: dict[str, Any]) -> None:
        self._file = file
        self._began = time.perf_counter()
        self._trials = 0
        self.rows: list[dict[str, Any]] = []
        self.report: dict[str, Any] = {**head, "state": "running", "stages": self.rows}

    def stage_began(self, stage: StageRecord, *, total: int, done: int) -> None:  # noqa: ARG002
        """Called by the study."""
        self._began, self._trials = time.perf_counter(), total

    def stage_ended(self, stage: StageRecord, summary: str) -> None:
        """Called by the study."""
        seconds = time.perf_counter() - self._began
        self.rows.append({"stage": stage.name, "trials": self._trials, "s": seconds, "result": summary})
        print(f"{stage.name}: {summary}, after {seconds:.1f} s", flush=True)
        self.save()

    def save(self) -> None:
        """Write what is known so far."""
        save_report(self._file, self.report)


if __name__ == "__main__":
    main()
