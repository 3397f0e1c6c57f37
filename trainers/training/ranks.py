"""Processes that compute one training together: each has a GPU and computes its part of every batch.

They are called ranks, as in `torch.distributed`, and numbered from 0. Each holds the whole model and takes the same
optimizer steps. The first one alone writes checkpoints, reports, and decides when the training ends.
"""

import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.training.failures import is_out_of_memory

JOIN_S = 300.0
"""Time within which all ranks must have joined."""
WAIT_S = 1800.0
"""Time that a rank waits for the others by default; validation data may be decoded meanwhile."""
_WELL, _OUT_OF_MEMORY, _FAILED = 0, 1, 2
_FIRST = 0
_GET_INTERFACE_ADDRESS = 0x8915
"""Linux's SIOCGIFADDR."""
_SOCKET_VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""The variables that choose the network interface, and how they name one. NCCL takes a name without `=` as a prefix."""

Result = TypeVar("Result")


class RankLostError(RuntimeError):
    """Another rank of the training died, failed or does not answer, so this one cannot continue."""


class CannotTakePartError(RankLostError):
    """Something on the machine of this rank keeps it from taking part; another attempt may work."""


class AgreedMemoryError(torch.OutOfMemoryError):
    """A rank ran out of memory in `Ranks.together`: all ranks know it, and raise this error at the same place."""


class RankPlace(NamedTuple):
    """A rank among the ranks of its training, and how it finds them."""

    rank: int
    num_ranks: int
    host: str
    """IPv4 address of the machine of rank 0."""
    port: int
    """Port on which rank 0 waits for the others."""
    own_host: str
    """IPv4 address of the machine of this rank."""
    wait_s: float = WAIT_S
    """Time that it waits for the others before it gives up."""
    join_s: float = JOIN_S
    """Time within which all must have joined."""


class Ranks:
    """All ranks of a training, seen from one of them. This class is that of a training in one process."""

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the checkpoints and the reports."""
        return self.rank == _FIRST

    def part_of(self, size: int, rank: int | None = None) -> slice:
        """The images of a rank, by default of this one, among `size` images."""
        number = self.rank if rank is None else rank
        return slice(number * size // self.count, (number + 1) * size // self.count)

    def together(self) -> AbstractContextManager[None]:
        """A context for work that all ranks do at the same time. If one fails in it, none goes on.

        Raises:
            RankLostError: Another rank failed.
            AgreedMemoryError: This rank or another one ran out of memory.
        """
        return nullcontext()

    def gather(self, part: Tensor, size: int) -> Tensor:  # noqa: ARG002 - used by several ranks
        """The whole tensor of `size` images from the parts of all ranks. The gradient of this rank's part is kept."""
        return part

    def spread(self, compute: Callable[..., Any], *of_images: Tensor) -> Any:
        """The result of a function without gradient, of which each rank computes the part for its images.

        Args:
            compute: Returns a tensor with one entry per image, `None`, or a tuple of such results.
            of_images: Its arguments, each with one entry per image.
        """
        return compute(*of_images)

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor with its sum over all ranks."""

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first rank."""

    def decides(self, answer: bool) -> bool:
        """The answer of the first rank."""
        return answer

    def tell(self, value: Any) -> Any:
        """The value of the first rank, as JSON transports it."""
        return value


ALONE = Ranks()
"""The ranks of a training that one process computes."""


class JoinedRanks(Ranks):
    """Several ranks, connected by `joined_ranks`. All methods must be called by all ranks, in the same order.

    Raises:
        RankLostError: In all methods: another rank died, left, or did not answer in time.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RankLostError:
            raise
        except Exception as error:
            lacks_memory = is_out_of_memory(error)
            worst = self._worst(_OUT_OF_MEMORY if lacks_memory else _FAILED)
            if not lacks_memory:
                raise
            if worst == _OUT_OF_MEMORY:
                raise AgreedMemoryError(str(error)) from error
            raise RankLostError(f"another of {self.count} ranks failed.") from error
        worst = self._worst(_WELL)
        if worst == _FAILED:
            raise RankLostError(f"another of {self.count} ranks failed.")
        if worst == _OUT_OF_MEMORY:
            raise AgreedMemoryError(f"another of {self.count} GPUs of the training ran out of memory")

    @torch.no_grad()
    def _parts(self, part: Tensor, size: int) -> list[Tensor]:
        """The parts of all ranks; shorter ones travel with padding."""
        sizes = [len(range(size)[self.part_of(size, rank)]) for rank in range(self.count)]
        padding = part.new_zeros(max(sizes) - len(part), *part.shape[1:])
        padded = torch.cat([part.detach(), padding]).contiguous()
        found = [torch.empty_like(padded) for _ in sizes]
        with self._noticing():
            dist.all_gather(found, padded)
        return [one[:length] for one, length in zip(found, sizes, strict=True)]

    def gather(self, part: Tensor, size: int) -> Tensor:
        parts = self._parts(part, size)
        parts[self.rank] = part
        return torch.cat(parts)

    def spread(self, compute: Callable[..., Any], *of_images: Tensor) -> Any:
        size = len(of_images[0])
        if size < self.count:
            return compute(*of_images)
        with self.together():
            part = compute(*(one[self.part_of(size)] for one in of_images))
        return self._gathered(part, size)

    def _gathered(self, part: Any, size: int) -> Any:
        if isinstance(part, Tensor):
            return self.gather(part, size)
        if isinstance(part, tuple):
            found = [self._gathered(one, size) for one in part]
            return type(part)(*found) if hasattr(part, "_fields") else tuple(found)
        return part

    @torch.no_grad()
    def add(self, tensor: Tensor) -> None:
        with self._noticing():
            dist.all_reduce(tensor)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        with self._noticing():
            for tensor in tensors:
                dist.broadcast(tensor, _FIRST)

    def decides(self, answer: bool) -> bool:
        return self._worst(int(answer and self.is_first)) > 0

    def tell(self, value: Any) -> Any:
        data = json.dumps(value).encode() if self.is_first else b""
        length = torch.tensor([len(data)])
        self.copy_first([length])
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.is_first:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.copy_first([content])
        return json.loads(bytes(content.tolist()))

    def _worst(self, code: int) -> int:
        """The largest number of all ranks. It travels between CPUs, so that no rank waits for its GPU."""
        worst = torch.tensor([code])
        with self._noticing():
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        return int(worst)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Turn the errors of a broken connection into ours."""
        try:
            yield
        except RuntimeError as error:  # of torch.distributed, whose classes differ between backends
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise RankLostError(f"another of {self.count} ranks died, left or did not answer: {reason}") from error


@contextmanager
def joined_ranks(place: RankPlace, device: torch.device, listener: socket.socket | None = None) -> Iterator[Ranks]:
    """Join the other ranks of a training; the context ends the connection.

    Tensors on CUDA GPUs travel by NCCL, those of CPUs by Gloo. A process may be in one such context at a time.

    Args:
        place: The rank.
        device: Device of its tensors.
        listener: The bound socket of `place.port`, for rank 0 only; it is taken over.

    Raises:
        RankLostError: The others did not join in time.
    """
    _use_interface_of(place.own_host)
    is_lost = False
    try:
        _connect(place, device, listener)
        yield JoinedRanks(place.rank, place.num_ranks)
    except RankLostError:
        is_lost = True
        raise
    finally:
        # With a lost rank, a GPU may wait for it forever, and so would this call; the caller ends the process.
        if dist.is_initialized() and not (is_lost and device.type == "cuda"):
            dist.destroy_process_group()


def _connect(place: RankPlace, device: torch.device, listener: socket.socket | None) -> None:
    join, wait = timedelta(seconds=place.join_s), timedelta(seconds=place.wait_s)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch's stubs do not export it
            place.host,
            place.port,
            place.num_ranks,
            place.rank == _FIRST,
            join,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        store.set(f"joined/{place.rank}", "yes")
        store.wait([f"joined/{rank}" for rank in range(place.num_ranks)], join)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.num_ranks, timeout=wait)
        JoinedRanks(place.rank, place.num_ranks).decides(answer=True)
    except RuntimeError as error:
        raise RankLostError(
            f"all {place.num_ranks} ranks must join within {join.total_seconds():g} s, but rank {place.rank} found no "
            f"others at {place.host}:{place.port}: {str(error).strip().partition(chr(10))[0]}"
        ) from error


def open_listener(host: str) -> socket.socket:
    """A socket on a free port of this machine, on which rank 0 waits for the others, bound to one address only."""
    return socket.create_server((host, 0), backlog=128)


def _use_interface_of(host: str) -> None:
    """Let Gloo and NCCL use the network interface with an address, unless the user has chosen one."""
    name = _interface_of(host)
    if name is not None:
        for variable, form in _SOCKET_VARIABLES.items():
            os.environ.setdefault(variable, form.format(name))


def _interface_of(host: str) -> str | None:
    """The name of the network interface with an IPv4 address; `None` if it is unknown."""
    if sys.platform != "linux":
        return None
    import fcntl

    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                found = fcntl.ioctl(probe, _GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
        if socket.inet_ntoa(found[20:24]) == host:
            return name
    return None
