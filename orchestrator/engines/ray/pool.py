"""Pool `ray`: long-lived Ray actors, each of which does a task or a pack at a time and is fed ahead with short ones."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from orchestrator.engines.interfaces import EngineUnavailableError, Lost
from orchestrator.engines.pools.pack_queue import PackQueue
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.placement import Node
from orchestrator.engines.ray.trial_resources import Share, SharePlanner
from orchestrator.engines.ray.worker import RUN_PACKED, RUN_TASK, SILENT, Ended, Reported, Taken, TaskWorker, Work
from trainers.config import Configuration, Resources, Task, TaskOutcome, TrainTask
from trainers.training.packing import is_tried_alone
from trainers.training.reporting import Reporter

_TAKE_S = 20.0
_LOOK_S = 0.2
"""Time between two questions whether running tasks should stop."""
_AHEAD_S = 0.25
"""Work that a worker has in store, so that it never waits for the driver."""
_MOST_AHEAD = 32
_SMOOTHING = 0.2
_GET_S = 30.0
"""For news that are on this machine already."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    share: Share
    messages: Any
    """What its next messages will be, as Ray's promise."""
    keys: deque[int] = field(default_factory=deque)
    """Tasks that it has, in its order; the first one runs, or a pack of all of them."""
    stopped: set[int] = field(default_factory=set)
    is_proven: bool = False
    """It has answered before."""
    asked_at: float = field(default_factory=time.monotonic)
    """When it was last asked for messages."""


