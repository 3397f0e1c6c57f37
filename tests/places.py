"""Homes and databases of test studies, and assertions about their rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from orchestrator.settings import Settings, load_settings
from orchestrator.store.database import connect, sqlite_file
from orchestrator.store.records import FINISHED
from orchestrator.study.access import study_folder
from tests.tiny import FinishedStudy, Rows, differences, read_rows

TABLES = ("studies", "executions", "stages", "trials", "attempts", "reports", "checkpoints", "outbox")


@dataclass(frozen=True)
class Place:
    """A home folder and a database, SQLite or PostgreSQL; the folder of artifacts may lie elsewhere."""

    home: Path
    database_url: str
    artifact_root: Path | str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for a separate process."""
        places = {"VITSEARCH_HOME": str(self.home), "VITSEARCH_DATABASE_URL": self.database_url}
        elsewhere = {} if self.artifact_root is None else {"VITSEARCH_ARTIFACT_ROOT": str(self.artifact_root)}
        return places | elsewhere

    @property
    def is_postgres(self) -> bool:
        return self.database_url.startswith("postgresql")

    def settings(self, **given: Any) -> Settings:
        places = {"home": self.home, "database_url": self.database_url}
        elsewhere = {} if self.artifact_root is None else {"artifact_root": self.artifact_root}
        return load_settings(**{**places, **elsewhere, "tracking": False, **given})

    def rows(self, name: str = "tiny") -> Rows:
        return read_rows(self.home, name, settings=self.settings())

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the database, which a study may be using; an empty list if there are no tables yet."""
        with self.watch() as watch:
            return watch(statement)

    @contextmanager
    def watch(self) -> Iterator["Watch"]:
        """One connection for many queries."""
        engine = connect(self.database_url)
        try:
            yield Watch(engine, self.database_url)
        finally:
            engine.dispose()


class Watch:
    """Queries over one connection."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self._file = sqlite_file(url)

    def __call__(self, statement: str) -> list[tuple[Any, ...]]:
        if self._file is not None and not self._file.exists():
            return []
        try:
            with self._engine.connect() as connection:
                return [tuple(row) for row in connection.execute(text(statement))]
        except (OperationalError, ProgrammingError) as error:
            if "no such table" not in str(error) and "does not exist" not in str(error):
                raise
            return []

    def steps(self) -> int:
        """Progress of a study: number of started attempts and reported epochs."""
        found = self("SELECT (SELECT count(*) FROM attempts) + (SELECT count(*) FROM reports)")
        return int(found[0][0]) if found else 0


def place_of(study: FinishedStudy) -> Place:
    """Home and database of the finished tiny study."""
    return Place(study.home, study.settings.database_url)


def counts(place: Place) -> dict[str, int]:
    """Number of rows in each table."""
    return {table: place.query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}


def finished_epochs(place: Place) -> dict[tuple[int, int], str]:
    """Every reported epoch with its values. They include its duration, so a repeated epoch has other values."""
    found = place.query('SELECT trial_id, epoch, "values" FROM reports')
    return {(trial, epoch): str(values) for trial, epoch, values in found}


def assert_is_the_same_study(place: Place, tiny: FinishedStudy) -> None:
    """Assert that trials, points, metrics, curves, results and the champion's weights are equal."""
    rows = place.rows()
    assert differences(rows, tiny.rows) == []
    mine, theirs = (
        load_file(study_folder(settings, one.study) / one.stages["promote"].result["folder"] / "model.safetensors")
        for settings, one in ((place.settings(), rows), (tiny.settings, tiny.rows))
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6, rtol=0) for name in mine)


def assert_rows_are_true(place: Place, *, given_up: int = 0) -> None:
    """Assert that no row has the state `running`, trials are numbered without gaps, and none finished twice.

    Args:
        place: Home and database of the study.
        given_up: Number of trials that were marked as failed although none of their attempts ended.
    """
    with place.watch() as query:
        for table in ("studies", "executions", "stages", "trials", "attempts"):
            assert query(f"SELECT count(*) FROM {table} WHERE state = 'running'") == [(0,)]
        numbers: dict[int, list[int]] = {}
        for stage, number in query("SELECT stage_id, number FROM trials ORDER BY stage_id, number"):
            numbers.setdefault(stage, []).append(number)
        assert all(found == list(range(len(found))) for found in numbers.values())
        finished = f"state IN ({', '.join(repr(state) for state in sorted(FINISHED))})"
        twice = f"SELECT trial_id FROM attempts WHERE {finished} GROUP BY trial_id HAVING count(*) > 1"
        assert query(twice) == []
        trials, attempts = (query(f"SELECT count(*) FROM {table} WHERE {finished}") for table in ("trials", "attempts"))
        assert trials[0][0] == attempts[0][0] + given_up
