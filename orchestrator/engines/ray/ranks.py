"""A training on several GPUs: its worker trains as rank 0, and starts the other ranks in its placement group."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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


class RankWorker:
    """Runs one rank of a training; the worker of rank 0 makes it a Ray actor."""

    def run(self, task: TrainTask, place: "RankPlace") -> TaskOutcome | None:
        """The outcome of the training in this rank; `None` if another rank was lost."""
        import ray

        from trainers.training.ranks import RankLostError
        from trainers.worker import run_rank

        try:
            return run_rank(task, SilentReporter(), place._replace(own_host=ray.util.get_node_ip_address()))
        except RankLostError:
            return None


def run_with_ranks(
    run_task: Callable[[Task, Reporter], TaskOutcome], task: Task, reporter: Reporter, *, silent_minutes: float | None
) -> TaskOutcome | Lost:
    """Run a task in this process, with further ranks if it is a training in a placement group of several bundles.

    Args:
        run_task: Runs a task that this process computes alone.
        task: The task.
        reporter: Its reporter.
        silent_minutes: Time without progress after which the driver ends a training; `None` means no limit.

    Returns:
        The outcome, or `Lost` if another rank died. In that case, this process must end.
    """
    group = _placement_group()
    if not isinstance(task, TrainTask) or group is None or group.bundle_count < 2:
        return run_task(task, reporter)
    wait_s = _NO_LIMIT_S if silent_minutes is None else 60 * silent_minutes + _BEYOND_S
    return _lead(task, reporter, group, wait_s)


def _placement_group() -> Any:
    """The placement group of this process, or `None`."""
    import ray

    return ray.util.get_current_placement_group() if ray.is_initialized() else None


def _lead(task: TrainTask, reporter: Reporter, group: Any, wait_s: float) -> TaskOutcome | Lost:
    """Train as rank 0 in a thread, and watch the others."""
    import ray

    from trainers.training.ranks import RankPlace, open_listener
    from trainers.worker import run_rank

    host = ray.util.get_node_ip_address()
    listener = open_listener(host)
    place = RankPlace(0, group.bundle_count, host, listener.getsockname()[1], host, wait_s)
    workers = [_start(group, rank) for rank in range(1, place.num_ranks)]
    others = {worker.run.remote(task, place._replace(rank=rank)): rank for rank, worker in enumerate(workers, start=1)}
    result: queue.SimpleQueue[TaskOutcome | BaseException] = queue.SimpleQueue()

    def train() -> None:
        try:
            result.put(run_rank(task, reporter, place, listener))
        except BaseException as error:  # raised in the waiting thread
            result.put(error)

    threading.Thread(target=train, name="rank-0", daemon=True).start()
    try:
        return _result_of(result, others, place.num_ranks)
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
) -> TaskOutcome | Lost:
    """The result of rank 0. If another rank ends it, the reason is that of the other one."""
    from trainers.training.ranks import RankLostError

    problem: TaskOutcome | Lost | None = None
    noticed_at = 0.0
    while True:
        with contextlib.suppress(queue.Empty):
            found = result.get(timeout=_POLL_S)
            if isinstance(found, TaskOutcome):
                return found
            if not isinstance(found, RankLostError):
                raise found
            return problem or _problem_of(others, num_ranks, wait_s=_GRACE_S) or Lost(str(found))
        if problem is None:
            problem, noticed_at = _problem_of(others, num_ranks), time.monotonic()
        elif time.monotonic() - noticed_at > _GRACE_S:
            return problem  # rank 0 waits for a machine that is gone


def _problem_of(others: Mapping[Any, int], num_ranks: int, *, wait_s: float = 0.0) -> TaskOutcome | Lost | None:
    """Why another rank failed or died, as far as known after `wait_s` seconds; `None` if none did."""
    import ray

    deadline = time.monotonic() + wait_s
    while True:
        ended, _ = ray.wait(list(others), num_returns=len(others), timeout=0)
        for reference in ended:
            found = _outcome_of(reference)
            which = f"rank {others[reference]} of {num_ranks}"
            if isinstance(found, Lost):
                return Lost(f"{which} died: {found.reason}")
            if found is not None and found.state == "failed":
                return found.model_copy(update={"reason": f"{which}: {found.reason}"})
        if len(ended) == len(others) or time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_S / 5)


def _outcome_of(reference: Any) -> TaskOutcome | Lost | None:
    import ray

    try:
        found: TaskOutcome | None = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Lost(useful_line(error))
    return found


def useful_line(error: Exception) -> str:
    """The useful line of Ray's long text about the death of an actor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if line.startswith(("The actor is dead", "The actor died", "Worker exit detail"))]
    return (useful or lines or [type(error).__name__])[-1][:300]
