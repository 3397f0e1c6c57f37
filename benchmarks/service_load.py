"""Many studies submitted at once to two replicas of the service on one PostgreSQL.

`python -m benchmarks.service_load` starts PostgreSQL (Debian's package, or `--database`) and two `vitsearch serve`. 20
clients submit 1,000 studies as fast as they can, while both replicas run them. When `--run` studies are complete, the
waiting ones are cancelled, and rows are counted: no study may be lost or run twice. Then each replica streams the
`--events` events of a large study, and its memory is read meanwhile.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text

from benchmarks._big_database import LARGE, Sizes, fill
from benchmarks._database_server import database_server
from benchmarks._machine import processor
from benchmarks._timing import print_table
from orchestrator.client import Client, RequestRefusedError
from orchestrator.service.access_tokens import create_token
from orchestrator.settings import Settings, load_settings
from orchestrator.store.database import connect
from orchestrator.store.repository import Store

STUDY = """\
study: {name}
pool: inline
data: {{source: digits, image_size: 32, max_images: 60, max_test_images: 20}}
stages:
  - stage: screen
    space: {{name: as-vit, width: 8, depths: [1, 1, 1, 1]}}
    num_trials: 2
    batch_size: 4
    proxies: [params]
    rank_by: [params]
"""
_START_S = 300.0
_RUN_S = 3600.0


class Submitted(NamedTuple):
    """One submission of a client."""

    name: str
    seconds: float


class Replica(NamedTuple):
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]

    def resident_mib(self) -> float:
        """Memory of its process, without the studies."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


def main() -> None:
    options = _options()
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with database_server(options.database, connections=200) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load_settings(
            home=folder / "home",
            database_url=server.new_database(),
            artifact_root=folder / "artifacts",
            tracking=False,
            max_studies=options.at_once,
        )
        admin, *tokens = _tokens(settings, options.clients)
        store = Store.open(settings.database_url)
        fill(store, settings.database_url, Sizes(options.events, 1, options.events // 50), print)
        store.close()
        with _replica(settings, folder / "a.log") as first, _replica(settings, folder / "b.log") as second:
            replicas = [first, second]
            submitted = _submit_all(replicas, tokens, options.studies, folder)
            _print_times(submitted)
            per_minute = _wait_for(settings, options.run)
            print(f"\nboth replicas together ran {per_minute:.1f} studies per minute")
            _cancel_waiting(settings)
            _wait_until_idle(settings)
            counts = _count(settings, submitted)
            print_table("rows", [counts], medians=False)
            print_table("streams of events", _follow(replicas, admin, options.events), medians=False)
    wrong = ("lost", "in the queue twice", "run twice", "trials missing or too many")
    assert not any(counts[what] for what in wrong), counts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="URL of another PostgreSQL; its user must be able to create databases")
    parser.add_argument("--studies", type=int, default=1000, help="studies to submit (1000)")
    parser.add_argument("--clients", type=int, default=20, help="clients that submit at once (20)")
    parser.add_argument("--at-once", type=int, default=2, help="studies that run at a time on each machine (2)")
    parser.add_argument("--run", type=int, default=30, help="studies to wait for before the others are cancelled (30)")
    parser.add_argument("--events", type=int, default=100_000, help="events that streams receive (100000)")
    parser.add_argument("--quick", action="store_true", help="60 studies, 4 clients, 4 to wait for, 2,000 events")
    options = parser.parse_args()
    if options.quick:
        options.studies, options.clients, options.run, options.events = 60, 4, 4, 2000
    return options


def _tokens(settings: Settings, count: int) -> list[str]:
    settings.home.mkdir()
    store = Store.open(settings.database_url)
    tokens = [create_token(store, f"owner{number}", "submitter", days=1)[1] for number in range(count)]
    admin = create_token(store, "boss", "admin", days=1)[1]
    store.close()
    return [admin, *tokens]


@contextmanager
def _replica(settings: Settings, log_file: Path) -> Iterator[Replica]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [str(Path(sys.executable).with_name("vitsearch")), "serve", "--port", str(port)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **settings.environment()}, stdout=log, stderr=log)
    replica = Replica(f"http://127.0.0.1:{port}", process)
    try:
        _until(lambda: _is_open(port), _START_S, f"{log_file.name}: the service must start")
        yield replica
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _submit_all(replicas: Sequence[Replica], tokens: Sequence[str], count: int, folder: Path) -> list[Submitted]:
    """Each client submits its part to one of the replicas, one study after another.

    All clients exist before the first one submits, since each reads certificates for TLS for a tenth of a second, and
    all are in one process.
    """

    def submit(client: int, service: Client) -> list[Submitted]:
        found = []
        for number in range(client, count, len(tokens)):
            file = folder / f"s{number}.yaml"
            file.write_text(STUDY.format(name=f"s{number}"))
            started = time.perf_counter()
            name = _patiently(lambda: service.submit(file)["study"])  # noqa: B023 - called at once
            found.append(Submitted(name, time.perf_counter() - started))
        return found

    with ExitStack() as clients, ThreadPoolExecutor(len(tokens)) as threads:
        services = [
            clients.enter_context(Client(replicas[number % len(replicas)].url, token))
            for number, token in enumerate(tokens)
        ]
        return [one for part in threads.map(submit, range(len(tokens)), services) for one in part]


