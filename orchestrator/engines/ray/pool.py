"""Pool `ray`: long-lived Ray actors. Each runs one task or pack at a time and receives short tasks in advance."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from orchestrator.engines.interfaces import EngineUnavailableError, Lost
from orchestrator.engines.pools.pack_queue import PackQueue
from orchestrator.engines.ray.cluster import ACCELERATOR, RayCluster
from orchestrator.engines.ray.placement import Node, node_elsewhere
from orchestrator.engines.ray.ranks import useful_line
from orchestrator.engines.ray.stragglers import Stragglers
from orchestrator.engines.ray.trial_resources import Share, SharePlanner
from orchestrator.engines.ray.worker import UNRESPONSIVE, Ended, Reported, Taken, TaskWorker, Work, WorkerSettings
from trainers.config import Configuration, Resources, Task, TaskOutcome, TrainTask
from trainers.training.packing import is_tried_alone
from trainers.training.reporting import Reporter

_TAKE_S = 20.0
_POLL_S = 0.2
"""Time between two checks for a stop request."""
_AHEAD_S = 0.25
"""Amount of work that a worker receives in advance, so that it never waits for the driver."""
_MAX_AHEAD = 32
_SMOOTHING = 0.2
_GET_S = 30.0
"""Timeout for messages already on this machine."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    share: Share
    messages: Any
    """Ray's reference to its next messages."""
    keys: deque[int] = field(default_factory=deque)
    """Its tasks in order. The first one runs, or a pack of all of them."""
    stopped: set[int] = field(default_factory=set)
    has_answered: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    """Time of the last request for messages."""
    node: str | None = None
    """Id of its node, once it has answered; `None` on this machine."""
    group: Any = None
    """Ray's placement group of a worker with several GPUs."""
    device: str = ""
    """Type of the accelerator of its node, as Ray names it."""


