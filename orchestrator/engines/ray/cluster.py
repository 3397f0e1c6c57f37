"""Ray for one execution of a study: an existing cluster, or a local one on this machine."""

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

from orchestrator.abrupt_end import before_abrupt_end
from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.ray.connection import check_address, check_node, refusal
from orchestrator.engines.ray.health import RayHealth, Result, parts_of_ray
from orchestrator.engines.ray.placement import Node, can_hold, described, room
from plugins.registry import FORMULA_FOLDER_VARIABLE, FORMULA_SUFFIX
from trainers.data.cache_settings import CACHE_VARIABLE
from trainers.hardware.host import available_cores

_OBJECT_STORE_BYTES = 100 * 2**20
"""This is enough, because tasks and reports are small and each worker reads the images itself."""
_MAX_TEMPORARY_LENGTH = 40
"""In characters. Ray appends about 65 for Unix sockets, whose paths must be shorter than 108."""
_START_TRIES = 3
_REMOVE_TRIES, _REMOVE_PAUSE_S = 20, 0.1
_PREFIX = "vitsearch-ray-"
_REFRESH_S = 5.0
ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray names the kind of a node's accelerators."""
_NO_ROOM_S = 120.0
"""Time that a trial waits for a larger node if no node is large enough."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU share sees no GPU
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call that outlives Ray must not start it again
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails in its first epoch has none
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # never: our rows are the only record
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "-1",
}
_WORKER_VARIABLES = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", FORMULA_FOLDER_VARIABLE, CACHE_VARIABLE)
"""Variables passed to the workers of a cluster; workers of local Ray inherit all."""
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""On every system; read when Ray is imported."""
_SAME_PRIORITY = {"RAY_worker_niceness": "0"}
"""Ray gives its workers a low priority by default, which nearly stops trials while other programs are busy."""
_FEW_RETRIES = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
"""One per second until a wrong token is reported; read when Ray is imported."""

_logger = logging.getLogger(__name__)


class RayCluster:
    """A connection to Ray that starts at its first use and ends with `close`.

    Args:
        address: Address of a cluster (`RAY_ADDRESS`). `None` starts Ray on this machine, without dashboard and
            telemetry, on the loopback address only, with its own token, and with its files in a temporary folder.
        num_cpus: CPU cores for local Ray; by default all that this process may use.
        shared: A folder that every node of a cluster must be able to write to; made for the check, and removed again.
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
        self._forget_last_act: Callable[[], None] = lambda: None
        self._health: RayHealth | None = None
        self._nodes: tuple[Node, ...] = ()
        self._refreshed_at = 0.0

    @property
    def is_local(self) -> bool:
        """Whether Ray runs on this machine, for this process only."""
        return self._address is None

    def start(self) -> None:
        """Start Ray or attach to the cluster, once.

        Raises:
            EngineUnavailableError: Ray does not start, or the address does not answer.
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
        self._forget_last_act = before_abrupt_end(self._remove_folder)

    def close(self) -> None:
        """Leave the cluster. Local Ray stops, and its files are removed, with those of killed processes."""
        if self.is_local:
            _remove_stale_folders()
        if self._health is None:
            return
        import ray

        is_dead = self.is_dead
        self._health.close()
        self._health = None
        atexit.unregister(self.close)
        if is_dead and self._folder is not None:
            _end_processes_of(self._folder)
        ray.shutdown()  # takes about 7 s without a head
        self._remove_folder()
        self._forget_last_act()

    @property
    def is_dead(self) -> bool:
        """Whether Ray was started and has died since."""
        return self._health is not None and self._health.is_dead

    def check(self) -> None:
        """Return if Ray runs, or was not started.

        Raises:
            EngineUnavailableError: An essential process of Ray has died.
        """
        if self._health is not None:
            self._health.check()

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function that waits for Ray, without waiting forever if Ray dies.

        Raises:
            EngineUnavailableError: Ray does not start, or died during the call.
        """
        self.start()
        assert self._health is not None
        return self._health.call(function)

    def nodes(self) -> tuple[Node, ...]:
        """The living nodes, refreshed every few seconds.

        Raises:
            EngineUnavailableError: A new node cannot run trials.
        """
        self.start()
        self.check()
        import ray

        now = time.monotonic()
        if not self._nodes or now - self._refreshed_at > _REFRESH_S:
            alive = [node for node in self.call(ray.nodes) if node["Alive"]]
            self._check([node for node in alive if node["NodeID"] not in self._checked])
            resources = [node["Resources"] for node in alive]
            self._nodes = tuple(Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in resources)
            self._refreshed_at = time.monotonic()
        return self._nodes

    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return any(node.num_gpus for node in self.nodes())

    def gpu_kinds(self) -> tuple[str, ...]:
        """Kinds of GPUs as Ray names them (`accelerator_type:H200`), without those that it does not know."""
        import ray

        found = [node["Resources"] for node in self.call(ray.nodes) if node["Alive"]]
        named = {name for one in found if one.get("GPU") for name in one if name.startswith(ACCELERATOR)}
        return tuple(sorted(named))

    def room_for(self, num_cpus: float, num_gpus: float) -> int:
        """Number of workers of that size that fit on all nodes; 0 while a cluster may still get a larger node.

        Raises:
            EngineUnavailableError: No worker fits on this machine, or none has fit on the cluster for a while.
        """
        found = room(self.nodes(), num_cpus, num_gpus)
        if found:
            self._no_room_since = None
            return found
        wanted = f"asks for {num_cpus:g} CPU cores and {num_gpus:g} GPUs"
        if self.is_local:
            raise EngineUnavailableError(
                f"a trial must fit on this machine, but it {wanted}, and Ray has {described(self.nodes())}. Lower "
                "`resources` in the study file."
            )
        now = time.monotonic()
        if self._no_room_since is None:
            self._no_room_since = now
        if now - self._no_room_since > _NO_ROOM_S:
            raise EngineUnavailableError(
                f"a trial must fit on {'the nodes' if num_gpus > 1 else 'a node'} of the Ray cluster, but it {wanted}, "
                f"and for {_NO_ROOM_S:g} seconds there was no such {'room' if num_gpus > 1 else 'node'} "
                f"({described(self.nodes())}). Add a larger node, or lower `resources` in the study file."
            )
        return 0

    def holds(self, shares: Iterable[tuple[float, float]]) -> bool:
        """Whether workers with these shares (CPU cores, GPUs) fit on the nodes together."""
        return can_hold(self.nodes(), shares)

    def _start_local(self) -> None:
        _remove_stale_folders()
        priority = {name: os.environ.get(name, value) for name, value in _SAME_PRIORITY.items()}
        with _environment({**_LOOPBACK_ONLY, **priority, "RAY_AUTH_TOKEN": _token()}), without_unused_services():
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
                except Exception as error:  # Ray raises a bare Exception if its processes are slow to start
                    self._clean_up_failed_start()
                    if attempt == _START_TRIES:
                        reason = str(error).partition("\n")[0]
                        raise EngineUnavailableError(
                            f"Ray must start on this machine, but did not in {attempt} tries: {reason}. Use "
                            "`pool: inline`, or set RAY_ADDRESS to a running cluster."
                        ) from error
                    _logger.info("Ray did not start, trying again: %s", error)
                else:
                    return

    def _attach(self, address: str) -> None:
        check_address(address)
        variables = {name: os.environ[name] for name in _WORKER_VARIABLES if name in os.environ}
        with _environment(_FEW_RETRIES):
            import ray
        check_node(address)
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
                "a process that runs a study must not use Ray for anything else, but Ray is already initialised in it. "
                "Call ray.shutdown() first."
            )
        with _keep_signal_handlers():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        _keep_stdout_clean()

    def _clean_up_failed_start(self) -> None:
        import ray

        ray.shutdown()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            _remove_files(self._folder)
            self._folder = None


def _saved_formulas() -> Iterator[Path]:
    """The folder of saved formulas, if it contains any."""
    folder = os.environ.get(FORMULA_FOLDER_VARIABLE)
    if folder and any(Path(folder).glob(f"*{FORMULA_SUFFIX}")):
        yield Path(folder)


def _remove_files(folder: Path) -> None:
    """Remove Ray's files, again if a dying process has added its last log line meanwhile."""
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)


