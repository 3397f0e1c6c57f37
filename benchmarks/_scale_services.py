"""How fast an MLflow server takes trials, and what a driver's calls to Ray cost."""

import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._sleeping import drive_study
from orchestrator.store.repository import Store
from orchestrator.tracking.events import Event
from orchestrator.tracking.mlflow_client import Tracker, TrackingUnavailable
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.server import server_command

_START_S = 300.0
_DELIVERY_S = 3600.0
_CALLS = 20


class _Unreachable:
    """An MLflow that is away: all events wait."""

    def deliver(self, events: Sequence[Event]) -> None:  # noqa: ARG002 - the protocol's signature
        raise TrackingUnavailable("away")


def mlflow_pace(url: str, *, num_trials: int, epochs: int) -> dict[str, Any]:
    """Deliver the waiting events of a study to an MLflow server on a database.

    Args:
        url: A new database for MLflow.
        num_trials: Trials of the study.
        epochs: Epochs of each.
    """
    with tempfile.TemporaryDirectory() as name, _mlflow_server(url, Path(name)) as (address, process):
        folder = Path(name)
        store = Store.open(f"sqlite:///{folder}/vitsearch.db", artifact_root=folder)
        drive_study(
            store,
            "tracked",
            folder / "studies",
            num_workers=10,
            num_trials=num_trials,
            epochs=epochs,
            deliverer=_Unreachable(),
        )
        study = store.list_studies()[0]
        owed = store.outbox(study.id)
        num_events, before = owed.count_owed(), _cpu_s(process)
        started = time.perf_counter()
        outbox = Outbox(owed, lambda: Tracker(address, folder / "unused", owed))
        while owed.count_owed() and time.perf_counter() - started < _DELIVERY_S:
            time.sleep(0.2)
        seconds, cpu_s = time.perf_counter() - started, _cpu_s(process) - before
        assert owed.count_owed() == owed.count_rejected() == 0, owed.rejection()
        outbox.close()
        store.close()
    return {
        "trials": num_trials,
        "events": num_events,
        "s": seconds,
        "trials/s": num_trials / seconds,
        "events/s": num_events / seconds,
        "CPU ms of the server per trial": 1000 * cpu_s / num_trials,
    }


@contextmanager
def _mlflow_server(url: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A server with its own processes; yields its address and the id of the first process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = server_command(url, folder / "mlflow", port=port)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command.argv, env={**os.environ, **command.env}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(command.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow must start, but: {(folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield command.url, process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def _cpu_s(process: int) -> float:
    """CPU time of a process and its descendants."""
    import psutil  # comes with Ray

    tree = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in tree))


def ray_pace(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Cost of Ray's calls with several numbers of workers, all of which are threads of a few processes here."""
    import ray

    from orchestrator.engines.ray.cluster import RayCluster

    cluster = RayCluster(num_cpus=2)
    cluster.start()
    try:
        host = ray.remote(_Host).options(num_cpus=0, max_concurrency=max(counts) + 10).remote()
        ray.get(host.answer.remote(0.0))
        rows = []
        for count in counts:
            waiting = [host.answer.remote(1000.0) for _ in range(count)]
            looks = [_seconds(lambda: ray.wait(waiting, num_returns=1, timeout=0)) for _ in range(_CALLS)]  # noqa: B023
            started, num_messages = time.perf_counter(), 0
            while time.perf_counter() - started < 2.0:
                ray.get([host.answer.remote(0.0) for _ in range(10)])
                num_messages += 10
            rows.append(
                {
                    "waiting workers": count,
                    "ms to look at all": 1000 * statistics.median(looks),
                    "messages/s": num_messages / (time.perf_counter() - started),
                }
            )
            ray.get(host.wake.remote())
            ray.wait(waiting, num_returns=count, timeout=60)
        return rows
    finally:
        cluster.close()


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class _Host:
    """Many workers in one process: each call answers after a time, or when all are woken."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def answer(self, seconds: float) -> list[int]:
        self._woken.wait(seconds)
        return [1]

    def wake(self) -> None:
        self._woken.set()
        time.sleep(0.5)
        self._woken.clear()
