"""Makes a table of trainings, estimates its time, shows it, and proposes topologies.

    python -m benchmarks.tables make benchmarks/tables/cifar10-32.yaml --data CIFAR10 --work FOLDER
    python -m benchmarks.tables estimate benchmarks/tables/cifar10-32.yaml benchmarks/tables/pilot.parquet
    python -m benchmarks.tables show benchmarks/tables/cifar10-32.parquet
    python -m benchmarks.tables choose --count 24

`make` writes the parquet file beside the plan whenever it ends: when all is done, after `--minutes`, or with Ctrl-C.
The same command continues: finished trainings are kept in the work folder and in the parquet file, and an interrupted
one continues from its newest checkpoint in the work folder. Several processes with the same work folder share the
work; on a CPU, one for each core is fastest (`--threads 1 --pack 1`). CIFAR10 is a folder with train.parquet and
test.parquet (columns `image` and `label`).
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables.continuing import take_trainings
from benchmarks.tables.making import TableMaker
from benchmarks.tables.plan import cells_of, choose_topologies, read_plan
from benchmarks.tables.records import Results
from benchmarks.tables.writing import estimate_s, write_table
from trainers.data.cache_settings import use_cache
from trainers.data.listing import DataError
from trainers.hardware.devices import pick_device
from trainers.hardware.host import available_cores
from vitsearch import tables

_CACHE_GIB = 4.0


def main() -> None:
    options = _options()
    try:
        {"make": _make, "estimate": _estimate, "show": _show, "choose": _choose}[options.command](options)
    except (DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make or continue a table")
    make.add_argument("plan", type=Path, help="the YAML file of the table")
    make.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder of the images")
    make.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="folder of unfinished work")
    make.add_argument("--out", type=Path, metavar="FILE", help="the parquet file (beside the plan)")
    make.add_argument("--minutes", type=float, metavar="N", help="end after this time; the same command continues")
    make.add_argument("--pack", type=int, metavar="N", help="trainings to compute together (CPU: threads; GPU: 16)")
    make.add_argument("--threads", type=int, metavar="N", help="number of CPU threads (number of cores)")
    make.add_argument("--note", action="append", default=[], metavar="TEXT", help="a remark for the card")
    estimate = commands.add_parser("estimate", help="how long a table takes, by its pilot")
    estimate.add_argument("plan", type=Path, help="the YAML file of the table")
    estimate.add_argument("pilot", type=Path, help="the parquet file of the pilot")
    show = commands.add_parser("show", help="print the noise and contents of a table")
    show.add_argument("table", type=Path, nargs="?", help="the parquet file (that of the repository)")
    choose = commands.add_parser("choose", help="propose topologies, spread over a range of MACs")
    choose.add_argument("--count", type=int, default=24, help="number of topologies (24)")
    choose.add_argument("--low", type=float, default=0.3, help="smallest million MACs (0.3)")
    choose.add_argument("--high", type=float, default=10.0, help="largest million MACs (10)")
    choose.add_argument("--skew", type=float, default=1.0, help="1: evenly on a log scale; more: more small ones (1)")
    choose.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class _Stop:
    """Asks to end after a time, or after a signal."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._is_asked = False
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, self._ask)

    def _ask(self, *_: Any) -> None:
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True

    def __call__(self) -> bool:
        return self._is_asked or (self._end is not None and time.monotonic() > self._end)


def _make(options: argparse.Namespace) -> None:
    plan, device = read_plan(options.plan), pick_device()
    torch.set_num_threads(options.threads or available_cores())
    pack_size = options.pack or (torch.get_num_threads() if device.type == "cpu" else 16)
    use_cache(options.work.absolute() / "images", _CACHE_GIB)
    file = options.out or options.plan.with_suffix(".parquet")
    load = os.getloadavg()[0]
    maker = TableMaker.of(
        plan,
        source=options.data,
        results=Results(options.work),
        device=device,
        pack_size=pack_size,
        should_stop=_Stop(options.minutes),
        say=lambda text: print(text, flush=True),
    )
    earlier = tables.load(file) if file.is_file() else None
    if earlier and (taken := take_trainings(earlier, maker.results, data_digest=maker.data.digest)):
        print(f"{taken} trainings are taken from {file}", flush=True)
    cells = cells_of(plan)
    done = sum(maker.results.training(maker.key(cell)) is not None for cell in cells)
    print(f"{plan.table}: {done} of {len(cells)} trainings are finished", flush=True)
    maker.make()
    notes: dict[str, Any] = {"load_average_at_start": round(load, 1)}
    remarks = [*(earlier.card.get("notes", ()) if earlier else ()), *options.note]
    if remarks:
        notes["notes"] = list(dict.fromkeys(remarks))
    card = write_table(maker, file, notes=notes)
    table = tables.load(file)
    print(f"{file}: {card['num_trainings']} of {card['num_planned']} trainings, {file.stat().st_size / 1e6:.2f} MB")
    if table.is_partial:
        print(f"about {estimate_s(plan, table) / 3600:.1f} hours of one core are left; the same command continues")
    print(_noise_of(table))
    if maker.problems:
        sys.exit(f"error: {len(maker.problems)} trainings failed and are tried again next time: {maker.problems[0]}")


def _estimate(options: argparse.Namespace) -> None:
    plan, pilot = read_plan(options.plan), tables.load(options.pilot)
    left_s = estimate_s(plan, pilot)
    one = pilot.card["environments"][0]
    print(f"{plan.table}: {len(cells_of(plan))} trainings take about {left_s / 3600:.1f} hours one at a time,")
    print(
        f"measured with {pilot.card['num_trainings']} on {one['device']} ({one['processor']}, {one['threads']} threads)"
    )


def _show(options: argparse.Namespace) -> None:
    table = tables.load(options.table)
    print(_noise_of(table))
    state = "a part of the plan" if table.is_partial else "complete"
    print(f"\n{table.card['table']}: {table.card['num_trainings']} trainings, {state}")
    for one in table.card["environments"]:
        print(f"  {one['num_trainings']} on {one['processor']}, {one['device']}, torch {one['torch_version']}")
    print(f"\n{table.topologies[['space', 'parameters', 'macs']].to_string()}")
    last = (
        table.find(epoch="last").groupby("recipe", observed=True)["val_accuracy"].agg(["mean", "min", "max", "count"])
    )
    print(f"\n{last.sort_values('mean', ascending=False).to_string(float_format='{:.3f}'.format)}")


def _noise_of(table: tables.BenchmarkTable) -> str:
    try:
        return f"\nvalidation accuracy after the last epoch: {table.variance_components()}"
    except ValueError as error:
        return f"\nno variance components yet: {error}"


def _choose(options: argparse.Namespace) -> None:
    low, high = 1e6 * options.low, 1e6 * options.high
    for text in choose_topologies(options.count, low=low, high=high, skew=options.skew, seed=options.seed):
        print(f"  - {text}")


if __name__ == "__main__":
    main()
