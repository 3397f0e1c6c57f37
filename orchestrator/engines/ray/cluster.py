"""Ray for one execution of a study: a cluster that is there already, or one of our own on this machine."""

import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.ray.connection import look_for, look_for_node, refusal
from orchestrator.engines.ray.health import RayHealth, Result, parts_of_ray
from orchestrator.engines.ray.placement import Node, can_hold, described, fits
from plugins.registry import FORMULA_FOLDER_VARIABLE, FORMULA_SUFFIX
from trainers.hardware.host import available_cores

_OBJECT_STORE_BYTES = 100 * 2**20
"""Tasks and reports are small; images are read by each worker itself."""
_LONGEST_TEMPORARY = 40
"""Characters. Ray puts Unix sockets, whose paths must stay below 108, some 65 characters deeper."""
_START_TRIES = 3
_PREFIX = "vitsearch-ray-"
_REFRESH_S = 5.0
_NO_ROOM_S = 120.0
"""A trial that no node is large enough for waits so long for a node that comes back, or a larger one."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU share sees no GPU
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call that outlives Ray must not start another one
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails in its first epoch has none
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # our rows are the only record
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "-1",
}
_OF_WORKERS = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", FORMULA_FOLDER_VARIABLE)
"""Variables that the workers of a cluster get; Ray of our own hands on all."""
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""On any system; read when Ray is imported."""
_FEW_TRIES = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
"""Seconds that a wrong token takes; read when Ray is imported."""

_logger = logging.getLogger(__name__)


