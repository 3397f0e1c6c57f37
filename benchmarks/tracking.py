"""The cost of tracking in MLflow: the same studies with and without it, in turn.

`python -m benchmarks.tracking` takes a quarter of an hour on two cores, `--quick` one minute. MLflow is the embedded
default, a SQLite store on the same disk, to which a thread of the study's process sends events. Loading MLflow, once
per process, and making its tables, once per home, do not count. *stage* is the time from the stage's first to its last
row; events that still wait then are sent before the study ends.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._machine import processor
from benchmarks._timing import print_table
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.stages.progress import SilentProgress
from orchestrator.store.repository import Store
from orchestrator.study.driver import run_study
from trainers.training.reporting import SilentReporter

TRAIN = """\
study: trained-{number}
seed: {number}
engine: optuna
pool: inline
data: {{source: digits, image_size: 32}}
stages:
  - stage: train
    topologies: ["as-vit:4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,8"]
    num_trials: {trials}
    epochs: {epochs}
    sampler: random
    recipe: {{learning_rate: {{low: 5e-4, high: 8e-3, log: true}}}}
"""
SCREEN = """\
study: screened-{number}
seed: {number}
engine: optuna
pool: inline
data: {{source: digits, image_size: 32}}
stages:
  - stage: screen
    space: {{name: as-vit, width: 8, depths: [1, 1, 1, 1]}}
    num_trials: {topologies}
    sampler: random
    proxies: [{{name: length-distortion, repeats: 1}}, params]
"""


class Run(NamedTuple):
    """Times of one study."""

    stage_s: float
    study_s: float
    cpu_s: float
    """CPU time of all threads."""


def main() -> None:
    options = _options()
    load = os.getloadavg()[0]
    print(
        f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, load average before the start "
        f"{load:.1f}"
    )
    studies = {
        f"{options.trials} trainings of {options.epochs} epochs": TRAIN,
        f"{options.topologies} topologies screened": SCREEN,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = [_compare(name, text, options, Path(folder)) for name, text in studies.items()]
    print_table(f"studies with and without tracking, medians of {options.runs} alternating runs", rows, medians=False)
    if options.json:
        head = {"processor": processor(), "load": load, "runs": options.runs}
        options.json.write_text(json.dumps({**head, "studies": rows}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="number of trainings (4)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each training (40)")
    parser.add_argument("--topologies", type=int, default=1000, help="number of screened topologies (1000)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each study, with and without tracking (5)")
    parser.add_argument("--quick", action="store_true", help="2 trainings, 50 topologies, three runs")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.topologies, options.runs = 2, 50, 3
    return options


def _compare(name: str, text: str, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    small = {"trials": 1, "epochs": 1, "topologies": 2}  # loads and makes what the first study needs
    for tracking in (True, False):
        _run(text.format(number=0, **small), home, tracking=tracking)
    found: dict[bool, list[Run]] = {False: [], True: []}
    for number in range(1, options.runs + 1):
        for tracking in (False, True) if number % 2 else (True, False):
            found[tracking].append(_run(text.format(number=number, **vars(options)), home, tracking=tracking))
    row: dict[str, Any] = {"study": name}
    for field in Run._fields:
        off, on = ([float(getattr(run, field)) for run in found[tracking]] for tracking in (False, True))
        what = field.removesuffix("_s")
        row[f"{what} off s"], row[f"{what} on s"] = statistics.median(off), statistics.median(on)
        row[f"{what} more %"] = 100 * (row[f"{what} on s"] / row[f"{what} off s"] - 1)
    row["stage spread s"] = max(run.stage_s for run in found[False]) - min(run.stage_s for run in found[False])
    return row


def _run(text: str, home: Path, *, tracking: bool) -> Run:
    settings = load_settings(home=home / ("on" if tracking else "off"), tracking=tracking)
    file = home / "study.yaml"
    file.write_text(text, encoding="utf-8")
    wall, cpu = time.perf_counter(), time.process_time()
    study = run_study(load_spec(file), text, settings, progress=SilentProgress(), control=SilentReporter())
    ended = Run(0.0, time.perf_counter() - wall, time.process_time() - cpu)
    assert study.state == "complete", study.reason
    store = Store.open(settings.database_url)
    (stage,) = store.stages(study.id)
    pending = store.outbox(study.id).count_owed()
    store.close()
    assert not pending, f"{pending} events were not sent"
    assert stage.started_at is not None
    assert stage.ended_at is not None
    return ended._replace(stage_s=stage.ended_at - stage.started_at)


if __name__ == "__main__":
    main()
