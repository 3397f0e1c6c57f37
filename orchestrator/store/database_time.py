"""The time by the clock of the database, which all machines of a service share."""

from typing import Any

from sqlalchemy import Connection, Float, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction


class database_time(GenericFunction[float]):  # noqa: N801 - written as SQL's functions are
    """Seconds since 1970, UTC, when the statement is executed. SQLite uses the clock of this machine."""

    type = Float()
    inherit_cache = True


@compiles(database_time, "sqlite")
def _of_sqlite(element: Any, compiler: Any, **_: Any) -> str:  # noqa: ARG001 - SQLAlchemy's signature
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_time, "postgresql")
def _of_postgres(element: Any, compiler: Any, **_: Any) -> str:  # noqa: ARG001 - SQLAlchemy's signature
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def read_time(connection: Connection) -> float:
    """The time of the database now."""
    return float(connection.execute(select(database_time())).scalar_one())
