"""A home for each test, on SQLite unless the test asks for PostgreSQL with `indirect=["database_url"]`."""

from pathlib import Path

import pytest

from tests.faults.on_ray import SHORT, WHOLE, run_undisturbed
from tests.places import Place
from tests.postgres import empty_database
from tests.tiny import FinishedStudy


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    return empty_database(request, tmp_path)


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Place:
    """An empty one."""
    return Place(tmp_path / "home", database_url)


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """`tests.faults.on_ray.SHORT`, run without Ray. Tests only read it."""
    return run_undisturbed(SHORT, tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """`tests.faults.on_ray.WHOLE`, run without Ray. Tests only read it."""
    return run_undisturbed(WHOLE, tmp_path_factory.mktemp("whole"))
