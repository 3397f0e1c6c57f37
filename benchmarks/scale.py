"""Where one driver, one PostgreSQL, one MLflow server and one Ray head end: sizes that a small machine cannot hold.

`python -m benchmarks.scale` needs PostgreSQL (Debian's package, or another server with `--database`) and takes about
twenty minutes of two quiet cores; `--full` takes an hour and 12 GB of disk, `--quick` some minutes. Trainings are
replaced by workers that only sleep and report. The driver's engine, ledger, database and outbox are the real ones.

driver    one study with 1,000 workers and 10,000 trials (100,000), on SQLite and on PostgreSQL
studies   100 studies at once on one PostgreSQL
database  a database of 1 million (10 million) reports: the time that each page takes
mlflow    how fast one MLflow server takes trials
ray       what 1,000 waiting workers and their messages cost a driver
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks._big_database import Sizes, fill, read_pages, table_sizes
from benchmarks._database_server import database_server
from benchmarks._machine import processor, resident_mib
from benchmarks._scale_services import mlflow_pace, ray_pace
from benchmarks._sleeping import Driven, drive_study, in_threads
from benchmarks._timing import print_table
from orchestrator.settings import load_settings
from orchestrator.store.repository import Store
from tests.postgres import PostgresServer

Rows = list[dict[str, Any]]
DATABASES = ("SQLite", "PostgreSQL")
PARTS = ("driver", "studies", "database", "mlflow", "ray")
_NUM_PROCESSES = 4
_WORKERS_PER_STUDY = 10


def main() -> None:
    options = _options()
    head = {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"{head['processor']}, {head['cores']} cores, Python {platform.python_version()}, load {head['load']:.1f}")
    report: dict[str, Any] = dict(head)
    parts: Mapping[str, Callable[[argparse.Namespace, PostgresServer], Rows]] = {
        "driver": driver,
        "studies": studies,
        "database": database,
        "mlflow": mlflow,
        "ray": ray_messages,
    }
    with database_server(options.database, connections=600) as server:
        for name in options.only:
            report[name] = parts[name](options, server)
            if options.json:
                options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--database", help="URL of another PostgreSQL; its user must be able to create databases")
    parser.add_argument("--driver-on", nargs="+", choices=DATABASES, default=list(DATABASES), help="databases (both)")
    parser.add_argument("--workers", type=int, default=1000, help="of the one driver (1000)")
    parser.add_argument("--trials", type=int, default=10_000, help="of the one driver (10000)")
    parser.add_argument("--epochs", type=int, default=3, help="reports of each trial (3)")
    parser.add_argument("--studies", type=int, default=100, help="studies at once (100)")
    parser.add_argument("--study-trials", type=int, default=10, help="trials of each of them (10)")
    parser.add_argument("--reports", type=int, default=1_000_000, help="rows of the large database (1000000)")
    parser.add_argument("--full", action="store_true", help="100,000 trials and 10 million reports")
    parser.add_argument("--quick", action="store_true", help="1,000 trials, 20 studies and 100,000 reports")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if options.full:
        options.trials, options.reports = 100_000, 10_000_000
    if options.quick:
        options.trials, options.studies, options.study_trials, options.reports = 1000, 20, 5, 100_000
    return options


# --- one driver ---


def driver(options: argparse.Namespace, server: PostgresServer) -> Rows:
    """Trials and reports per second of one driver, its memory, and whether a trial costs more the more there are."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        places = {"SQLite": f"sqlite:///{folder}/vitsearch.db", "PostgreSQL": server.new_database()}
        for name, url in ((name, places[name]) for name in options.driver_on):
            store = Store.open(url, artifact_root=Path(folder))
            before = resident_mib()
            found = drive_study(
                store,
                "large",
                Path(folder) / "studies",
                num_workers=options.workers,
                num_trials=options.trials,
                epochs=options.epochs,
            )
            rows.append(_row(name, found, resident_mib() - before, options.workers))
            started = time.perf_counter()
            store.trials(store.stages(store.list_studies()[0].id)[0].id)
            rows[-1]["reading s"] = time.perf_counter() - started
            store.close()
    print_table(f"one driver, {options.workers} workers that sleep, tracked", rows, medians=False)
    return rows