def _short_temporary() -> str:
    found = tempfile.gettempdir()
    is_short = len(found) <= _MAX_TEMPORARY_LENGTH or os.name == "nt"  # Ray uses no Unix sockets on Windows
    return found if is_short else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it


def _remove_stale_folders() -> None:
    """Remove files of local Ray whose process was killed."""
    for path in Path(_short_temporary()).glob(f"{_PREFIX}*"):
        process = path.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _end_processes_of(folder: Path) -> None:
    """End remaining processes of local Ray. Without the head, some of them would keep waiting for another minute.

    Those of a raylet that has died are no longer children of this process. A worker that is starting would write to the
    folder after its removal.
    """
    import psutil  # comes with Ray

    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is somebody else's
            if any(word.startswith("-") and str(folder) in word for word in one.cmdline()):
                for process in [one, *one.children(recursive=True)]:
                    process.kill()


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # unknown: os.kill would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _token() -> str:
    """A token for all clusters of this process, because Ray reads it only once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which Ray's processes inherit, and reset them afterwards."""
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
def without_unused_services() -> Iterator[None]:
    """Start a node without services of Ray that nothing here uses, and that its settings cannot switch off.

    The API server serves the dashboard and Ray's state commands. Without a dashboard and with usage statistics off, it
    still starts and asks addresses of cloud providers where it runs. A test watches the connections of all processes.
    The monitors adapt the size of a cluster and print the logs of workers; each costs a second of CPU time.
    """
    from ray._private import node, services

    replaced: dict[str, tuple[Any, Callable[..., Any]]] = {
        "start_api_server": (services, lambda *_, **__: (None, None)),  # address and process
        "start_monitor": (node.Node, lambda _: None),
        "start_log_monitor": (node.Node, lambda _: None),
    }
    # Another version of Ray may lack one of them.
    before = [(owner, name, getattr(owner, name)) for name, (owner, _) in replaced.items() if hasattr(owner, name)]
    for owner, name, _ in before:
        setattr(owner, name, replaced[name][1])
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore our signal handlers afterwards: Ray replaces that of SIGTERM, which asks a study to end."""
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
    """Stop Ray from printing the death of workers on stdout, which is for results; the pool reports it."""
    from ray._private import worker

    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False
