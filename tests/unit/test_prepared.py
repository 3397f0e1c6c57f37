"""Precompiled statements give the same results as SQLAlchemy's own execution."""

from collections.abc import Iterator

import pytest
from sqlalchemy import JSON, Column, Connection, Integer, MetaData, String, Table, bindparam, create_engine, select
from sqlalchemy.exc import IntegrityError

from orchestrator.store.prepared_statements import Prepared, prepared_insert, prepared_insert_of_new, prepared_update

metadata = MetaData()
things = Table(
    "prepared_things",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(32), nullable=False),
    Column("facts", JSON, nullable=False),
    Column("state", String(32)),
)
INSERT = prepared_insert(things, "name", "facts", key=things.c.id, fixed={"state": "new"})


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    metadata.drop_all(engine)
    engine.dispose()


def rows(connection: Connection) -> list[tuple]:
    return [tuple(row) for row in connection.execute(select(things).order_by(things.c.id))]


def test_an_insert_gives_its_key_and_fills_in_what_is_fixed(connection: Connection) -> None:
    keys = [INSERT.key(connection, name=name, facts={"is": name}) for name in ("a", "b")]
    assert rows(connection) == [(keys[0], "a", {"is": "a"}, "new"), (keys[1], "b", {"is": "b"}, "new")]


def test_many_rows_go_in_at_once(connection: Connection) -> None:
    INSERT.each(connection, [{"name": str(number), "facts": [number]} for number in range(3)])
    assert [row[1:] for row in rows(connection)] == [(str(number), [number], "new") for number in range(3)]


def test_an_update_counts_the_rows_that_it_changed(connection: Connection) -> None:
    key = INSERT.key(connection, name="a", facts={})
    rename = prepared_update(things, things.c.id == bindparam("thing_id"), things.c.state == "new", columns=("name",))
    assert rename.count(connection, thing_id=key, new_name="b") == 1
    assert rename.count(connection, thing_id=key + 1, new_name="c") == 0
    assert rows(connection) == [(key, "b", {}, "new")]


def test_a_statement_may_have_a_single_parameter(connection: Connection) -> None:
    plain = prepared_insert(things, "name", fixed={"facts": {}, "state": "old"})
    plain.each(connection, [{"name": "a"}])
    prepared_update(things, columns=("state",)).count(connection, new_state="gone")
    assert [row[1:] for row in rows(connection)] == [("a", {}, "gone")]


@pytest.mark.parametrize("is_many", [False, True])
def test_what_the_database_refuses_is_an_error_of_sqlalchemy(connection: Connection, is_many: bool) -> None:
    values = {"name": None, "facts": {}}
    with pytest.raises(IntegrityError):
        INSERT.each(connection, [values]) if is_many else INSERT.key(connection, **values)


def test_a_query_gives_its_first_row(connection: Connection) -> None:
    key = INSERT.key(connection, name="a", facts={})
    state = Prepared(select(things.c.state).where(things.c.id == bindparam("thing_id")).with_for_update())
    assert tuple(state.first(connection, thing_id=key)) == ("new",)
    assert state.first(connection, thing_id=key + 1) is None


def test_an_insert_of_a_known_row_changes_nothing(connection: Connection) -> None:
    of_new = prepared_insert_of_new(things, "id", "name", "facts")
    assert of_new.count(connection, id=7, name="a", facts={}) == 1
    assert of_new.count(connection, id=7, name="b", facts={}) == 0
    assert rows(connection) == [(7, "a", {}, None)]
