"""Health checks of Ray's processes at their ports: which are dead, and the time limit of each call."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.engines.interfaces import RayLostError
from orchestrator.engines.ray import cluster as ray_cluster
from orchestrator.engines.ray import health as ray_health
from orchestrator.engines.ray.health import Part, RayHealth


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_health, "CHECK_S", 0.02)
    monkeypatch.setattr(ray_health, "AWAY_S", 0.3)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def watch(server: socket.socket, *, may_return: bool = False) -> RayHealth:
    host, port = server.getsockname()
    return RayHealth(
        [Part(what="the raylet", host=host, port=port, may_return=may_return, advice="Start it.", loss="it is gone")]
    )


def close(server: socket.socket) -> float:
    """Let connections be refused from now on, and say when that was."""
    server.close()
    return time.monotonic()


def wait_for_death(health: RayHealth) -> float:
    while not health.is_dead:
        time.sleep(0.005)
    return time.monotonic()


def test_what_answers_lives_and_calls_return_what_they_do(server: socket.socket) -> None:
    health = watch(server)
    time.sleep(0.2)
    health.check()
    assert health.call(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        health.call(lambda: 1 / 0)


def test_a_call_that_would_wait_forever_ends_when_ray_dies(server: socket.socket) -> None:
    health = watch(server)
    threading.Timer(0.2, server.close).start()
    with pytest.raises(RayLostError, match=r"the raylet \(127.0.0.1:\d+\) must be alive .* Start it\."):
        health.call(threading.Event().wait)
    with pytest.raises(RayLostError, match="refused") as lost:
        health.check()
    assert lost.value.loss == "it is gone"


def test_a_part_that_may_return_is_waited_for_a_while(server: socket.socket) -> None:
    health = watch(server, may_return=True)
    time.sleep(0.1)
    closed = close(server)
    assert wait_for_death(health) - closed >= 0.2


def test_a_part_that_returns_in_time_has_not_died(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_health, "AWAY_S", 5.0)
    health, address = watch(server, may_return=True), server.getsockname()
    time.sleep(0.1)
    server.close()
    time.sleep(0.1)
    with socket.create_server(address):
        time.sleep(0.1)
        monkeypatch.setattr(ray_health, "AWAY_S", 0.3)
        time.sleep(0.5)
        health.check()


def test_nothing_is_reported_after_the_end(server: socket.socket) -> None:
    health = watch(server)
    health.close()
    server.close()
    time.sleep(0.2)
    assert not health.is_dead


def test_no_process_is_signalled_on_windows_where_that_would_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, _: signalled.append(process))
    assert ray_cluster._is_alive(12)
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        assert ray_cluster._is_alive(34)
    assert signalled == [12]
