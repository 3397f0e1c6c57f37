"""Runs a study: its stages in order, starting with the first one that is not complete."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.engines.choice import choose, detect_machine, make_engine_and_pool
from orchestrator.engines.interfaces import Control, EngineUnavailableError
from orchestrator.engines.pools.score_cache import ScoreCache, ScoreCachingPool
from orchestrator.engines.training_costs import TrainingCosts
from orchestrator.reports.experiment_note import experiment_note
from orchestrator.settings import Settings
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.context import (
    Machinery,
    StageContext,
    StageFailedError,
    StageInterruptedError,
    StudyContext,
)
from orchestrator.stages.control import Deadline, StageControl, no_deadline
from orchestrator.stages.kind import StageOutcome, stage_kind
from orchestrator.stages.progress import Progress
from orchestrator.stages.truths import data_fingerprint, load_truth
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.growth_rows import GrowthRows
from orchestrator.store.past_growths import KEY as GROWN
from orchestrator.store.past_growths import Growths
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from orchestrator.store.stale_writes import StaleAttemptError
from orchestrator.study.access import fetched_study_folder, make_home, open_existing, study_folder, tracker_of
from orchestrator.study.artifact_checks import check_artifact_root
from orchestrator.study.budgeting import stage_budget
from orchestrator.study.growth import SpecChangedError as SpecChangedError
from orchestrator.study.growth import plan_study_growth, stored_spec
from orchestrator.study.lock import StudyBusyError, hold_study
from orchestrator.study.old_champions import complete_champions, incomplete_champions
from orchestrator.study.report import render_study
from orchestrator.study.reusing import read_reused, store_reused
from orchestrator.tracking.names import REPORT_FILE
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.run_tree import RunTree
from trainers.data.cache_settings import decoding_watcher, watch_decoding
from trainers.data.sources import BUILT_IN
from trainers.storage.artifacts import published

if TYPE_CHECKING:
    from trainers.data.images import ImageData

_MANY_METRICS = frozenset({"correlate"})
"""Kinds of stages whose many metrics only their own run shows, not that of the execution."""
_OF_INTERVALS = ("_low", "_high")
"""Ends of metrics that only the run of their stage shows."""
FLUSH_S = 60.0
"""Time to wait for MLflow at the end of a study. The next run sends any remaining events."""

_logger = logging.getLogger(__name__)


class DataChangedError(ValueError):
    """The images or the ground truths have changed since the study began."""

    def __init__(self, spec: StudySpec) -> None:
        truths = [truth.table or f"study {truth.study}" for stage in spec.stages for truth in stage.truths]
        what = f"those of {spec.data.source}" + (f", or {' or '.join(truths)}," if truths else "")
        super().__init__(
            f"study {spec.study!r} must be resumed with its original images, but {what} have changed since it began. "
            "Restore them, or give the file another `study:` name."
        )


def run_study(
    spec: StudySpec,
    spec_text: str,
    settings: Settings,
    *,
    progress: Progress,
    control: Control,
    deadline: Deadline = no_deadline,
    retry_failed: bool = False,
    stops_decoding: bool = False,
) -> StudyRecord:
    """Run a study to its end, or resume it. If the file has more trials, epochs or stages than before, the study grows.

    All data are read before anything is written. Finished trials are kept; interrupted trainings resume from their
    newest checkpoint.

    Args:
        spec: The study.
        spec_text: Content of the study file, for MLflow.
        settings: Settings of this installation.
        progress: Displays the progress.
        control: Interrupts the study.
        deadline: Completes a search with the trials that have a result when it passes.
        retry_failed: Whether failed trials of earlier executions run once more.
        stops_decoding: Whether a stop also ends the decoding of images, with KeyboardInterrupt, since there is no study
            yet that could be returned. Otherwise, all of them are decoded first.

    Returns:
        The record of the study: complete, failed (a stage could not reach its goal), or interrupted (a stop was
        requested, or a deadline passed before a stage had any result).

    Raises:
        SpecChangedError: A study of that name exists, and its settings cannot change to those of the file.
        DataChangedError: The images have changed since the study began.
        StudyBusyError: Another process is running the study, or took it over while this one had no database.
        orchestrator.store.errors.DatabaseUnavailableError: The database is unreachable, or cannot be written to.
        trainers.data.listing.DataError: The data cannot be used.
        orchestrator.spec.truth_error.TruthError: A ground truth cannot be used.
        trainers.weights.errors.WeightsError: Weights to start from cannot be used.
        orchestrator.study.access.UnknownStudyError: A study to start from does not exist.
        orchestrator.settings.SettingsError: The home folder cannot be created.
        orchestrator.engines.interfaces.EngineUnavailableError: Ray is not installed, does not start, or its cluster
            does not answer.
        KeyboardInterrupt: A stop was requested while images were decoded, and `stops_decoding` is set.
    """
    settings.apply()
    study = existing_study(spec, settings)
    if study is not None and study.state == "complete" and not has_work(spec, settings, retry_failed=retry_failed):
        num_waiting = deliver_events(study, settings, timeout_s=FLUSH_S)
        if num_waiting:
            progress.note(f"{num_waiting} events are still waiting to be sent to MLflow")
        return study
    from trainers.data.describing import describe_data, draw_sheet
    from trainers.data.images import load_images  # imports torch

    setup = choose(spec, detect_machine())
    check_artifact_root(settings, setup)
    if study is not None:
        fetched_study_folder(settings, study)
    report = None
    with _stopped_by(control) if stops_decoding else nullcontext():
        data = load_images(spec.data)
        if study is None:
            # This also reads the test part, so that a broken image is reported before the training.
            report = describe_data(spec.data).report
    fingerprint = _check_truths(spec, data, settings)
    reused = read_reused(spec, study, settings)
    known_fingerprint = fingerprint if study is None else _check_truths(stored_spec(study) or spec, data, settings)
    make_home(settings)
    for line in report.lines() if report else ():
        progress.note(line)
    with hold_study(spec.study, settings) as hold_again:
        existing_study(spec, settings)  # check again: another process may have created the study in the meantime
        store = Store.open(
            settings.database_url,
            artifact_root=settings.artifact_root,
            tracking=settings.tracking,
            wait_s=settings.database_wait_s,
        )
        store.on_return(hold_again)
        try:
            study = _find_or_create(store, spec, fingerprint, known_fingerprint)
            store_reused(reused, study_folder(settings, study))
            growth = plan_study_growth(store, study, spec, retry_failed=retry_failed)
            growths = Growths.of(store.executions(study.id))
            if growth is not None:
                study = study.model_copy(update={"spec": spec.model_dump(mode="json"), "spec_digest": spec.digest})
                growths = growths.followed_by(growth.record)
                for line in growth.lines:
                    progress.note(line)
            sheet = None
            if report is not None and settings.tracking:
                sheet = study_folder(settings, study) / "data.png"
                try:
                    sheet.parent.mkdir(parents=True, exist_ok=True)
                    draw_sheet(data, sheet)
                    published(sheet)
                except OSError as error:
                    progress.note(f"MLflow gets no picture of the images: {error}")
                    sheet = None
            shared = StudyContext(
                study=study,
                spec=spec,
                store=store,
                run_tree=RunTree(study, spec_text, setup=setup.record(), growths=growths),
                image_task=data.task,
                growths=growths,
            )
            scratch = study_folder(settings, study) / "ray"
            sources = () if spec.data.source in BUILT_IN else (Path(spec.data.source),)
            costs = TrainingCosts()
            engine, pool = make_engine_and_pool(
                setup, spec.resources, scratch=scratch, sources=sources, costs=costs, say=progress.note
            )
            pool = ScoreCachingPool(pool, ScoreCache(store.scores()))
            machinery = Machinery(engine=engine, pool=pool, progress=progress, costs=costs)
            progress.note(setup.reason)
            make_control = partial(StageControl, request=control, deadline=deadline)
            driver = _Driver(shared, machinery, settings, make_control, num_validation=len(data.validation))
            return driver.run(
                setup={
                    **setup.record(),
                    **({"data": report.model_dump(mode="json")} if report else {}),
                    **({GROWN: growth.record.model_dump(mode="json")} if growth else {}),
                },
                inputs=data_inputs(spec, data),
                sheet=sheet,
                growth=None if growth is None else growth.rows(spec, fingerprint),
            )
        finally:
            store.close()


@contextmanager
def _stopped_by(control: Control) -> Iterator[None]:
    """Inside the context, the decoding of images ends with KeyboardInterrupt if a stop is requested."""
    show = decoding_watcher()

    def watch(done: int, total: int) -> None:
        if control.should_stop():
            raise KeyboardInterrupt
        if show is not None:
            show(done, total)

    with watch_decoding(watch):
        yield


def _find_or_create(store: Store, spec: StudySpec, fingerprint: str, known_fingerprint: str) -> StudyRecord:
    """Find or create the study with the spec's name.

    Args:
        store: The store.
        spec: The study.
        fingerprint: Digest of all data that the study reads.
        known_fingerprint: The same for the stored file of the study, which may read fewer tables.

    Raises:
        DataChangedError: The study began with other data.
    """
    study = store.find_study(spec.study) or store.create_study(
        spec.study,
        spec=spec.model_dump(mode="json"),
        digest=spec.digest,
        data_digest=fingerprint,
        stage_names=[(stage.name, stage.stage) for stage in spec.stages],
    )
    if study.data_digest not in (fingerprint, known_fingerprint):
        raise DataChangedError(spec)
    return study


def existing_study(spec: StudySpec, settings: Settings) -> StudyRecord | None:
    """The study with the spec's name, or `None`; nothing is created.

    Raises:
        SpecChangedError: The study cannot grow to the spec.
    """
    with open_existing(settings) as store:
        study = store.find_study(spec.study) if store else None
        if store is not None and study is not None:
            plan_study_growth(store, study, spec)
    return study


def has_work(spec: StudySpec, settings: Settings, *, retry_failed: bool = False) -> bool:
    """Whether the file or the failed trials give an existing study something to do that it had not before.

    Raises:
        SpecChangedError: The study cannot grow to the spec.
    """
    with open_existing(settings) as store:
        study = store.find_study(spec.study) if store else None
        if store is None or study is None:
            return True
        growth = plan_study_growth(store, study, spec, retry_failed=retry_failed)
        return growth is not None and growth.affects_stages


def _check_truths(spec: StudySpec, data: "ImageData", settings: Settings) -> str:
    """Check all ground truths before anything is written, and return the digest of all data."""
    with open_existing(settings) as store:
        for truth in (truth for stage in spec.stages for truth in stage.truths):
            load_truth(truth, data=spec.data, store=store)
        return data_fingerprint(spec, data, store)


def deliver_events(study: StudyRecord, settings: Settings, *, timeout_s: float) -> int:
    """Send MLflow the events that earlier processes could not send; returns the number of remaining events."""
    with open_existing(settings) as store:
        if store is None or not settings.tracking:
            return 0
        owed, old = store.outbox(study.id), incomplete_champions(study, settings, store)
        if owed.count_owed() == 0 and not old:
            return 0
        with hold_study(study.name, settings):
            complete_champions(study, settings, store, old)
            with Outbox(owed, lambda: tracker_of(study, settings, store)) as outbox:
                return outbox.flush(timeout_s)


class _Driver:
    """One execution of a study."""

    def __init__(
        self,
        shared: StudyContext,
        machinery: Machinery,
        settings: Settings,
        make_control: Callable[..., StageControl],
        *,
        num_validation: int | None = None,
    ) -> None:
        self._shared = shared
        self._machinery = machinery
        self._settings = settings
        self._make_control = make_control
        self._store, self._run_tree = shared.store, shared.run_tree
        self._num_validation = num_validation
        self._metrics: dict[str, float] = {}
        self._summary: str | None = None  # of the latest stage

    def run(
        self,
        *,
        setup: Mapping[str, Any],
        inputs: Sequence[Mapping[str, Any]],
        sheet: Path | None,
        growth: GrowthRows | None = None,
    ) -> StudyRecord:
        """Run the stages that are not complete.

        Args:
            setup: Engine, pool, scheduler and, when the study begins, the report on its data, to be stored with the
                execution.
            inputs: The data as MLflow's dataset inputs.
            sheet: A picture of some images, for MLflow.
            growth: What a changed study file adds to the study.
        """
        study = self._shared.study

        def events(execution: ExecutionRecord, lost: Sequence[ExecutionRecord]) -> list[str]:
            ended = [
                event for one in lost for event in self._run_tree.execution_lost(one, ended_at=self._store.clock.now())
            ]
            begun = [stage for stage in self._store.stages(study.id) if stage.started_at is not None]
            began = self._run_tree.execution_began(
                execution, inputs, stages=begun, data_report=setup.get("data"), sheet=sheet
            )
            return [*ended, *began]

        execution = self._store.begin_execution(study.id, setup=setup, events=events, growth=growth)
        outbox = None
        if self._settings.tracking:
            owed = self._store.outbox(study.id)
            outbox = Outbox(owed, lambda: tracker_of(study, self._settings, self._store))
        try:
            self._run_stages(execution)
        finally:
            self._machinery.pool.close()
            if outbox is not None:
                self._flush(outbox)
        found = self._store.find_study(study.name)
        assert found is not None
        return found

    def _flush(self, outbox: Outbox) -> None:
        try:
            num_waiting = outbox.flush(FLUSH_S)
            if num_waiting:
                self._machinery.progress.note(
                    f"{num_waiting} events are still waiting to be sent to MLflow; the next `vitsearch run` or "
                    f"`submit` of this study sends them ({outbox.last_error or 'MLflow is slow'})"
                )
            outbox.close()
            if outbox.num_rejected:
                self._machinery.progress.note(
                    f"MLflow rejected {outbox.num_rejected} events, and its pages lack their content. Send it the "
                    f"whole study again with: vitsearch sync {self._shared.study.name}"
                )
        except DatabaseUnavailableError:  # the same error has already ended the study
            _logger.debug("the database is unreachable while events are sent to MLflow", exc_info=True)

    def _run_stages(self, execution: ExecutionRecord) -> None:
        try:
            for stage in self._store.stages(self._shared.study.id):
                if stage.state != "complete":
                    self._run_stage(stage, execution)
        except StageInterruptedError as error:
            self._end(execution, "interrupted", str(error))
        except StageFailedError as error:
            self._end(execution, "failed", str(error))
        except StaleAttemptError as error:
            _logger.debug("another process has taken over the study: %s", error)
            raise StudyBusyError(self._shared.study.name) from error
        except OSError as error:
            _logger.debug("a file operation failed", exc_info=True)
            place = f" ({error.filename})" if error.filename else ""
            self._end(
                execution, "interrupted", f"a file could not be read or written: {error.strerror or error}{place}"
            )
        except EngineUnavailableError as error:
            self._end(execution, "interrupted", str(error))
            raise
        except BaseException as error:
            # No row may stay "running" after an error of any kind.
            self._end(execution, "interrupted", ": ".join(filter(None, (type(error).__name__, str(error)))))
            raise
        else:
            self._end(execution, "complete", None)

    def _run_stage(self, stage: StageRecord, execution: ExecutionRecord) -> None:
        spec = self._shared.spec.stages[stage.position]
        now = self._store.clock.now()
        params = _flat(spec.model_dump(mode="json", exclude={"stage", "name"}))
        events = self._run_tree.stage_began(stage, execution, params, now)
        running = self._store.begin_stage(stage, execution=execution, events=events)
        context = self._context(running, execution)
        try:
            context.folder.mkdir(parents=True, exist_ok=True)
            if context.control.stop_requested():
                raise StageInterruptedError("a stop was requested")
            outcome = stage_kind(stage.kind).run(context, spec)
            for plot in outcome.plots:
                published(plot)
        except StageFailedError as error:
            self._end_stage(running, execution, "failed", reason=str(error))
            raise
        except BaseException as error:
            self._end_stage(running, execution, "interrupted", reason=str(error) or type(error).__name__)
            raise
        if stage.kind not in _MANY_METRICS:
            shown = {name: value for name, value in outcome.metrics.items() if not name.endswith(_OF_INTERVALS)}
            self._metrics.update({f"{stage.name}.{name}": value for name, value in shown.items()})
        self._end_stage(running, execution, "complete", outcome=outcome)

    def _context(self, stage: StageRecord, execution: ExecutionRecord) -> StageContext:
        return StageContext(
            shared=self._shared,
            machinery=self._machinery,
            control=self._make_control(
                stage=stage.name, budget=stage_budget(self._shared.spec, self._store, stage, execution)
            ),
            stage=stage,
            execution=execution,
            folder=study_folder(self._settings, self._shared.study) / stage.name,
            abandon=partial(self._abandon, stage, execution),
        )

    def _abandon(self, stage: StageRecord, execution: ExecutionRecord, reason: str) -> NoReturn:
        """End the process; called from a thread other than the one that runs the study."""
        try:
            self._end_stage(stage, execution, "interrupted", reason=reason)
            self._end(execution, "interrupted", reason)
        finally:
            _logger.critical("%s. Ending the process; run the same command again to resume.", reason)
            os._exit(1)

    def _end_stage(
        self,
        stage: StageRecord,
        execution: ExecutionRecord,
        state: Any,
        *,
        outcome: StageOutcome | None = None,
        reason: str | None = None,
    ) -> None:
        events = [*(outcome.events if outcome else ())]
        events += self._run_tree.stage_ended(
            stage,
            state,
            at=self._store.clock.now(),
            metrics=outcome.metrics if outcome else None,
            texts=outcome.texts if outcome else None,
            artifacts=outcome.plots if outcome else (),
            reason=reason,
            summary=outcome.summary if outcome else None,
        )
        result = outcome.result.model_dump(mode="json") if outcome else None
        ended = self._store.end_stage(stage, state, execution=execution, result=result, reason=reason, events=events)
        self._summary = outcome.summary if outcome else self._summary
        self._machinery.progress.stage_ended(ended, outcome.summary if outcome else reason or state)

    def _end(self, execution: ExecutionRecord, state: Any, reason: str | None) -> None:
        events = self._report(execution) if state == "complete" else []
        report_key = self._run_tree.execution_key(execution.number) if events else None
        events += self._run_tree.execution_ended(
            execution, state, ended_at=self._store.clock.now(), metrics=self._metrics, summary=reason or self._summary
        )
        events += self._run_tree.experiment_described(self._note(state, reason, report_key=report_key))
        self._store.end_execution(execution, state, reason=reason, events=events)

    def _report(self, execution: ExecutionRecord) -> list[str]:
        """Write the report on the complete study, and return the events that show it in MLflow."""
        if not self._settings.tracking:
            return []
        now = self._store.clock.now()
        study = self._shared.study.model_copy(update={"state": "complete", "reason": None, "updated_at": now})
        file = study_folder(self._settings, study) / REPORT_FILE
        try:
            file.write_text(render_study(study, self._store, file.parent), encoding="utf-8")
            published(file)
        except DatabaseUnavailableError:
            raise
        except Exception as error:  # whatever is unusual about the study, it is complete
            _logger.debug("the report was not made", exc_info=True)
            self._machinery.progress.note(f"MLflow gets no report: {type(error).__name__}: {error}")
            return []
        return self._run_tree.reported(execution, file)

    def _note(self, state: Any, reason: str | None, *, report_key: str | None) -> str:
        """The text above the study's runs in MLflow."""
        study = self._shared.study.model_copy(update={"state": state, "reason": reason})
        return experiment_note(
            study,
            self._store.stages(study.id),
            stage_key=self._run_tree.stage_key,
            trial_key=self._run_tree.trial_key,
            num_validation=self._num_validation,
            report_key=report_key,
        )


def data_inputs(spec: StudySpec, data: "ImageData") -> list[Mapping[str, Any]]:
    """The data as MLflow's dataset inputs; the test part is not read."""
    shape = (data.task.in_channels, data.task.image_size, data.task.image_size)
    common: dict[str, Any] = {
        "name": data.name,
        "digest": data.digest[:12],
        "source": spec.data.source,
        "image_shape": shape,
        "num_classes": data.task.num_classes,
    }
    return [
        {**common, "context": "training", "num_rows": len(data.train)},
        {**common, "context": "validation", "num_rows": len(data.validation)},
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings as flat parameters; no settings are no parameters."""
    if not prefix and not value:
        return {}
    if isinstance(value, dict) and value:
        return {key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}{name}.").items()}
    shown = json.dumps(value) if isinstance(value, list | dict) else value
    return {prefix.removesuffix("."): shown}