class RayPool:
    """Workers are started when there are tasks for them, up to what the cluster has room for, and kept.

    A worker whose process dies loses the task that ran. What it had in store goes to other workers; where several
    tasks could have been the one that killed it, of a pack or of a store, they are tried one at a time, so that none is
    blamed for another.

    Args:
        cluster: Where the workers are; started when the first task comes.
        shares: What a task's worker gets of its machine; by default a core.
        max_concurrent: Workers at once, at most.
        silent_minutes: A training that gives no sign of life for so long fails, and its worker is killed.
        run_task: What does a task, as `module:function`.
        run_packed: What does a pack.
    """

    def __init__(
        self,
        cluster: RayCluster,
        *,
        shares: SharePlanner | None = None,
        max_concurrent: int | None = None,
        silent_minutes: float | None = None,
        run_task: str = RUN_TASK,
        run_packed: str = RUN_PACKED,
    ) -> None:
        self._cluster = cluster
        self._silent_minutes = silent_minutes
        self._shares = shares or SharePlanner(cluster, Resources(cpus_per_trial=1, gpus_per_trial=0))
        self._max_concurrent = max_concurrent
        self._run = run_task, run_packed
        self._workers: list[_Worker] = []
        self._tasks: dict[int, tuple[Task, Reporter, Share]] = {}
        self._queue = PackQueue()
        self._ended: deque[tuple[int, TaskOutcome | Lost]] = deque()
        self._alone: set[int] = set()
        self._task_s: float | None = None  # of short tasks, smoothed
        self._latest: tuple[Share, bool] | None = None
        self._nodes: Sequence[Node] = ()  # on which the workers were last seen to fit

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        if self._shares.must_measure():
            self.release()
        self._shares.prepare(configurations)

    def has_room(self) -> bool:
        """Whether a worker would be without work, or a fed one without a store."""
        if self._latest is None or not self._tasks:
            return not self._tasks
        share, is_training = self._latest
        if is_training:
            return self._queue.wants_more and (self._has_idle(share) or self._may_start(share))
        workers = self._cluster.room_for(*share)
        if self._max_concurrent is not None:
            workers = min(workers, self._max_concurrent)
        return len(self._tasks) < max(workers, 1) * self._depth()

    def is_busy(self) -> bool:
        return bool(self._tasks or self._ended)

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        share = self._shares(task)
        self._tasks[key] = task, reporter, share
        self._latest = share, isinstance(task, TrainTask)
        self._queue.add(key, task, largest=self._shares.pack_size(task))
        if self._queue.has_full_pack and (self._has_idle(share) or self._may_start(share)):
            self._dispatch(only_full=True)  # others are sent with the next ones, together

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        import ray

        while True:
            self._cluster.check()
            self._fit_nodes()
            self._dispatch()
            if self._ended:
                return self._ended.popleft()
            self._pass_on_stops()
            self._judge_the_mute()
            if not self._workers:
                time.sleep(_LOOK_S)  # until a node has room for one
                continue
            ready, _ = ray.wait([worker.messages for worker in self._workers], num_returns=1, timeout=_LOOK_S)
            for promise in ready:
                self._receive(next(worker for worker in self._workers if worker.messages == promise))

    def release(self) -> None:
        """End the workers that have no work, so that others can use what they held."""
        for worker in [worker for worker in self._workers if not worker.keys]:
            self._end(worker)

    def process_ids(self) -> list[int]:
        """Of the workers, each on its own machine."""
        import ray

        found: list[int] = ray.get([worker.handle.process_id.remote() for worker in self._workers])
        return found

    def close(self) -> None:
        """Kill the workers and leave the cluster."""
        for worker in list(self._workers):
            if self._cluster.is_dead:
                worker.handle.leave.remote()  # Ray may be unable to end it
            self._end(worker)
        self._tasks.clear()
        self._queue.clear()
        self._ended.clear()
        self._cluster.close()

    # --- from the queue to workers ---

    def _dispatch(self, *, only_full: bool = False) -> None:
        batches: dict[_Worker, list[Work]] = {}
        while self._queue and (self._queue.has_full_pack or not only_full):
            worker = self._worker_for(self._queue.peek()[0])
            if worker is None:
                break
            keys = self._queue.take()
            worker.keys.extend(keys)
            batches.setdefault(worker, []).append([(key, self._tasks[key][0]) for key in keys])
        for worker, works in batches.items():
            worker.handle.push.remote(works)

    def _worker_for(self, key: int) -> _Worker | None:
        """Who takes the next task: one without work, a new one, or the one with the least work in store."""
        task, _, share = self._tasks[key]
        fitting = [worker for worker in self._workers if worker.share == share]
        least = min(fitting, key=lambda worker: len(worker.keys), default=None)
        if least is not None and not least.keys:
            return least
        if self._may_start(share):
            self._make_room(share)
            return self._start(share)
        if least is None or isinstance(task, TrainTask) or key in self._alone:
            return None
        takes_more = len(least.keys) < self._depth() and not any(other in self._alone for other in least.keys)
        return least if takes_more else None

    def _depth(self) -> int:
        """How many short tasks a worker is given at a time."""
        if self._task_s is None:
            return 2
        return 1 + min(max(1, math.ceil(_AHEAD_S / max(self._task_s, 1e-6))), _MOST_AHEAD)

    def _has_idle(self, share: Share) -> bool:
        return any(worker.share == share and not worker.keys for worker in self._workers)

    def _may_start(self, share: Share) -> bool:
        """Whether one more worker of that size fits beside those that have work."""
        if not self._cluster.room_for(*share):
            return False
        busy = [worker.share for worker in self._workers if worker.keys]
        if self._max_concurrent is not None and len(busy) >= self._max_concurrent:
            return False
        return self._cluster.holds([*busy, share])

    def _make_room(self, share: Share) -> None:
        """End workers without work, of another size first, until a new one fits."""
        idle = sorted((worker for worker in self._workers if not worker.keys), key=lambda one: one.share == share)
        for worker in idle:
            if self._cluster.holds([*(one.share for one in self._workers), share]):
                return
            self._end(worker)

    @property
    def _take_s(self) -> float:
        """How long a worker waits for something to tell before it answers that there is nothing."""
        return _TAKE_S if self._silent_minutes is None else min(_TAKE_S, 15 * self._silent_minutes)

    def _start(self, share: Share) -> _Worker:
        import ray

        actor = ray.remote(TaskWorker).options(
            num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_concurrency=3, max_restarts=0
        )
        handle = self._cluster.call(partial(actor.remote, *self._run))
        worker = _Worker(handle, share, handle.take.remote(0))  # answered as soon as it is there
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        import ray

        self._workers.remove(worker)
        ray.kill(worker.handle, no_restart=True)

    def _fit_nodes(self) -> None:
        """Where a node has gone, workers may wait for the place that others hold without work."""
        nodes = self._cluster.nodes() if self._workers else self._nodes
        if nodes == self._nodes:
            return
        self._nodes = nodes
        idle = [worker for worker in self._workers if not worker.keys]
        waiting = [worker for worker in self._workers if worker.keys and not worker.is_proven]
        for worker in [*idle, *reversed(waiting)]:
            if self._cluster.holds(one.share for one in self._workers):
                return
            self._end(worker)
            self._put_back(worker.keys)

    def _put_back(self, keys: Iterable[int]) -> None:
        self._queue.put_back([(key, self._tasks[key][0]) for key in keys])

    # --- from workers to the caller ---

    def _receive(self, worker: _Worker) -> None:
        import ray

        try:
            taken: Taken = ray.get(worker.messages, timeout=_GET_S)
        except ray.exceptions.RayError as error:
            self._bury(worker, error)
            return
        worker.is_proven = True
        worker.messages, worker.asked_at = worker.handle.take.remote(self._take_s), time.monotonic()
        for message in taken.messages:
            if isinstance(message, Reported):
                self._tasks[message.key][1].report(message.report)
            else:
                self._note_end(worker, message)
        self._judge_silence(worker, taken.silent_s)

    def _judge_silence(self, worker: _Worker, silent_s: float) -> None:
        if self._silent_minutes is None or silent_s < 60 * self._silent_minutes or not worker.keys:
            return
        key = worker.keys[0]
        if not isinstance(self._tasks[key][0], TrainTask):
            return  # it has nothing to say before its end
        self._end(worker)
        if len(worker.keys) > 1:  # a pack: which of them hangs shows when each is alone
            self._try_alone(list(worker.keys))
            return
        del self._tasks[key]
        reason = SILENT.format(minutes=self._silent_minutes)
        self._ended.append((key, TaskOutcome(state="failed", error="silent", reason=reason)))

    def _judge_the_mute(self) -> None:
        """What hangs may keep its whole process from answering."""
        import ray

        for worker in list(self._workers):
            silent_s = time.monotonic() - worker.asked_at - self._take_s
            if worker.is_proven and silent_s > 0 and not ray.wait([worker.messages], timeout=0)[0]:
                self._judge_silence(worker, silent_s)

    def _note_end(self, worker: _Worker, ended: Ended) -> None:
        worker.keys.remove(ended.key)
        worker.stopped.discard(ended.key)
        if is_tried_alone(ended.outcome):
            self._try_alone([ended.key])
            return
        self._alone.discard(ended.key)
        task, _, _ = self._tasks.pop(ended.key)
        self._ended.append((ended.key, ended.outcome))
        if not isinstance(task, TrainTask):
            before = ended.seconds if self._task_s is None else self._task_s
            self._task_s = before + _SMOOTHING * (ended.seconds - before)

    def _bury(self, worker: _Worker, error: Exception) -> None:
        reason = _first_lines(error)
        if not worker.is_proven and "creation task" in str(error):
            raise EngineUnavailableError(
                f"a Ray worker must be able to begin, but could not: {reason}. Install the same vitsearch on every "
                "node of the cluster."
            ) from error
        self._end(worker)
        left = list(worker.keys)
        if len(left) == 1:
            del self._tasks[left[0]]
            self._alone.discard(left[0])
            self._ended.append((left[0], Lost(reason)))
            return
        self._try_alone(left)

    def _try_alone(self, keys: Sequence[int]) -> None:
        self._alone.update(keys)
        self._put_back(keys)

    def _pass_on_stops(self) -> None:
        for worker in list(self._workers):
            asked = {key for key in worker.keys if key not in worker.stopped and self._tasks[key][1].should_stop()}
            if asked and worker.is_proven:
                worker.stopped |= asked
                worker.handle.stop.remote(asked)
            elif asked:  # it may wait for room, and for long
                self._end(worker)
                self._put_back(worker.keys)
        while self._queue and self._tasks[self._queue.peek()[0]][1].should_stop():
            for key in self._queue.take():
                del self._tasks[key]
                self._alone.discard(key)
                self._ended.append((key, TaskOutcome(state="interrupted", reason="asked to end before it began")))


def _first_lines(error: Exception) -> str:
    """What a person needs of Ray's long text about a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead", "The actor died", "Worker exit detail"))]
    return (told or lines or [type(error).__name__])[-1][:300]
