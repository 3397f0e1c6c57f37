"""PostgreSQL databases of released versions: today's code migrates them and reads the same from them."""

import shutil
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData, create_engine, func, select, text

from orchestrator.settings import Settings, load_settings
from orchestrator.store import database
from orchestrator.store.repository import Store
from orchestrator.study.access import find_summary, find_trials, list_studies
from tests.golden.test_homes import HOMES, VERSIONS
from tests.postgres import PostgresServer


def released_database(source: Engine, url: str) -> str:
    """Copy the rows of a released version into a PostgreSQL database with the tables of that version.

    Returns:
        Its migration.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    target = database.connect(url)
    with source.connect() as old, target.begin() as new:
        revision: str = old.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        config.attributes["connection"] = new
        command.upgrade(config, revision)
        tables, copies = MetaData(), MetaData()
        tables.reflect(old)
        copies.reflect(new)
        assert {table.name for table in tables.sorted_tables} == {table.name for table in copies.sorted_tables}
        for table in tables.sorted_tables:
            rows = [dict(row) for row in old.execute(select(table)).mappings()]
            if table.name == "alembic_version" or not rows:
                continue
            copy = copies.tables[table.name]
            new.execute(copy.insert(), rows)
            if "id" in copy.c:  # the copied rows did not move the counter
                newest = new.execute(select(func.max(copy.c.id))).scalar_one()
                new.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {newest})"))
    target.dispose()
    return revision


@pytest.fixture(params=VERSIONS)
def homes(request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path) -> tuple[Settings, Settings]:
    """A released home with its SQLite database, and the same with its rows in PostgreSQL."""
    home = Path(shutil.copytree(HOMES / request.param / "home", tmp_path / "home"))
    url = postgres.new_database()
    source = create_engine(f"sqlite:///{home}/vitsearch.db")
    assert released_database(source, url) < database.HEAD
    source.dispose()
    on_sqlite = load_settings(home=home, tracking=False)
    return on_sqlite, on_sqlite.model_copy(update={"database_url": url})


def test_an_upgraded_database_says_the_same_on_postgresql(homes: tuple[Settings, Settings]) -> None:
    on_sqlite, on_postgres = homes
    assert list_studies(on_postgres) == list_studies(on_sqlite)
    for name in ("finished", "interrupted"):
        assert find_summary(name, on_postgres) == find_summary(name, on_sqlite)
        assert find_trials(name, on_postgres) == find_trials(name, on_sqlite)


def test_an_upgraded_database_takes_new_studies(homes: tuple[Settings, Settings]) -> None:
    for settings in homes:
        store = Store.open(settings.database_url)
        study = store.create_study("new", spec={}, digest="d", data_digest="d", stage_names=[("train", "train")])
        execution = store.begin_execution(study.id)
        stage = store.begin_stage(store.stages(study.id)[0])
        trial, _ = store.begin_trial(stage, execution, number=0, point={}, sampler_state={}, seed=0)
        assert trial.id == max(one.id for one in store.trials(stage.id))
        store.delete_study(study.id)
        assert {one.name for one in store.list_studies()} == {"finished", "interrupted"}
        store.close()
