"""Engine `ray`: Ray Tune drives the trials that train. Our rows are the truth, Tune's own snapshots are thrown away."""

import contextlib
import logging
import shutil
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.interfaces import Control, Ledger, Pool, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.ray.trial_resources import Share, SharePlanner
from orchestrator.engines.ray.worker import RUN_TASK
from orchestrator.engines.trial_queue import TrialQueue
from orchestrator.spec.engine import PopulationBandits, Scheduler
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Point
from trainers.config import Resources, Task, TrainTask

if TYPE_CHECKING:
    from orchestrator.engines.ray.trial_book import TrialBook


class RayEngine:
    """Trials that train go to Ray Tune, one after another of its steps an epoch; other tasks go to the Ray pool.

    Resuming starts a new Tuner: finished trials are told to the suggester and, where it compares trials at rungs, to
    the scheduler; the others go on from their own checkpoints.

    Args:
        cluster: Where trials run; started when it is first needed.
        pool: On that cluster; its idle workers are ended when Tune needs their place.
        shares: What a trial gets of its machine; by default a core.
        max_concurrent: Trials at once, at most.
        scheduler: Its name, for reasons and details.
        settings: Of the scheduler; `None` lets every trial train to its end.
        silent_minutes: A training that gives no sign of life for so long fails, and its process is ended.
        scratch: A folder that all workers reach, for what Tune must write somewhere; removed again.
        run_task: What does a task, as `module:function`.
    """

    def __init__(
        self,
        cluster: RayCluster,
        pool: RayPool,
        *,
        scratch: Path,
        shares: SharePlanner | None = None,
        max_concurrent: int | None = None,
        scheduler: str | None = None,
        settings: Scheduler | None = None,
        silent_minutes: float | None = None,
        run_task: str = RUN_TASK,
    ) -> None:
        self._cluster = cluster
        self._pool = pool
        self._scratch = scratch
        self._shares = shares or SharePlanner(cluster, Resources(cpus_per_trial=1, gpus_per_trial=0))
        self._max_concurrent = max_concurrent
        self._scheduler = scheduler
        self._settings = settings
        self._silent_minutes = silent_minutes
        self._run_task = run_task

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """Run a search from wherever its rows say that it stands."""
        if search.epochs is None:
            return OptunaEngine().run(search, pool, ledger, control)
        if control.should_stop():
            return ledger.trials()
        self._cluster.start()
        self._pool.release()
        self._shares.prepare(search.sizes())
        folder = self._scratch / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        try:
            return self._tune(search, ledger, control, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another search may have left something
                self._scratch.rmdir()

    def _tune(self, search: Search, ledger: Ledger, control: Control, folder: Path) -> list[TrialRecord]:
        from orchestrator.engines.ray.trial_book import TrialBook

        stop_file = folder / "stop"
        describe = partial(self._describe, search, stop_file=stop_file)
        queue = TrialQueue(search, ledger, control)
        with contextlib.closing(TrialBook(search, queue, describe=describe, scheduler=self._scheduler)) as book:
            is_finished = False
            while not is_finished:
                fit = partial(self._fit, book, search, ledger, folder, stop_file)
                with _quiet():
                    try:
                        self._cluster.call(fit)
                    except Exception as error:
                        if book.error is not None or not book.live or not _is_of_ray(error):
                            raise book.error or error from error
                        # Tune does not survive every loss of a worker; its trials continue under a new Tuner.
                if book.error is not None:
                    raise book.error
                book.drop_live()
                is_finished = book.is_finished
            return queue.trials()

    def _fit(self, book: "TrialBook", search: Search, ledger: Ledger, folder: Path, stop_file: Path) -> None:
        from ray import tune

        from orchestrator.engines.ray.schedulers import make_scheduler, teach
        from orchestrator.engines.ray.trainable import TrialTrainable
        from orchestrator.engines.ray.trial_book import SearchStopper, TrialRecorder, TrialSource

        scheduler = make_scheduler(self._settings, search, partial(_retask, search, book.queue))
        ended = [trial for trial in book.queue.trials() if trial.is_usable]
        teach(scheduler, ((trial.number, ledger.curve(trial)) for trial in ended))
        tuner = tune.Tuner(
            TrialTrainable,
            tune_config=tune.TuneConfig(
                search_alg=TrialSource(book, share=self._shares, room=self._room),
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex[:12],
                storage_path=str(folder),
                stop=SearchStopper(book, stop_file),
                callbacks=[TrialRecorder(book)],
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()

    def _describe(self, search: Search, record: TrialRecord, task: Task, *, stop_file: Path) -> dict[str, Any]:
        from orchestrator.engines.ray.trial_book import tune_config

        config = tune_config(
            search,
            record,
            task,
            run_task=self._run_task,
            stop_file=stop_file,
            silent_minutes=self._silent_minutes,
        )
        if isinstance(self._settings, PopulationBandits):
            from orchestrator.engines.ray.population import bandit_numbers, numbers_of

            config |= numbers_of(config["generation"]["point"], bandit_numbers(search))
        return config

    def _room(self, share: Share) -> int:
        room = self._cluster.room_for(*share)
        return room if self._max_concurrent is None else min(room, self._max_concurrent)


def _retask(search: Search, queue: TrialQueue, config: dict[str, Any], point: Point, step: int) -> str:
    from orchestrator.engines.ray.trial_book import task_at

    fence = TrainTask.model_validate_json(config["task"]).fence
    folder = Path(config["folder"]) / f"generation-{step:02d}"
    task = task_at(search, queue.record(config["number"]), point)
    return task.model_copy(update={"folder": folder, "fence": fence}).model_dump_json()


def _is_of_ray(error: BaseException | None) -> bool:
    """Whether Ray was the cause of an error."""
    from ray.exceptions import RayError

    return error is not None and (isinstance(error, RayError) or _is_of_ray(error.__cause__))


@contextlib.contextmanager
def _quiet() -> Any:
    """Tune says on stderr and stdout what is in our rows anyway."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
