"""Watches the essential processes of Ray, and makes calls that do not wait for dead processes."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.engines.interfaces import RayLostError

CHECK_S = 1.0
"""Time between two checks."""
AWAY_S = 20.0
"""Time that another machine or a cluster's head may be unreachable; Ray itself ends the driver after 60 s."""
_ANSWER_S = 5.0

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Part:
    """An essential process of Ray."""

    what: str
    host: str
    port: int
    may_return: bool
    """Whether Ray continues if it is started again."""
    advice: str
    """Advice to the user after the process has died."""
    loss: str
    """What is lost then, in a few words."""


class RayHealth:
    """Checks every second, in a thread, that the essential processes of Ray are alive.

    After a process has died, some calls of Ray wait forever; others wait 60 s, and then Ray ends our process silently.

    Args:
        parts: The processes.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._death: RayLostError | None = None
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-health", daemon=True)
        self._thread.start()

    @property
    def is_dead(self) -> bool:
        """Whether a process has died."""
        return self._death is not None

    def check(self) -> None:
        """Return if all processes are alive.

        Raises:
            RayLostError: A process has died.
        """
        if self._death is not None:
            raise RayLostError(str(self._death), loss=self._death.loss)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function in a thread, and return its result. If Ray dies, the thread is left behind.

        Raises:
            RayLostError: A process of Ray died during the call.
        """
        self.check()
        future: Future[Result] = Future()
        threading.Thread(target=_call_into, args=(future, function), name="ray-call", daemon=True).start()
        while not wait_for([future], timeout=CHECK_S / 2).done:
            self.check()
        return future.result()

    def close(self) -> None:
        """Stop checking."""
        self._is_closed.set()

    def _watch(self) -> None:
        seen = dict.fromkeys(self._parts, time.monotonic())
        while not self._is_closed.wait(CHECK_S):
            for part in self._parts:
                try:
                    socket.create_connection((part.host, part.port), timeout=_ANSWER_S).close()
                except OSError as error:
                    is_refused = isinstance(error, ConnectionRefusedError)
                    grace_s = 0.0 if is_refused and not part.may_return else AWAY_S
                    if time.monotonic() - seen[part] >= grace_s and not self._is_closed.is_set():
                        self._death = RayLostError(
                            f"{part.what} ({part.host}:{part.port}) must be alive while a study runs on Ray, but has "
                            f"died: {error.strerror or error}. Every finished trial and epoch is kept. {part.advice}",
                            loss=part.loss,
                        )
                        return
                else:
                    seen[part] = time.monotonic()


def _call_into(future: "Future[Result]", function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # raised in the waiting thread
        future.set_exception(error)


def parts_of_ray(address: str | None) -> list[Part]:
    """The head of the cluster, and the raylet that this process is attached to.

    Args:
        address: Address of the cluster; `None` for local Ray.
    """
    import ray

    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    host, _, port = context.gcs_address.rpartition(":")
    again = "Run the same command again; it restarts Ray."
    return [
        Part(
            what="the head of Ray (GCS)" if address is None else f"the head (GCS) of the Ray cluster {address}",
            host=host.strip("[]"),
            port=int(port),
            may_return=address is not None,
            advice=again
            if address is None
            else "Start the cluster again (`ray start --head`) or unset RAY_ADDRESS, then run the same command again.",
            loss="its Ray has died" if address is None else "its Ray cluster does not answer",
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
            loss="its Ray has died" if address is None else "Ray has died on its machine",
        ),
    ]
