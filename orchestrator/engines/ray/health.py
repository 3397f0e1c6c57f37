"""Whether those processes of Ray live without which nothing goes on, and calls that do not wait for dead ones."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.engines.interfaces import EngineUnavailableError

LOOK_S = 1.0
"""Time between two looks."""
AWAY_S = 20.0
"""So long another machine may be out of reach, or a cluster's head be away; Ray itself ends the driver after 60 s."""
_ANSWER_S = 5.0

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process of Ray that everything depends on."""

    what: str
    host: str
    port: int
    may_return: bool
    """Whether it may be started again, and Ray goes on with it."""
    advice: str
    """What to do when it has died."""


class RayHealth:
    """Looks every second, in a thread of its own, whether the parts of Ray live.

    Where they do not, Ray's own calls wait: some for 60 s, after which Ray ends the process without a word to us, and
    some for ever.

    Args:
        parts: What must live.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._death: str | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-health", daemon=True)
        self._thread.start()

    @property
    def is_dead(self) -> bool:
        """Whether a part has died."""
        return self._death is not None

    def check(self) -> None:
        """Return if all lives.

        Raises:
            EngineUnavailableError: Something has died.
        """
        if self._death is not None:
            raise EngineUnavailableError(self._death)

    def call(self, function: Callable[[], Result]) -> Result:
        """What the function returns, called in a thread of its own; when Ray dies, that thread is left behind.

        Raises:
            EngineUnavailableError: A part of Ray has died before its end.
        """
        self.check()
        future: Future[Result] = Future()
        threading.Thread(target=_fulfil, args=(future, function), name="ray-call", daemon=True).start()
        while not wait_for([future], timeout=LOOK_S / 2).done:
            self.check()
        return future.result()

    def close(self) -> None:
        """Look no more."""
        self._is_closed.set()

    def _watch(self) -> None:
        seen = dict.fromkeys(self._parts, time.monotonic())
        while not self._is_closed.wait(LOOK_S):
            for part in self._parts:
                try:
                    socket.create_connection((part.host, part.port), timeout=_ANSWER_S).close()
                except OSError as error:
                    is_refused = isinstance(error, ConnectionRefusedError)
                    patience_s = 0.0 if is_refused and not part.may_return else AWAY_S
                    if time.monotonic() - seen[part] >= patience_s and not self._is_closed.is_set():
                        self._death = (
                            f"{part.what} ({part.host}:{part.port}) must live while a study runs on Ray, but it has "
                            f"died: {error.strerror or error}. Every finished trial and epoch is kept. {part.advice}"
                        )
                        return
                else:
                    seen[part] = time.monotonic()


def _fulfil(future: "Future[Result]", function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # whoever waits raises it
        future.set_exception(error)


def parts_of_ray(address: str | None) -> list[Part]:
    """The head of the cluster that this process is attached to, and the raylet through which it is.

    Args:
        address: Of the cluster; `None` for Ray of our own.
    """
    import ray

    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    host, _, port = context.gcs_address.rpartition(":")
    again = "Run the same command again: it starts Ray anew."
    return [
        Part(
            what="the head of Ray (GCS)" if address is None else f"the head (GCS) of the Ray cluster {address}",
            host=host.strip("[]"),
            port=int(port),
            may_return=address is not None,
            advice=again
            if address is None
            else "Start the cluster again (`ray start --head`) or unset RAY_ADDRESS, then run the same command again.",
        ),
        Part(
            what="Ray's raylet on this machine",
            host=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
            may_return=False,
            advice=again
            if address is None
            else f"Join the cluster again (`ray start --address={address}`) or unset RAY_ADDRESS, then run the same "
            "command again.",
        ),
    ]
