"""Statements that are compiled to SQL once, and executed by the driver's cursor.

SQLAlchemy's work for each call takes longer than SQLite's. Beginning and ending a trial takes about 1/6 of the CPU time
of SQLAlchemy's own `insert` and `update` (`python -m benchmarks.shortcuts`).
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, bindparam, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import Insert, Update

from orchestrator.store.upserts import insert_into

Statement = Insert | Update | Select[Any]


class _Sql(NamedTuple):
    """A statement compiled for one kind of database."""

    text: str
    in_order: Callable[[Mapping[str, Any]], Any]
    """Converts parameters by name to the driver's form: a tuple if it takes them by position."""
    processors: Mapping[str, Callable[[Any], Any]]
    """Convert a parameter to a value that the driver takes, such as JSON text."""
    fixed: Mapping[str, Any]
    """Constant parameters, converted."""


class Prepared:
    """A statement with named parameters, compiled at its first execution on each kind of database.

    Args:
        statement: The statement, or a function that makes it for the kind of database of a connection.
        key: The integer primary key of an insert's table, if `key` will be called.
    """

    def __init__(
        self, statement: Statement | Callable[[Connection], Statement], *, key: Column[Any] | None = None
    ) -> None:
        self._statement = statement
        self._key = key
        self._sql: dict[str, _Sql] = {}

    def count(self, connection: Connection, **values: Any) -> int:
        """Execute it with a value for each parameter, and return the number of changed rows."""
        return self._execute(connection, values).rowcount  # type: ignore[no-any-return]

    def key(self, connection: Connection, **values: Any) -> int:
        """Execute it with a value for each parameter, and return the key of the new row."""
        done = self._execute(connection, values)
        return int(done.lastrowid if _is_sqlite(connection) else done.scalar_one())

    def first(self, connection: Connection, **values: Any) -> Any:
        """Execute a query with a value for each parameter, and return the first row; `None` if there is none."""
        return self._execute(connection, values).fetchone()

    def each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute it for each row of parameters."""
        sql = self._sql_for(connection)
        self._run(connection, sql, [_parameters(sql, row) for row in rows], many=True)

    def _execute(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        sql = self._sql_for(connection)
        return self._run(connection, sql, _parameters(sql, values))

    def _run(self, connection: Connection, sql: _Sql, parameters: Any, *, many: bool = False) -> Any:
        if not _is_sqlite(connection):
            return connection.exec_driver_sql(sql.text, parameters)
        cursor = connection.connection.cursor()  # SQLAlchemy's result object takes as long as the statement
        try:
            return cursor.executemany(sql.text, parameters) if many else cursor.execute(sql.text, parameters)
        except sqlite3.Error as error:
            raise DBAPIError.instance(
                sql.text, parameters, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
            ) from error

    def _sql_for(self, connection: Connection) -> _Sql:
        dialect = connection.dialect
        if dialect.name not in self._sql:
            statement: Any = self._statement(connection) if callable(self._statement) else self._statement
            if self._key is not None and not _is_sqlite(connection):  # SQLite's driver knows the last key
                statement = statement.returning(self._key)
            compiled = statement.compile(dialect=dialect)
            processors = {
                name: process
                for bind, name in compiled.bind_names.items()
                if (process := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
            }
            fixed = {name: value for name, value in compiled.params.items() if value is not None}
            self._sql[dialect.name] = _Sql(
                text=str(compiled),
                in_order=_by_position(compiled.positiontup or ()) if compiled.positional else dict,
                processors={name: process for name, process in processors.items() if name not in fixed},
                fixed={name: processors[name](value) if name in processors else value for name, value in fixed.items()},
            )
        return self._sql[dialect.name]


def prepared_insert(
    table: Table, *columns: str, key: Column[Any] | None = None, fixed: Mapping[str, Any] | None = None
) -> Prepared:
    """An insert of these columns from parameters with their names, and of `fixed` columns with constant values."""
    return Prepared(insert(table).values({**{name: bindparam(name) for name in columns}, **(fixed or {})}), key=key)


def prepared_insert_of_new(table: Table, *columns: str) -> Prepared:
    """An insert of these columns that changes nothing if the table has a row with the same key."""
    values: dict[str, Any] = {name: bindparam(name) for name in columns}
    return Prepared(lambda connection: insert_into(table, connection).values(values).on_conflict_do_nothing())


def prepared_update(table: Table, *where: ColumnElement[bool], columns: Sequence[str]) -> Prepared:
    """An update of these columns from parameters with their names, prefixed by `new_`."""
    return Prepared(update(table).where(*where).values({name: bindparam(f"new_{name}") for name in columns}))


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _by_position(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple([values[name] for name in names])


def _parameters(sql: _Sql, values: Mapping[str, Any]) -> Any:
    found = {**sql.fixed, **values}
    for name, process in sql.processors.items():
        found[name] = process(found[name])
    return sql.in_order(found)