class RayCluster:
    """Started or attached to when it is first used, left or stopped by `close`.

    Args:
        address: Of a cluster (`RAY_ADDRESS`); `None` starts Ray on this machine: without dashboard and telemetry, on
            the loopback address only, with a token of its own, and with its files in a folder that goes with it.
        num_cpus: Of this machine, for Ray of our own; by default those that this process may use.
        shared: A folder that every node of a cluster must be able to write into; made for that, and removed again.
        sources: Files and folders that every node of a cluster must be able to read.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: int | None = None,
        shared: Path | None = None,
        sources: Sequence[Path] = (),
    ) -> None:
        self._address = address
        self._num_cpus = num_cpus
        self._shared = shared
        self._sources = (*sources, *_saved_formulas())
        self._checked: set[str] = set()
        self._no_room_since: float | None = None
        self._folder: Path | None = None
        self._health: RayHealth | None = None
        self._nodes: tuple[Node, ...] = ()
        self._looked_at = 0.0

    @property
    def is_local(self) -> bool:
        """Whether it is Ray of our own."""
        return self._address is None

    def start(self) -> None:
        """Start or attach, once.

        Raises:
            EngineUnavailableError: It does not start, or the address does not answer.
        """
        if self._health is not None:
            return
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        if self._address is None:
            self._start_local()
        else:
            self._attach(self._address)
        self._health = RayHealth(parts_of_ray(self._address))
        atexit.register(self.close)

    def close(self) -> None:
        """Leave the cluster; Ray of our own is stopped, and its files are removed, with those of killed processes."""
        if self.is_local:
            _remove_folders_of_the_dead()
        if self._health is None:
            return
        import ray

        is_dead = self.is_dead
        self._health.close()
        self._health = None
        atexit.unregister(self.close)
        if is_dead and self._folder is not None:
            _end_processes_of(self._folder)
        ray.shutdown()  # some 7 s without a head, and never for ever
        self._remove_folder()

    @property
    def is_dead(self) -> bool:
        """Whether Ray was started and has died since."""
        return self._health is not None and self._health.is_dead

    def check(self) -> None:
        """Return if Ray lives, or was not started.

        Raises:
            EngineUnavailableError: A process of Ray that everything depends on has died.
        """
        if self._health is not None:
            self._health.check()

    def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns that waits for Ray, and would for ever if it died.

        Raises:
            EngineUnavailableError: Ray does not start, or has died before its end.
        """
        self.start()
        assert self._health is not None
        return self._health.call(function)

    def nodes(self) -> tuple[Node, ...]:
        """The living nodes, looked at every few seconds: some may come and go.

        Raises:
            EngineUnavailableError: One that is new cannot run trials.
        """
        self.start()
        self.check()
        import ray

        now = time.monotonic()
        if not self._nodes or now - self._looked_at > _REFRESH_S:
            alive = [node for node in self.call(ray.nodes) if node["Alive"]]
            self._check([node for node in alive if node["NodeID"] not in self._checked])
            resources = [node["Resources"] for node in alive]
            self._nodes = tuple(Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in resources)
            self._looked_at = time.monotonic()
        return self._nodes

    def has_gpus(self) -> bool:
        """Whether any node has one."""
        return any(node.num_gpus for node in self.nodes())

    def room_for(self, num_cpus: float, num_gpus: float) -> int:
        """How many workers of that size fit on all nodes together; 0 while a cluster may still get a larger node.

        Raises:
            EngineUnavailableError: There is room for none: on this machine, or for a while on a cluster.
        """
        room = sum(fits(node, num_cpus, num_gpus) for node in self.nodes())
        if room:
            self._no_room_since = None
            return room
        wanted = f"asks for {num_cpus:g} CPU cores and {num_gpus:g} GPUs"
        if self.is_local:
            raise EngineUnavailableError(
                f"a trial must fit on this machine, but {wanted} where Ray has {described(self.nodes())}. Lower "
                "`resources` in the study file."
            )
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
        if now - self._no_room_since > _NO_ROOM_S:
            raise EngineUnavailableError(
                f"a trial must fit on a node of the Ray cluster, but {wanted}, and for {_NO_ROOM_S:g} seconds there "
                f"was no such node ({described(self.nodes())}). Add a larger node, or lower `resources` in the study "
                "file."
            )
        return 0

    def holds(self, shares: Iterable[tuple[float, float]]) -> bool:
        """Whether workers with so many CPU cores and GPUs each fit on the nodes side by side."""
        return can_hold(self.nodes(), shares)

    def _start_local(self) -> None:
        _remove_folders_of_the_dead()
        with _environment({**_LOOPBACK_ONLY, "RAY_AUTH_TOKEN": _token()}):
            for attempt in range(1, _START_TRIES + 1):
                self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_temporary()))
                try:
                    self._init(
                        address="local",
                        num_cpus=self._num_cpus or available_cores(),
                        object_store_memory=_OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        _temp_dir=str(self._folder),
                    )
                except Exception as error:  # Ray raises a bare Exception when its processes are slow to come
                    self._clean_up_failed_start()
                    if attempt == _START_TRIES:
                        reason = str(error).partition("\n")[0]
                        raise EngineUnavailableError(
                            f"Ray must start on this machine, but did not in {attempt} tries: {reason}. Use "
                            "`pool: inline`, or set RAY_ADDRESS to a cluster that runs."
                        ) from error
                    _logger.info("Ray did not start, trying again: %s", error)
                else:
                    return

    def _attach(self, address: str) -> None:
        look_for(address)
        variables = {name: os.environ[name] for name in _OF_WORKERS if name in os.environ}
        with _environment(_FEW_TRIES):
            import ray
        look_for_node(address)
        try:
            self._init(address=address, runtime_env={"env_vars": variables})
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            raise refusal(address, error) from error

    def _check(self, new: Sequence[Mapping[str, Any]]) -> None:
        if self._address is None or not new:
            return
        from orchestrator.engines.ray.node_checks import check_nodes

        self.call(lambda: check_nodes(new, folder=self._shared, sources=self._sources))
        self._checked.update(node["NodeID"] for node in new)

    def _init(self, **options: Any) -> None:
        import ray

        if ray.is_initialized():
            raise EngineUnavailableError(
                "this process must not use Ray otherwise while a study runs, but Ray is initialised already. "
                "Call ray.shutdown() before."
            )
        with _own_signals():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        _keep_stdout_clean()

    def _clean_up_failed_start(self) -> None:
        import ray

        ray.shutdown()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # a dying process may still write a last log line
            self._folder = None


def _saved_formulas() -> Iterator[Path]:
    """The folder of formulas that are proxies, where it has any."""
    folder = os.environ.get(FORMULA_FOLDER_VARIABLE)
    if folder and any(Path(folder).glob(f"*{FORMULA_SUFFIX}")):
        yield Path(folder)


def _short_temporary() -> str:
    found = tempfile.gettempdir()
    return found if len(found) <= _LONGEST_TEMPORARY else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it


def _remove_folders_of_the_dead() -> None:
    """A killed process could not remove its Ray's files; its Ray is gone with it."""
    for path in Path(_short_temporary()).glob(f"{_PREFIX}*"):
        process = path.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _end_processes_of(folder: Path) -> None:
    """End what is left of Ray whose files are there: without a head, some of it would wait for one another minute."""
    import psutil  # comes with Ray

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended
            if str(folder) in " ".join(child.cmdline()):
                for process in [child, *child.children(recursive=True)]:
                    process.kill()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _token() -> str:
    """One for all of this process's clusters: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """While inside, these variables are set; Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes over SIGTERM, which is how a study is asked to end; afterwards it is ours again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _keep_stdout_clean() -> None:
    """Ray prints on stdout that a worker died, whatever it is told; stdout is for results, and the pool tells."""
    from ray._private import worker

    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False
