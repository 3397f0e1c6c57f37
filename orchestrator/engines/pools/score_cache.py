"""Reuses stored scores with the same topology, batch, seed, settings and code."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.engines.interfaces import Lost, Pool
from orchestrator.engines.pools.code_digest import code_digest, top_level_packages
from orchestrator.spec.proxy_choices import resolved_settings
from orchestrator.store.records import ScoreKey, ScoreRecord
from orchestrator.store.score_rows import ScoreTable
from plugins import registry
from search_spaces.recipes import PluginChoice
from trainers.config import Configuration, ScoreTask, Task, TaskOutcome
from trainers.training.reporting import Reporter

_SCORER = "trainers.tasks.scoring"
_DTYPE = "float32"
"""The dtype in which workers compute scores."""


class ScoreCache:
    """Finds and stores the scores of tasks. A score that is not finite is stored with its reason."""

    def __init__(self, table: ScoreTable) -> None:
        self._table = table
        self._data: dict[tuple[Any, ...], str] = {}
        self._keys: dict[tuple[str, str], ScoreKey] = {}

    def find(self, task: ScoreTask) -> dict[str, ScoreRecord]:
        """The known scores of a task, by proxy."""
        keys = {choice.name: self._key(choice, task.topology) for choice in task.proxies}
        known = self._table.find(task.topology, self._data_digest(task), task.seed)
        return {name: known[key] for name, key in keys.items() if key in known}

    def keep(self, task: ScoreTask, outcome: TaskOutcome) -> None:
        """Store the scores of an outcome. Scores that failed for lack of memory or with an exception are not stored."""
        seconds: Mapping[str, float] = outcome.details.get("seconds", {})
        failures: Mapping[str, Mapping[str, str]] = outcome.details.get("failures", {})
        found = []
        for choice in task.proxies:
            value, failure = outcome.metrics.get(choice.name), failures.get(choice.name)
            if value is None and (failure is None or failure["error"] != "not-finite"):
                continue
            record = ScoreRecord(
                value=value,
                spread=outcome.metrics.get(f"{choice.name}.spread"),
                reason=None if failure is None else failure["reason"],
                wall_time_s=seconds.get(choice.name, 0.0),
            )
            found.append((self._key(choice, task.topology), record))
        self._table.add(task.topology, self._data_digest(task), task.seed, found)

    def _key(self, choice: PluginChoice, topology: str) -> ScoreKey:
        space = topology.partition(":")[0]
        written = (json.dumps(choice.model_dump(mode="json"), sort_keys=True), space)
        if written not in self._keys:
            self._keys[written] = ScoreKey(
                choice.name, _digest(resolved_settings(choice)), scoring_code(choice.name, space)
            )
        return self._keys[written]

    def _data_digest(self, task: ScoreTask) -> str:
        given = (task.data.model_dump_json(), task.batch_size, task.num_classes)
        if given not in self._data:
            from trainers.data.images import load_images  # imports torch
            from trainers.hardware.devices import describe_device, pick_device

            data = load_images(task.data)
            self._data[given] = _digest(
                {
                    "images": data.digest,
                    "split_seed": task.data.split_seed,
                    "batch_size": task.batch_size,
                    "num_classes": task.num_classes or data.task.num_classes,
                    "device": describe_device(pick_device(needs_float64=True)),
                    "dtype": _DTYPE,
                }
            )
        return self._data[given]


class ScoreCachingPool:
    """A pool that does not recompute known scores: it runs only the missing proxies of a score task."""

    def __init__(self, pool: Pool, cache: ScoreCache) -> None:
        self._pool = pool
        self._cache = cache
        self._answers: deque[tuple[int, TaskOutcome]] = deque()
        self._partly: dict[int, tuple[ScoreTask, dict[str, ScoreRecord]]] = {}
        """Running score tasks with their known scores."""

    @property
    def lookahead(self) -> int:
        return self._pool.lookahead

    def prepare(self, configurations: Sequence[Configuration], *, num_tasks: int) -> None:
        self._pool.prepare(configurations, num_tasks=num_tasks)

    def has_room(self) -> bool:
        return not self._answers and self._pool.has_room()

    def is_busy(self) -> bool:
        return bool(self._answers) or self._pool.is_busy()

    def submit(self, key: int, task: Task, reporter: Reporter) -> None:
        if isinstance(task, ScoreTask):
            known = self._cache.find(task)
            missing = tuple(choice for choice in task.proxies if choice.name not in known)
            if not missing:
                self._answers.append((key, _outcome(task, known, None)))
                return
            self._partly[key] = (task, known)
            task = task.model_copy(update={"proxies": missing})
        self._pool.submit(key, task, reporter)

    def wait(self) -> tuple[int, TaskOutcome | Lost]:
        if self._answers:
            return self._answers.popleft()
        key, outcome = self._pool.wait()
        if key not in self._partly:
            return key, outcome
        task, known = self._partly.pop(key)
        if isinstance(outcome, Lost) or "seconds" not in outcome.details:  # nothing was scored
            return key, outcome
        self._cache.keep(task, outcome)
        return key, _outcome(task, known, outcome) if known else outcome

    def close(self) -> None:
        self._pool.close()


def scoring_code(proxy: str, space: str) -> str:
    """Digest of the code that computes a proxy's score of a space's topologies, and of torch's version."""
    named = (("proxies", proxy), ("spaces", space), ("models", space))
    points = [registry.available(kind)[name] for kind, name in named]
    packages = {package for point in points if point.dist for package in top_level_packages(point.dist)}
    return code_digest({*(point.module for point in points), _SCORER}, packages=packages, distributions=("torch",))


def _outcome(task: ScoreTask, known: Mapping[str, ScoreRecord], computed: TaskOutcome | None) -> TaskOutcome:
    """The outcome of the whole task, from the known and the newly computed scores."""
    from plugins.protocols import ProxyScore
    from trainers.data.images import load_images
    from trainers.tasks.scoring import score_outcome, training_macs
    from trainers.training.failures import Failure

    image_task = load_images(task.data).task.model_copy(
        update={} if task.num_classes is None else {"num_classes": task.num_classes}
    )
    metrics = {} if computed is None else computed.metrics
    scores: dict[str, ProxyScore] = {}
    failures: dict[str, Failure] = {}
    new_failures = {} if computed is None else computed.details.get("failures", {})
    for name in (choice.name for choice in task.proxies):
        if name in known:
            record = known[name]
            if record.value is None:
                failures[name] = Failure("not-finite", record.reason or "the score is not finite")
            else:
                scores[name] = ProxyScore(record.value, 0.0 if record.spread is None else record.spread)
        elif name in new_failures:
            failures[name] = Failure(**new_failures[name])
        else:
            scores[name] = ProxyScore(metrics[name], metrics.get(f"{name}.spread", 0.0))
    seconds = {name: record.wall_time_s for name, record in known.items()}
    topology = registry.parse_topology(task.topology)
    costs = registry.load("spaces", task.topology.partition(":")[0]).costs(topology, image_task)
    return score_outcome(
        topology.id,
        costs,
        scores,
        failures,
        seconds=seconds | ({} if computed is None else computed.details["seconds"]),
        wall_time_s=metrics.get("wall_time_s", 0.0),
        need_all=task.need_all,
        training_macs=training_macs(task, costs, num_images=min(task.batch_size, len(load_images(task.data).train))),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
