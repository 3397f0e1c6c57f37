"""A training on several GPUs: its worker trains as rank 0, and starts the other ranks in its placement group."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.engines.interfaces import Lost
from trainers.config import Task, TaskOutcome, TrainTask
from trainers.training.reporting import Reporter, SilentReporter

if TYPE_CHECKING:
    from trainers.training.ranks import RankPlace

_POLL_S = 0.5
_GRACE_S = 10.0
"""Time for a rank to notice the death of another one, or for the reason of a failure to arrive."""
_BEYOND_S = 60.0
"""A rank waits so much longer for the others than a training may be silent, whose end the driver decides."""
_NO_LIMIT_S = 24 * 3600.0


class RanksResult(NamedTuple):
    """How a task ended that may have had several ranks."""

    outcome: TaskOutcome | Lost
    """`Lost` if another rank died, or could not take part."""
    ends_process: bool = False
    """Whether this process must end, because its rank may wait for another one, and has not left their connection."""


class RankWorker:
    """Runs one rank of a training; the worker of rank 0 makes it a Ray actor."""

    def run(self, task: TrainTask, place: "RankPlace") -> TaskOutcome | Lost | None:
        """The outcome of the training in this rank; `Lost` if it cannot take part; `None` if another rank was lost."""
        import ray

        from trainers.training.ranks import CannotTakePartError, RankLostError
        from trainers.worker import run_rank

        try:
            return run_rank(task, SilentReporter(), place._replace(own_host=ray.util.get_node_ip_address()))
        except CannotTakePartError as error:
            return Lost(str(error))
        except RankLostError:
            return None


def run_with_ranks(
    run_task: Callable[[Task, Reporter], TaskOutcome],
    task: Task,
    reporter: Reporter,
    *,
    num_ranks: int,
    silent_minutes: float | None,
) -> RanksResult:
    """Run a task in this process. A training with several ranks has the others in this process's placement group.

    Args:
        run_task: Runs a task that this process computes alone.
        task: The task.
        reporter: Its reporter.
        num_ranks: Number of processes of a training; their bundles come first in the placement group.
        silent_minutes: Time without progress after which the driver ends a training; `None` means no limit.
    """
    if not isinstance(task, TrainTask) or num_ranks < 2:
        return RanksResult(run_task(task, reporter))
    wait_s = _NO_LIMIT_S if silent_minutes is None else 60 * silent_minutes + _BEYOND_S
    return _lead(task, reporter, num_ranks, wait_s)


def _lead(task: TrainTask, reporter: Reporter, num_ranks: int, wait_s: float) -> RanksResult:
    """Train as rank 0 in a thread, and watch the others."""
    import ray

    from trainers.training.ranks import JOIN_S, RankPlace, open_listener
    from trainers.worker import run_rank

    group = ray.util.get_current_placement_group()
    host = ray.util.get_node_ip_address()
    listener = open_listener(host)
    place = RankPlace(0, num_ranks, host, listener.getsockname()[1], host, wait_s, min(JOIN_S, wait_s))
    workers = [_start(group, rank) for rank in range(1, num_ranks)]
    others = {worker.run.remote(task, place._replace(rank=rank)): rank for rank, worker in enumerate(workers, start=1)}
    result: queue.SimpleQueue[TaskOutcome | BaseException] = queue.SimpleQueue()

    def train() -> None:
        try:
            result.put(run_rank(task, reporter, place, listener))
        except BaseException as error:  # raised in the waiting thread
            result.put(error)

    threading.Thread(target=train, name="rank-0", daemon=True).start()
    try:
        return _result_of(result, others, num_ranks)
    finally:
        for worker in workers:
            ray.kill(worker, no_restart=True)


def _start(group: Any, rank: int) -> Any:
    """Start the process of another rank, in its bundle."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = group.bundle_specs[rank]
    actor = ray.remote(RankWorker).options(
        num_cpus=bundle.get("CPU", 0),
        num_gpus=bundle.get("GPU", 0),
        max_restarts=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
    )
    return actor.remote()


def _result_of(
    result: "queue.SimpleQueue[TaskOutcome | BaseException]", others: Mapping[Any, int], num_ranks: int
) -> RanksResult:
    """The result of rank 0. If another rank ends it, the reason is that of the other one."""
    from trainers.training.ranks import RankLostError

    problem: TaskOutcome | Lost | None = None
    noticed_at = 0.0
    while True:
        with contextlib.suppress(queue.Empty):
            found = result.get(timeout=_POLL_S)
            if isinstance(found, TaskOutcome):
                return RanksResult(found)
            if not isinstance(found, RankLostError):
                raise found
            problem = problem or _problem_of(others, num_ranks, wait_s=_GRACE_S) or Lost(str(found))
            return RanksResult(problem, ends_process=True)
        if problem is None:
            problem, noticed_at = _problem_of(others, num_ranks), time.monotonic()
        elif time.monotonic() - noticed_at > _GRACE_S:
            return RanksResult(problem, ends_process=True)  # rank 0 still waits for the other one


def _problem_of(others: Mapping[Any, int], num_ranks: int, *, wait_s: float = 0.0) -> TaskOutcome | Lost | None:
    """Why another rank failed or died, as far as known after `wait_s` seconds; `None` if none did."""
    import ray

    deadline = time.monotonic() + wait_s
    while True:
        ended, _ = ray.wait(list(others), num_returns=len(others), timeout=0)
        problems = [_problem_in(reference, f"rank {others[reference]} of {num_ranks}") for reference in ended]
        found = [problem for problem in problems if problem is not None]
        if found:
            return min(found, key=lambda problem: not isinstance(problem, Lost))  # another attempt may work
        if len(ended) == len(others) or time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_S / 5)


def _problem_in(reference: Any, rank: str) -> TaskOutcome | Lost | None:
    """Why a rank that has ended failed, could not take part, or died; `None` if it did not."""
    import ray

    try:
        found: TaskOutcome | Lost | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Lost(f"{rank} died: {useful_line(error)}")
    if isinstance(found, TaskOutcome):
        failed = found.state == "failed"
        return found.model_copy(update={"reason": f"{rank}: {found.reason}"}) if failed else None
    return found


def useful_line(error: Exception) -> str:
    """The useful line of Ray's long text about the death of an actor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith(("The actor is dead", "The actor died", "Worker exit detail"))]
    return (useful or lines or [type(error).__name__])[-1][:300]