def _row(name: str, found: Driven, mib: float, num_workers: int) -> dict[str, Any]:
    tenths = found.seconds_of_tenths
    return {
        "database": name,
        "trials": found.trials,
        "trials/s": found.trials / found.seconds,
        "reports/s": found.reports / found.seconds,
        "CPU ms per trial": 1000 * found.cpu_s / found.trials,
        "of one core": found.cpu_s / found.seconds,
        "s per epoch of a worker": num_workers * found.seconds / found.reports,
        "MiB more": mib,
        "last tenth / second": tenths[-1] / tenths[1],
    }


# --- many drivers ---


def studies(options: argparse.Namespace, server: PostgresServer) -> Rows:
    """Reports per second of many drivers on one PostgreSQL, each with its own connections."""
    url = server.new_database()
    Store.open(url).close()
    per_process = -(-options.studies // _NUM_PROCESSES)
    counts = [min(per_process, options.studies - first) for first in range(0, options.studies, per_process)]
    with _counting_connections(url) as most:
        started = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(len(counts)) as processes:
            drive = partial(_drive_some, url, options.study_trials, options.epochs)
            found = [one for part in processes.starmap(drive, enumerate(counts)) for one in part]
        seconds = time.perf_counter() - started
    row = {
        "studies": len(found),
        "trials": sum(one.trials for one in found),
        "reports/s": sum(one.reports for one in found) / seconds,
        "trials/s": sum(one.trials for one in found) / seconds,
        "slowest study s": max(one.seconds for one in found),
        "connections": most[0],
    }
    print_table(f"{len(found)} studies at once, {_WORKERS_PER_STUDY} workers each", [row], medians=False)
    return [row]


def _drive_some(url: str, num_trials: int, epochs: int, process: int, count: int) -> list[Driven]:
    """Run studies in threads of this process, each with the connections that a driver has."""

    def drive(number: int) -> Driven:
        with tempfile.TemporaryDirectory() as folder:
            store = Store.open(url, artifact_root=Path(folder))
            try:
                return drive_study(
                    store,
                    f"study-{process}-{number}",
                    Path(folder) / "studies",
                    num_workers=_WORKERS_PER_STUDY,
                    num_trials=num_trials,
                    epochs=epochs,
                )
            finally:
                store.close()

    return in_threads([partial(drive, number) for number in range(count)])


@contextmanager
def _counting_connections(url: str) -> Iterator[list[int]]:
    """The largest number of connections to a PostgreSQL database meanwhile, without our own."""
    most, over = [0], threading.Event()
    engine = create_engine(url)

    def count() -> None:
        with engine.connect() as connection:
            while not over.wait(0.5):
                statement = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
                most[0] = max(most[0], connection.execute(statement).scalar_one() - 1)
                connection.rollback()

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
        engine.dispose()


# --- a large database ---


def database(options: argparse.Namespace, server: PostgresServer) -> Rows:
    """Seconds that the pages of the service take on a large database."""
    url = server.new_database()
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=Path(folder) / "home", database_url=url, tracking=False)
        settings.home.mkdir()
        store = Store.open(url, artifact_root=settings.artifact_root)
        trials = max(options.reports // 50, 100)
        fill(store, url, Sizes(options.reports, max(trials // 200, 10), trials // 10), print)
        store.close()
        print_table("tables", table_sizes(url), medians=False)
        rows = read_pages(settings)
    print_table("pages", rows, medians=False)
    return rows


# --- MLflow and Ray ---


def mlflow(options: argparse.Namespace, server: PostgresServer) -> Rows:
    """Trials per second that one MLflow server takes."""
    num_trials = 20 if options.quick else 100
    rows = [mlflow_pace(server.new_database(), num_trials=num_trials, epochs=options.epochs)]
    print_table("one MLflow server on PostgreSQL, one study", rows, medians=False)
    return rows


def ray_messages(options: argparse.Namespace, server: PostgresServer) -> Rows:  # noqa: ARG001 - like the other parts
    """What waiting for workers and taking their messages costs a driver."""
    rows = ray_pace([10, 100, options.workers])
    print_table("one driver on Ray", rows, medians=False)
    return rows


if __name__ == "__main__":
    main()