class RayPool:
    """Starts workers when there are tasks for them and the cluster has room, and keeps them.

    If the process of a worker dies, its only task is lost. If it had several (a pack, or tasks sent ahead of time), any
    of them may have killed it: they run again one at a time, so that none is blamed for another.

    Args:
        cluster: Where the workers run; started when the first task comes.
        shares: Gives a task's share of a machine; by default one core.
        workers: How workers run tasks.
    """

    def __init__(
        self,
        cluster: RayCluster,
        *,
        shares: SharePlanner | None = None,
        workers: WorkerSettings | None = None,
    ) -> None:
        self.cluster = cluster
        self.shares = shares or SharePlanner(cluster, Resources(cpus_per_trial=1, gpus_per_trial=0))
        self.settings = workers or WorkerSettings()
        self._workers: list[_Worker] = []
        self._tasks: dict[int, tuple[Task, Reporter, Share]] = {}
        self._queue = PackQueue()
        self._ended: deque[tuple[int, TaskOutcome | Lost]] = deque()
        self._alone: set[int] = set()  # tasks that must not share a worker
        self._stragglers = Stragglers()
        self._task_s: float | None = None  # of short tasks, smoothed
        self._latest: tuple[Share, bool] | None = None
        self._looked_at = -math.inf
        self._nodes: Sequence[Node] = ()  # as of the last check that all workers fit

    def start(self) -> None:
        """Start Ray or attach to the cluster; without this call, the first task does so.

        Raises:
            EngineUnavailableError: Ray does not start, or the cluster does not answer.
        """
        self.cluster.start()

    @property
    def lookahead(self) -> int:
        return 0

    def prepare(self, configurations: Sequence[Configuration], *, num_tasks: int) -> None:
        if not configurations:
            return
        self.shares.num_trainings = num_tasks
        if self.shares.must_measure():
            self.release()
        self.shares.prepare(configurations)

    def has_room(self) -> bool:
        """Whether another task would keep a worker from being idle, now or soon."""
        if self._latest is None or not self._tasks:
            return not self._tasks
        share, is_training = self._latest
        if is_training:
            return self._queue.wants_more and (self._has_idle(share) or self._may_start(share))
        return len(self._tasks) < max(self.room_for(share), 1) * self._depth()

    def room_for(self, share: Share) -> int:
        """Maximum number of concurrent workers with that share."""
        room = self.cluster.room_for(*share)
        most = self.settings.max_concurrent
        return room if most is None else min(room, most)

    def is_busy(self) -> bool:
        return bool(self._tasks or self._ended)

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        share = self.shares(task)
        self._tasks[key] = task, reporter, share
        self._latest = share, isinstance(task, TrainTask)
        self._queue.add(key, task, largest=self.shares.pack_size(task))
        if self._queue.has_full_pack and (self._has_idle(share) or self._may_start(share)):
            self._dispatch(only_full=True)  # others are sent with the next ones, together

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        import ray

        while True:
            self.cluster.check()
            self._fit_nodes()
            self._dispatch()
            if self._ended:
                return self._ended.popleft()
            if time.monotonic() - self._looked_at >= _POLL_S:  # with many workers, a look takes longer than a message
                self._pass_on_stops()
                self._check_unresponsive()
                self._looked_at = time.monotonic()
            if not self._workers:
                time.sleep(_POLL_S)  # until a node has room for one
                continue
            waiting = {worker.messages: worker for worker in self._workers}
            ready, others = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
            if ready and others:
                ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
            for reference in ready:
                if waiting[reference] in self._workers:
                    self._receive(waiting[reference])
                if self._ended:
                    break

    def release(self) -> None:
        """End idle workers, so that their cores and GPUs become free."""
        for worker in [worker for worker in self._workers if not worker.keys]:
            self._end(worker)

    def process_ids(self) -> list[int]:
        """Process ids of the workers, each on its machine."""
        import ray

        found: list[int] = ray.get([worker.handle.process_id.remote() for worker in self._workers])
        return found

    def close(self) -> None:
        """Kill the workers and leave the cluster."""
        for worker in list(self._workers):
            if self.cluster.is_dead:
                worker.handle.leave.remote()  # Ray may be unable to end it
            self._end(worker)
        self._tasks.clear()
        self._queue.clear()
        self._ended.clear()
        self.cluster.close()

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
        """The worker for the next task: an idle one, a new one, or the one with the fewest tasks."""
        task, _, share = self._tasks[key]
        elsewhere = self._node_elsewhere(key, share)
        fitting = [worker for worker in self._workers if worker.share == share]
        if elsewhere is not None:
            fitting = [worker for worker in fitting if worker.node not in self._stragglers.nodes_of(key)]
        least = min(fitting, key=lambda worker: len(worker.keys), default=None)
        if least is not None and not least.keys:
            return least
        if self._may_start(share):
            self._make_room(share)
            return self._start(share, elsewhere)
        if least is None or isinstance(task, TrainTask) or key in self._alone:
            return None
        takes_more = len(least.keys) < self._depth() and not any(other in self._alone for other in least.keys)
        return least if takes_more else None

    def _depth(self) -> int:
        """Number of short tasks that a worker receives at a time."""
        if self._task_s is None:
            return 2
        return 1 + min(max(1, math.ceil(_AHEAD_S / max(self._task_s, 1e-6))), _MAX_AHEAD)

    def _has_idle(self, share: Share) -> bool:
        return any(worker.share == share and not worker.keys for worker in self._workers)

    def _may_start(self, share: Share) -> bool:
        """Whether another worker with that share fits next to the busy ones."""
        if not self.cluster.room_for(*share):
            return False
        busy = [worker.share for worker in self._workers if worker.keys]
        if self.settings.max_concurrent is not None and len(busy) >= self.settings.max_concurrent:
            return False
        return self.cluster.holds([*busy, share])

    def _make_room(self, share: Share) -> None:
        """End idle workers, those with another share first, until a new one fits."""
        idle = sorted((worker for worker in self._workers if not worker.keys), key=lambda one: one.share == share)
        for worker in idle:
            if self.cluster.holds([*(one.share for one in self._workers), share]):
                return
            self._end(worker)

    @property
    def _take_s(self) -> float:
        """Time that a worker waits for a message before it returns an empty answer."""
        minutes = self.settings.silent_minutes
        return _TAKE_S if minutes is None else min(_TAKE_S, 15 * minutes)

    def _node_elsewhere(self, key: int, share: Share) -> str | None:
        """A node for a task that was slow on another one; `None` if it was not, or if there is no other node."""
        avoided = self._stragglers.nodes_of(key)
        if not avoided or share.num_ranks > 1:  # the ranks of a training go where there is room for all of them
            return None
        return node_elsewhere(self._nodes_by_id(), avoided, num_cpus=share.num_cpus, num_gpus=share.num_gpus)

    def _nodes_by_id(self) -> dict[str, Node]:
        return {
            name: Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))
            for name, resources in self._resources_by_id().items()
        }

    def _resources_by_id(self) -> dict[str, dict[str, float]]:
        import ray

        return {node["NodeID"]: node["Resources"] for node in self.cluster.call(ray.nodes) if node["Alive"]}

    def _note_place(self, worker: _Worker) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # its death is noticed with its next messages
            worker.node = ray.get(worker.handle.node_id.remote(), timeout=_GET_S)
            resources = self._resources_by_id().get(worker.node or "", {})
            worker.device = " ".join(sorted(name for name in resources if name.startswith(ACCELERATOR)))

    def _start(self, share: Share, node: str | None = None) -> _Worker:
        """Start a worker, on a certain node if it has room; with several GPUs, as near to each other as possible."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        first, *others = share.bundles
        group, where = None, {}
        if others:
            group = self.cluster.call(partial(ray.util.placement_group, share.bundles, strategy="PACK"))
            where = {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)}
        elif node is not None:
            where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}
        actor = ray.remote(TaskWorker).options(
            num_cpus=first["CPU"], num_gpus=first["GPU"], max_concurrency=3, max_restarts=0, **where
        )
        settings = (self.settings.run_task, self.settings.run_packed, self.settings.silent_minutes)
        handle = self.cluster.call(partial(actor.remote, *settings, share.num_ranks))
        worker = _Worker(handle, share, handle.take.remote(0), group=group)  # answered once it has started
        self._workers.append(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        import ray

        self._workers.remove(worker)
        ray.kill(worker.handle, no_restart=True)
        if worker.group is not None:
            ray.util.remove_placement_group(worker.group)

    def _fit_nodes(self) -> None:
        """After a node has left, end idle workers if other workers are waiting for room."""
        nodes = self.cluster.nodes() if self._workers else self._nodes
        if nodes == self._nodes:
            return
        self._nodes = nodes
        idle = [worker for worker in self._workers if not worker.keys]
        waiting = [worker for worker in self._workers if worker.keys and not worker.has_answered]
        for worker in [*idle, *reversed(waiting)]:
            if self.cluster.holds(one.share for one in self._workers):
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
            self._on_worker_death(worker, error)
            return
        if not worker.has_answered and not self.cluster.is_local:
            self._note_place(worker)
        worker.has_answered = True
        worker.messages, worker.asked_at = worker.handle.take.remote(self._take_s), time.monotonic()
        for message in taken.messages:
            if isinstance(message, Reported):
                task, reporter, share = self._tasks[message.key]
                reporter.report(message.report)
                if worker.node is not None and isinstance(task, TrainTask):
                    kind = (worker.device, share, len(worker.keys))
                    self._stragglers.note(message.key, task, message.report, kind=kind, node=worker.node)
            else:
                self._note_end(worker, message)
        self._check_progress(worker, taken.silent_s)

    def _check_progress(self, worker: _Worker, silent_s: float) -> None:
        """Fail a training that has made no progress for too long; run the trainings of a pack again one at a time."""
        minutes = self.settings.silent_minutes
        if minutes is None or silent_s < 60 * minutes or not worker.keys:
            return
        key = worker.keys[0]
        if not isinstance(self._tasks[key][0], TrainTask):
            return  # other tasks report nothing before they end
        self._end(worker)
        if len(worker.keys) > 1:
            self._run_alone(list(worker.keys))
            return
        del self._tasks[key]
        reason = UNRESPONSIVE.format(minutes=minutes)
        self._ended.append((key, TaskOutcome(state="failed", error="silent", reason=reason)))

    def _check_unresponsive(self) -> None:
        """Apply the same limit to workers that do not even answer: a task can block its whole process."""
        import ray

        for worker in list(self._workers):
            silent_s = time.monotonic() - worker.asked_at - self._take_s
            if worker.has_answered and silent_s > 0 and not ray.wait([worker.messages], timeout=0)[0]:
                self._check_progress(worker, silent_s)

    def _note_end(self, worker: _Worker, ended: Ended) -> None:
        worker.keys.remove(ended.key)
        worker.stopped.discard(ended.key)
        if ended.ends_process:
            self._end(worker)
        if isinstance(ended.outcome, Lost):
            self._note_loss(ended.key, ended.outcome.reason)
            return
        if is_tried_alone(ended.outcome):
            self._run_alone([ended.key])
            return
        self._alone.discard(ended.key)
        self._stragglers.forget(ended.key)
        task, _, _ = self._tasks.pop(ended.key)
        self._ended.append((ended.key, ended.outcome))
        if not isinstance(task, TrainTask):
            before = ended.seconds if self._task_s is None else self._task_s
            self._task_s = before + _SMOOTHING * (ended.seconds - before)

    def _on_worker_death(self, worker: _Worker, error: Exception) -> None:
        reason = useful_line(error)
        if not worker.has_answered and "creation task" in str(error):
            raise EngineUnavailableError(
                f"Ray workers must be able to start, but one could not: {reason}. Install the same version of "
                "vitsearch on every node of the cluster."
            ) from error
        self._end(worker)
        left = list(worker.keys)
        if len(left) == 1:
            self._note_loss(left[0], reason)
            return
        self._run_alone(left)

    def _note_loss(self, key: int, reason: str) -> None:
        del self._tasks[key]
        self._alone.discard(key)
        self._ended.append((key, Lost(reason)))

    def _run_alone(self, keys: Sequence[int]) -> None:
        self._alone.update(keys)
        self._put_back(keys)

    def _pass_on_stops(self) -> None:
        for worker in list(self._workers):
            asked = {key for key in worker.keys if key not in worker.stopped and self._tasks[key][1].should_stop()}
            if asked and worker.has_answered:
                worker.stopped |= asked
                worker.handle.stop.remote(asked)
            elif asked:  # it has not started, and may wait long for a free node
                self._end(worker)
                self._put_back(worker.keys)
        while self._queue and self._tasks[self._queue.peek()[0]][1].should_stop():
            for key in self._queue.take():
                del self._tasks[key]
                self._alone.discard(key)
                self._ended.append((key, TaskOutcome(state="interrupted", reason="asked to end before it began")))
