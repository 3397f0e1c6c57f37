"""One torch thread per test process, an environment without user settings, and fixtures that many tests share."""

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

pytest.register_assert_rewrite("tests.places", "tests.run_tree", "tests.packs")  # failures then show the difference

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from orchestrator.engines.ray.cluster import RayCluster
    from orchestrator.store.repository import Store
    from tests.object_store import S3Server
    from tests.postgres import PostgresServer
    from tests.tiny import CommandLine, FinishedStudy

# Must be set before torch is imported. On two cores, two test processes with two threads each are slower than with one.
os.environ["OMP_NUM_THREADS"] = os.environ.get("VITSEARCH_TEST_THREADS", "1")
for _name in [name for name in os.environ if name.startswith(("VITSEARCH_", "MLFLOW_"))]:
    if not _name.startswith("VITSEARCH_TEST_"):
        del os.environ[_name]
# Tests that load images without a home folder would otherwise use that of the user.
_cache = tempfile.TemporaryDirectory(prefix="vitsearch-test-cache-")
os.environ["VITSEARCH_CACHE_FOLDER"] = _cache.name
os.environ["VITSEARCH_DRIVER_NICE"] = "0"  # drivers share the cores with the other tests
# A shell starts background processes without Ctrl-C, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ON_CLUSTER = {
    "faults/test_ray_workers.py": "faults on a cluster",
    "contracts/test_engines.py": "cluster",
    "integration/test_ray": "cluster",
    "integration/test_packs.py": "cluster",
}
"""Modules with tests on `shared_cluster`, and the scope of each: its tests run one after another in one process."""
_LONG_FIRST = ("faults", "integration", "contracts", "golden")


class _ByModule(LoadScopeScheduling):
    """Gives each module to one process of pytest-xdist, so that its fixtures are created once.

    The modules in `_ON_CLUSTER` go to two processes, and first: they take longest, mostly waiting, and every Ray
    cluster keeps a core busy for seconds. With `-m gpu`, each test goes where there is room: most are in one module.
    """

    def _split_scope(self, nodeid: str) -> str:
        if self.config.getoption("markexpr") == "gpu":
            return nodeid
        module = nodeid.partition("::")[0]
        return _scope_on_cluster(module) or module


def _scope_on_cluster(nodeid: str) -> str | None:
    place = nodeid.removeprefix("tests/")
    return next((scope for module, scope in _ON_CLUSTER.items() if place.startswith(module)), None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByModule:
    """Called by pytest-xdist if tests run in several processes."""
    config.option.loadscopereorder = False
    return _ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long modules first, and mark tests in modules that use `tests.rounding` as `numeric`.

    `make test-numeric` repeats the numeric tests.
    """
    items.sort(key=_place)
    for item in items:
        names = vars(item.module).values() if isinstance(item, pytest.Function) else ()
        if any(getattr(name, "__module__", None) == "tests.rounding" for name in names):
            item.add_marker("numeric")
        if "shared_cluster" in getattr(item, "fixturenames", ()) and _place(item) > 0:
            raise pytest.UsageError(f"{item.nodeid} uses shared_cluster: add its module to _ON_CLUSTER in {__file__}")


def _place(item: pytest.Item) -> int:
    if _scope_on_cluster(item.nodeid) is not None:
        return 0
    module = item.nodeid.removeprefix("tests/")
    return next((place for place, folder in enumerate(_LONG_FIRST, start=1) if module.startswith(folder)), 9)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed torch's global generator, so that a test does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_drawings() -> Iterator[None]:
    """Save blank figures, except in tests with the fixture `drawn_figures`."""
    from tests.blank_figures import blank_figures

    with blank_figures():
        yield


@pytest.fixture(scope="session")
def _s3_server() -> Iterator["S3Server"]:
    from tests.object_store import s3_server

    with s3_server() as running:
        yield running


@pytest.fixture
def s3(_s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "S3Server":
    """An S3-speaking server with an address for artifacts that no other test uses."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_server._replace(root=f"{_s3_server.root}-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def drawn_figures() -> Iterator[None]:
    """Draw figures as a user would see them."""
    from tests.blank_figures import figures_as_usual

    with figures_as_usual():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: with more, the work is split among cores, and sums round in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "FinishedStudy":
    """The study of `tests.tiny`, run once in this process without MLflow. Tests must not change it."""
    from tests.tiny import finish_tiny_study

    return finish_tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PostgresServer]":
    """A PostgreSQL server; tests that need it are skipped if there is none."""
    from tests.postgres import running_server

    with running_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables: first SQLite, then PostgreSQL."""
    from tests.postgres import empty_database

    return empty_database(request, tmp_path)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def migrated_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with all tables, shared by the tests that use `empty_store`."""
    from orchestrator.store.database import open_database
    from tests.postgres import empty_database

    url = empty_database(request, tmp_path_factory.mktemp("store"))
    open_database(url).dispose()
    return url


@pytest.fixture
def empty_store(migrated_database: str) -> "Iterator[Store]":
    """A store whose tables are empty; it costs less than a new database."""
    from orchestrator.store.repository import Store
    from orchestrator.store.tables import metadata

    store = Store.open(migrated_database)
    with store._engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    yield store
    store.close()


@pytest.fixture(scope="session")
def shared_cluster() -> "Iterator[Cluster]":
    """A Ray cluster of one node with two CPU cores; a test that needs it is skipped if Ray is not installed."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
    from tests.ray_local import ray_cluster

    with ray_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def address(shared_cluster: "Cluster", monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of `shared_cluster`, in an environment from which it can be reached."""
    from tests.ray_local import cluster_environment

    for name, value in cluster_environment().items():
        monkeypatch.setenv(name, value)
    return shared_cluster.address


@pytest.fixture(scope="module")
def _connection(shared_cluster: "Cluster") -> "Iterator[RayCluster]":
    from tests.ray_local import connected_to

    with connected_to(shared_cluster) as connection:
        yield connection


@pytest.fixture
def cluster(_connection: "RayCluster", address: str) -> "RayCluster":
    """Attached to `shared_cluster`, by one connection for all tests of a module."""
    return _connection


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> "CommandLine":
    """`vitsearch` in this process, in an empty folder, with the home folder `tmp_path/home` and without MLflow."""
    from tests.tiny import CommandLine

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return CommandLine(monkeypatch, capsys, home=tmp_path / "home")