def _patiently(call: Callable[[], Any]) -> Any:
    """The result of a call, repeated while the service asks to wait."""
    while True:
        try:
            return call()
        except RequestRefusedError as error:
            if error.status != 429:
                raise
            time.sleep(1.0)


def _wait_for(settings: Settings, count: int) -> float:
    """Wait until so many studies are complete; returns studies per minute."""
    started = time.perf_counter()
    before = _num_in(settings, "complete")
    _until(lambda: _num_in(settings, "complete") >= count, _RUN_S, f"{count} studies must be complete")
    return 60 * (_num_in(settings, "complete") - before) / (time.perf_counter() - started)


def _cancel_waiting(settings: Settings) -> None:
    store = Store.open(settings.database_url)
    while waiting := store.queue().page(states=["waiting"], limit=500):
        for one in waiting:
            store.queue().request_cancel(one.uid)
    store.close()


def _wait_until_idle(settings: Settings) -> None:
    _until(lambda: _num_in(settings, "running") == 0, _RUN_S, "all drivers must end")


def _follow(replicas: Sequence[Replica], token: str, count: int) -> list[dict[str, Any]]:
    """Receive the events of a large study from each replica, and read its memory on the way."""
    rows = []
    for replica in replicas:
        row: dict[str, Any] = {"MiB before": replica.resident_mib()}
        started = time.perf_counter()
        with Client(replica.url, token) as service:
            for number, _ in enumerate(service.events(LARGE), start=1):
                if number * 10 in (count, 5 * count, 10 * count):
                    row[f"MiB at {number:,}"] = replica.resident_mib()
        row |= {"events": number, "events/s": number / (time.perf_counter() - started)}
        assert number >= count
        rows.append(row)
    return rows


def _num_in(settings: Settings, state: str) -> int:
    engine = connect(settings.database_url)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM submissions WHERE state = :state"), {"state": state})
        count = int(found.scalar_one())
    engine.dispose()
    return count


def _count(settings: Settings, submitted: Sequence[Submitted]) -> dict[str, int]:
    """Studies that were lost, or ran twice."""
    engine = connect(settings.database_url)
    with engine.connect() as connection:
        known = list(connection.execute(text("SELECT name FROM submissions")).scalars())
        executions = connection.execute(
            text(
                "SELECT count(*), count(DISTINCT study_id) FROM executions WHERE state = 'complete' "
                "AND study_id IN (SELECT id FROM studies WHERE name LIKE 'owner%')"
            )
        ).one()
        trials = connection.execute(
            text(
                "SELECT count(*), count(DISTINCT stage_id) FROM trials WHERE stage_id IN (SELECT stages.id FROM stages "
                "JOIN studies ON studies.id = stages.study_id WHERE studies.state = 'complete' "
                "AND studies.name LIKE 'owner%')"
            )
        ).one()
    engine.dispose()
    return {
        "submitted": len(submitted),
        "lost": len({one.name for one in submitted} - set(known)),
        "in the queue twice": len(known) - len(set(known)),
        "run": executions[1],
        "run twice": executions[0] - executions[1],
        "trials missing or too many": trials[0] - 2 * trials[1],
    }


def _print_times(submitted: Sequence[Submitted]) -> None:
    times = sorted(one.seconds for one in submitted)
    row = {
        "submitted": len(times),
        "p50 ms": 1000 * statistics.median(times),
        "p95 ms": 1000 * times[int(0.95 * len(times))],
        "slowest ms": 1000 * times[-1],
    }
    print_table("submitting", [row], medians=False)


def _until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} within {limit_s:g} s, but did not")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
