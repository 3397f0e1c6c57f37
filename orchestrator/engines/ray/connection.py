"""The address of a Ray cluster: what is wrong where one cannot be attached to."""

import socket
import time

from orchestrator.engines.interfaces import EngineUnavailableError

_CONNECT_S = 10.0
_NODE_S = 3.0


def look_for(address: str) -> None:
    """Find out quickly that nothing listens there: Ray itself would try for minutes, and then end the process.

    Raises:
        EngineUnavailableError: Nothing does, or it is no address of a cluster.
    """
    if "://" in address:
        raise EngineUnavailableError(
            f"RAY_ADDRESS must be the HOST:PORT of a Ray cluster, but got {address!r}, where another service of Ray's "
            "is. Use the address that `ray start --head` printed."
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # one of Ray's own words, or nothing that Ray takes
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _not_reached(address, getattr(error, "strerror", None) or str(error)) from error


def look_for_node(address: str) -> None:
    """Find out quickly that this machine is no node of any cluster: Ray itself would wait a minute for it to be one.

    Raises:
        EngineUnavailableError: Ray does not run here.
    """
    from ray._private import services

    find_nodes = getattr(services, "find_node_ids", None)  # what Ray asks too; other versions ask otherwise
    give_up = time.monotonic() + _NODE_S
    while find_nodes is not None and not find_nodes():
        if time.monotonic() > give_up:
            raise EngineUnavailableError(
                f"this machine must be a node of the Ray cluster at {address}, but Ray does not run here. Join it with "
                f"`ray start --address={address}` (and --num-cpus=0 --num-gpus=0, if it is not to train)."
            )
        time.sleep(0.2)


def refusal(address: str, error: BaseException) -> EngineUnavailableError:
    """What to say where Ray has refused to attach: its own error is only that it did."""
    import ray

    told: BaseException | None = error
    while told is not None:
        if isinstance(told, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in str(told):
            return EngineUnavailableError(
                f"the Ray cluster at {address} asks for its token. Set RAY_AUTH_MODE=token, and bring the token of the "
                "machine where the cluster was started (`ray get-auth-token`, there) to ~/.ray/auth_token or into "
                "RAY_AUTH_TOKEN."
            )
        if "Version mismatch" in str(told):
            return EngineUnavailableError(
                f"Ray and Python must be those of the cluster at {address}: {' '.join(str(told).split())}. Install the "
                "same versions on all nodes."
            )
        told = told.__cause__
    return _not_reached(address, str(error).partition("\n")[0])


def _not_reached(address: str, reason: str) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"RAY_ADDRESS must be that of a Ray cluster that runs, but {address!r} does not answer: {reason}. "
        "Start it (`ray start --head`), correct the variable, or unset it."
    )
