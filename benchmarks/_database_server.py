"""The PostgreSQL server of a benchmark: one that it starts, or another one."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.postgres import PostgresServer, running_server


@contextmanager
def database_server(url: str | None, *, connections: int) -> Iterator[PostgresServer]:
    """The server at `url`, or a new one that ends with the benchmark; the program ends if there is neither.

    Args:
        url: Address of another server; its user must be able to create databases.
        connections: Connections that a new server accepts.
    """
    if url is not None:
        yield PostgresServer(url)
        return
    with ExitStack() as stack:
        try:
            # As on a server: a commit waits for the disk.
            server = stack.enter_context(running_server("-c", "fsync=on", "-c", f"max_connections={connections}"))
        except pytest.skip.Exception as missing:
            sys.exit(f"error: {missing}. Install it, or give --database")
        yield server
