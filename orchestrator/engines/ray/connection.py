"""Checks the address of a Ray cluster, and explains errors in attaching to it."""

import socket
import time

from orchestrator.engines.interfaces import EngineUnavailableError, RayLostError

_CONNECT_S = 10.0
_LOOK_S = 2.0
_NODE_S = 3.0


def check_address(address: str) -> None:
    """Check that the address accepts connections. Ray itself would try for minutes and then end the process.

    Raises:
        RayLostError: Nothing listens there.
        EngineUnavailableError: It is not the address of a cluster.
    """
    if "://" in address:
        raise EngineUnavailableError(
            f"RAY_ADDRESS must be the HOST:PORT of a Ray cluster, but got {address!r}, the address of another Ray "
            "service. Use the address that `ray start --head` printed."
        )
    if (reason := _refused(address, _CONNECT_S)) is not None:
        raise _not_reached(address, reason)


def why_it_waits(address: str) -> str | None:
    """Why studies wait for a cluster that does not accept connections; `None` if it does. Takes at most two seconds."""
    reason = _refused(address, _LOOK_S)
    return None if reason is None else f"waits for the Ray cluster {address}, which does not answer: {reason}"


def _refused(address: str, timeout_s: float) -> str | None:
    """Why nothing listens at an address; `None` also for a keyword of Ray's, or an invalid one, which Ray reports."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def check_node(address: str) -> None:
    """Check that this machine is a node of a cluster. Ray itself would wait a minute for it to become one.

    Raises:
        RayLostError: Ray does not run here.
    """
    from ray._private import services

    find_nodes = getattr(services, "find_node_ids", None)  # what Ray itself calls; other versions may not have it
    give_up = time.monotonic() + _NODE_S
    while find_nodes is not None and not find_nodes():
        if time.monotonic() > give_up:
            raise RayLostError(
                f"this machine must be a node of the Ray cluster at {address}, but Ray does not run here. Join it with "
                f"`ray start --address={address}` (with --num-cpus=0 --num-gpus=0 if it must not train).",
                loss="Ray does not run on its machine",
            )
        time.sleep(0.2)


def refusal(address: str, error: BaseException) -> EngineUnavailableError:
    """Translate Ray's error on attaching into one that states what to do."""
    import ray

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(cause):
            return EngineUnavailableError(
                f"the Ray cluster at {address} requires its token. Set RAY_AUTH_MODE=token, run `ray get-auth-token` "
                "on the machine where the cluster was started, and put the result into ~/.ray/auth_token or "
                "RAY_AUTH_TOKEN."
            )
        if "Version mismatch" in str(cause):
            return EngineUnavailableError(
                f"Ray and Python must have the same versions as on the cluster at {address}, but: "
                f"{' '.join(str(cause).split())}. Install the same versions on all nodes."
            )
        cause = cause.__cause__
    return _not_reached(address, str(error).partition("\n")[0])


def _not_reached(address: str, reason: str) -> RayLostError:
    return RayLostError(
        f"RAY_ADDRESS must be the address of a running Ray cluster, but {address!r} does not answer: {reason}. "
        "Start it (`ray start --head`), correct the variable, or unset it."
    )
