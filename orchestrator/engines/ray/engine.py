"""Engine `ray`: Ray Tune drives training trials. Our rows are the only record; Tune's own snapshots are deleted."""

import contextlib
import logging
import shutil
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.engines.interfaces import Control, Ledger, Pool, Search
from orchestrator.engines.optuna_engine import OptunaEngine
from orchestrator.engines.ray.pool import RayPool
from orchestrator.engines.trial_queue import TrialQueue
from orchestrator.spec.engine import PopulationBandits, Scheduler, scheduler_name
from orchestrator.store.records import TrialRecord
from search_spaces.dimensions import Point
from trainers.config import Task, TrainTask

if TYPE_CHECKING:
    from orchestrator.engines.ray.trial_book import TrialBook


class RayEngine:
    """Ray Tune runs training trials, one epoch per Tune step. Other tasks go to the Ray pool.

    A resumed search starts a new Tuner: the suggester learns all finished trials, and so does the scheduler if it
    compares trials at rungs. The other trials continue from their checkpoints.

    Args:
        pool: Its cluster, shares and settings apply to Tune's trials too; its idle workers make room for them.
        scheduler: Settings of Tune's scheduler; `None` trains every trial to its end.
        scratch: A folder that all workers can write to, for Tune's own files; removed again.
    """

    def __init__(self, pool: RayPool, *, scratch: Path, scheduler: Scheduler | None = None) -> None:
        self._pool = pool
        self._scratch = scratch
        self._scheduler = scheduler

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """Run a search; finished trials in its rows are kept."""
        if search.epochs is None:
            return OptunaEngine().run(search, pool, ledger, control)
        if control.should_stop():
            return ledger.trials()
        self._pool.cluster.start()
        self._pool.release()
        self._pool.shares.prepare(search.sizes())
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
        settings = self._scheduler_of(search)
        name = None if settings is None else scheduler_name(settings)
        with contextlib.closing(TrialBook(search, queue, describe=describe, scheduler=name)) as book:
            is_finished = False
            while not is_finished:
                fit = partial(self._fit, book, search, ledger, folder, stop_file)
                with _quiet():
                    try:
                        self._pool.cluster.call(fit)
                    except Exception as error:
                        if book.error is not None or not book.live or not _is_of_ray(error):
                            raise book.error or error from error
                        # Tune does not survive every loss of a worker; its trials continue under a new Tuner.
                if book.error is not None:
                    raise book.error
                book.drop_live()
                is_finished = book.is_finished
            return queue.trials()

    def _scheduler_of(self, search: Search) -> Scheduler | None:
        return self._scheduler if search.may_be_cut else None

    def _fit(self, book: "TrialBook", search: Search, ledger: Ledger, folder: Path, stop_file: Path) -> None:
        from ray import tune

        from orchestrator.engines.ray.schedulers import make_scheduler, teach
        from orchestrator.engines.ray.trainable import TrialTrainable
        from orchestrator.engines.ray.trial_book import SearchStopper, TrialRecorder, TrialSource

        scheduler = make_scheduler(self._scheduler_of(search), search, partial(_copy_task, search, book.queue))
        ended = [trial for trial in book.queue.trials() if trial.is_usable]
        teach(scheduler, ((trial.number, ledger.curve(trial)) for trial in ended))
        tuner = tune.Tuner(
            TrialTrainable,
            tune_config=tune.TuneConfig(
                search_alg=TrialSource(book, share=self._pool.shares, room=self._pool.room_for),
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
            run_task=self._pool.settings.run_task,
            stop_file=stop_file,
            silent_minutes=self._pool.settings.silent_minutes,
            num_ranks=self._pool.shares(task).num_ranks,
        )
        if isinstance(self._scheduler_of(search), PopulationBandits):
            from orchestrator.engines.ray.population import bandit_numbers, numbers_of

            config |= numbers_of(config["generation"]["point"], bandit_numbers(search))
        return config


def _copy_task(search: Search, queue: TrialQueue, config: dict[str, Any], point: Point, step: int) -> str:
    from orchestrator.engines.ray.trial_book import task_at

    fence = TrainTask.model_validate_json(config["task"]).fence
    folder = Path(config["folder"]) / f"generation-{step:02d}"
    task = task_at(search, queue.record(config["number"]), point)
    return task.model_copy(update={"folder": folder, "fence": fence}).model_dump_json()


def _is_of_ray(error: BaseException | None) -> bool:
    """Whether Ray caused an error."""
    from ray.exceptions import RayError

    return error is not None and (isinstance(error, RayError) or _is_of_ray(error.__cause__))


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence Tune's logs, which repeat what is in our rows."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
