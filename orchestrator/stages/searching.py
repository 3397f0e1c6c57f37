"""Runs a stage's search and records each change of a trial: rows, MLflow events and the progress display."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.engines.interfaces import Objective, Search, Suggestion
from orchestrator.engines.ray.generations import newest_generation
from orchestrator.engines.seeds import seed_for
from orchestrator.stages.context import StageContext, StageFailedError, StageInterruptedError
from orchestrator.stages.progress import ShowsTimeLeft
from orchestrator.stages.retention import CUT
from orchestrator.stages.time_left import SearchTime
from orchestrator.stages.trial_notes import notes_of
from orchestrator.store.records import FINISHED, USABLE, AttemptRecord, EndedTrial, TrialRecord
from plugins.metrics.deciding import DecidingMetric
from trainers.config import EpochReport, TaskOutcome, TrainTask
from trainers.hardware.stragglers import SpeedTable
from trainers.training.reporting import Reporter
from trainers.training.watchdog import Watchdog
from trainers.yaml_source import yaml_text

_SHOW_S = 0.2
"""Least time between two estimates of the time left."""


def run_search(
    context: StageContext, search: Search, *, tracked: bool = False, further: int | None = 0
) -> list[TrialRecord]:
    """Run a stage's search and return its trials with a result, by number. A deadline or a budget leaves fewer trials.

    Args:
        context: The context of the stage.
        search: The search.
        tracked: Whether each trial gets a separate run in MLflow, with its learning curve.
        further: Number of trials that another search of the stage adds; `None` if this is that search, so that the
            beginning of the stage was shown already.

    Raises:
        StageInterruptedError: A stop was requested, or the deadline or budget ended before any trial had a result.
        StageFailedError: Every trial failed.
    """
    asked, budget = search.num_trials, context.control.budget
    if budget is not None and budget.trials is not None:
        search = replace(search, num_trials=min(asked, budget.trials))
    ledger = StageLedger(context, search, tracked=tracked)
    begun = ledger.trials()
    if further is not None:
        done = sum(trial.ended_at is not None for trial in begun)
        context.progress.stage_began(context.stage, total=search.num_trials + further, done=done)
    ledger.expect_end(begun, further=further or 0)
    try:
        trials = context.machinery.engine.run(search, context.machinery.pool, ledger, context.control)
        if context.control.budget_is_over() and not context.control.stop_requested():
            trials = [ledger.end_waiting(trial) for trial in trials]
    finally:
        ledger.settle()
    if context.control.stop_requested():
        raise StageInterruptedError("a stop was requested")
    usable = [trial for trial in trials if trial.is_usable]
    ended = sum(trial.state in FINISHED for trial in trials)
    is_late = ended < search.num_trials and context.control.deadline_reached()
    if is_late and not usable:
        raise StageInterruptedError("its deadline passed before any trial had a result")
    if not is_late:
        _note_shortage(context, search, trials, asked=asked)
    if is_late:
        context.progress.note(
            f"the deadline of stage {context.stage.name!r} has passed; the stage is complete with {ended} of "
            f"{search.num_trials} trials"
        )
    if not usable:
        reason = trials[-1].reason if trials else "no valid point was found"
        raise StageFailedError(
            f"all {len(trials)} trials of stage {context.stage.name!r} failed; the last one: {reason}"
        )
    return usable


def _note_shortage(context: StageContext, search: Search, trials: Sequence[TrialRecord], *, asked: int) -> None:
    """Say why a search has fewer trials than asked for, or trainings with fewer epochs.

    Raises:
        StageInterruptedError: The budget ended before any trial had a result.
    """
    ended = sum(trial.state in FINISHED for trial in trials)
    is_cut = any(CUT in trial.details for trial in trials)
    budget = context.control.budget
    why = search.suggester.shortage
    if budget is not None and (ended < asked or is_cut):
        is_used_up = context.control.budget_is_over() or is_cut or (budget.trials or asked) < asked
        why = f"the {budget.described} is used up" if is_used_up else why
        if is_used_up and not any(trial.is_usable for trial in trials) and not ended:
            raise StageInterruptedError(f"its {budget.described} ended before any trial had a result. Raise it")
    if why is not None and (ended < asked or is_cut):
        text = f"stage {context.stage.name!r} is complete with {ended} of {asked} trials: {why}"
        context.progress.note(text)


class StageLedger:
    """The ledger of one stage; with `tracked`, each trial gets a separate run in MLflow."""

    def __init__(self, context: StageContext, search: Search, *, tracked: bool) -> None:
        self._context = context
        self._search = search
        self._tracked = tracked
        self._seed = context.seed
        self._attempts: dict[int, AttemptRecord] = {}
        self._trials: dict[int, TrialRecord] = {}  # running trials under the watchdog
        self._watchdog = self._make_watchdog()
        self._best: TrialRecord | None = None
        self._speeds = SpeedTable()
        self._ended: EndedTrial | None = None  # written when the next trial begins
        self._time: SearchTime | None = None
        self._shown_at = -math.inf

    def expect_end(self, begun: Sequence[TrialRecord], *, further: int) -> None:
        """From now on, learn the time of trainings, and tell the display the time left if it shows it.

        Args:
            begun: The trials of earlier executions.
            further: Number of trials that another search of the stage adds.
        """
        if self._search.epochs is not None:
            search = replace(self._search, num_trials=self._search.num_trials + further)
            self._time = SearchTime(search, self._context.image_task, begun, costs=self._context.machinery.costs)
            self._show_time_left()

    def _show_time_left(self) -> None:
        """Tell the display the time left, not more often than people can read it: the estimate has a cost."""
        now, display = time.monotonic(), self._context.progress
        if self._time is None or not isinstance(display, ShowsTimeLeft):
            return
        if now - self._shown_at < _SHOW_S and not self._time.is_over:
            return
        left_s = self._time.left_s
        if left_s is None:
            return
        self._shown_at = now
        budget = self._context.control.budget
        limit_s = None if budget is None else budget.left_s
        display.time_left(left_s if limit_s is None else min(left_s, limit_s))

    def note_epoch(self, trial: TrialRecord, report: EpochReport) -> None:
        """Learn from an epoch how long the search takes."""
        if self._time is not None:
            self._time.epoch_ended(trial, report)
            self._show_time_left()

    def trials(self) -> list[TrialRecord]:
        trials = self._context.store.trials(self._context.stage.id)
        for trial in trials:
            self._note_best(trial)
            self._note_speed(trial, trial.metrics, trial.details)
        return trials

    def begin(self, number: int, suggestion: Suggestion) -> TrialRecord:
        context = self._context
        trial, attempt = context.store.begin_trial(
            context.stage,
            context.execution,
            number=number,
            point=suggestion.point,
            sampler_state=suggestion.sampler_state,
            seed=seed_for(self._seed, number),
            make_events=self._begin_events if self._tracked else lambda _: (),
            ended=self._ended,
        )
        self._attempts[number] = attempt
        self._note_written()
        return trial

    def resume(self, trial: TrialRecord) -> TrialRecord:
        self.settle()

        def failed_events(reason: str) -> list[str]:
            outcome = TaskOutcome(state="failed", reason=reason, error="exception")
            now = self._context.store.clock.now()
            return [*self._begin_events(trial), *self._end_events(trial, outcome, now)] if self._tracked else []

        context = self._context
        attempt = context.store.resume_trial(trial, context.execution, events_if_failed=failed_events)
        if attempt is None:
            return next(row for row in self.trials() if row.number == trial.number)
        self._attempts[trial.number] = attempt
        self._track_begin(trial)
        return trial

    def attempt(self, trial: TrialRecord) -> AttemptRecord:
        return self._attempts[trial.number]

    def reporter(self, trial: TrialRecord) -> "StoringReporter":
        if self._watchdog is not None:
            self._trials[trial.number] = trial
        attempt = self._attempts[trial.number]
        return StoringReporter(
            self._context,
            trial,
            attempt,
            tracked=self._tracked,
            watchdog=self._watchdog,
            validates=self._search.validates,
            on_epoch=self.note_epoch,
        )

    def finish(self, trial: TrialRecord, outcome: TaskOutcome) -> TrialRecord:
        self.settle()
        outcome = self._cut_by_budget(trial, outcome)
        if not self._search.validates:
            left_out = ("val_", "best_epoch")
            metrics = {name: value for name, value in outcome.metrics.items() if not name.startswith(left_out)}
            outcome = outcome.model_copy(update={"metrics": metrics})
        if outcome.state in USABLE:
            more = self._search.measured(trial.point)
            outcome = outcome.model_copy(update={"metrics": {**outcome.metrics, **more}}) if more else outcome
        slow = self._note_speed(trial, outcome.metrics, outcome.details)
        if slow is not None:
            outcome = outcome.model_copy(update={"details": {**outcome.details, "slow": slow}})
        events: list[str] = []
        now = self._context.store.clock.now()
        if self._tracked and outcome.state == "interrupted":
            events = self._context.run_tree.trial_interrupted(self._context.stage, trial, at=now)
        elif self._tracked:
            events = self._end_events(trial, outcome, now)
        self._ended = EndedTrial.of(trial, self._attempts.pop(trial.number), outcome, tuple(events), at=now)
        record = self._ended.trial
        if outcome.state == "interrupted":
            self.settle()
            if outcome.error is not None:  # all other trials would also fail
                raise StageInterruptedError(outcome.reason)
        return record

    def end_waiting(self, trial: TrialRecord) -> TrialRecord:
        """End a waiting training with the epochs that it has saved, because the budget is used up."""
        task = self._search.make_task(trial)
        if trial.state != "waiting" or not isinstance(task, TrainTask) or not self._search.may_be_cut:
            return trial
        from trainers.training.continuing import saved_history  # imports torch

        task = _newest_of(task)
        history = saved_history(task)
        if not history:
            return trial
        running = self.resume(trial)
        if running.state in FINISHED:
            return running
        reporter = self.reporter(running)
        for report in history:
            reporter.report(report)
        return self.finish(running, TaskOutcome(state="interrupted"))

    def _cut_by_budget(self, trial: TrialRecord, outcome: TaskOutcome) -> TaskOutcome:
        """The outcome of a training that the budget has ended: it keeps its last complete epoch."""
        control = self._context.control
        budget = control.budget
        if budget is not None and outcome.state == "complete":
            budget.note_training()
        is_asked = outcome.state == "interrupted" and outcome.error is None and self._search.may_be_cut
        if not is_asked or budget is None or control.stop_requested() or control.deadline_reached():
            return outcome
        task = self._search.make_task(trial)
        curve = self._context.store.reports(trial.id)
        if not isinstance(task, TrainTask) or not curve or not control.budget_is_over(trial.number):
            return outcome
        from trainers.training.loop import cut_short  # imports torch

        task = _newest_of(task)
        epoch, epochs = curve[-1].epoch, task.configuration.epochs
        found = cut_short(task, curve, self._context.image_task, state="complete" if epoch == epochs else "stopped")
        reason = f"the {budget.described} ended it after epoch {epoch} of {epochs}"
        if epoch == epochs:
            return found
        return found.model_copy(update={"reason": reason, "details": {**found.details, CUT: "budget"}})

    def settle(self) -> None:
        if self._ended is not None:
            self._context.store.end_trial(self._ended, study_id=self._context.study.id)
            self._note_written()

    def _note_written(self) -> None:
        """Show that the trial whose end was just written has ended."""
        if self._ended is None:
            return
        record, self._ended = self._ended.trial, None
        if record.ended_at is None:
            return
        self._note_best(record)
        if self._time is not None:
            self._time.trial_ended(record)
            self._show_time_left()
        self._context.progress.trial_ended(record, best=self._describe_best())
        for note in notes_of(record.details):
            self._context.progress.note(f"trial {record.number} {note}")

    def curve(self, trial: TrialRecord) -> list[EpochReport]:
        return self._context.store.reports(trial.id)

    def lose(self, trial: TrialRecord, reason: str) -> TrialRecord:
        self.settle()
        self._context.progress.note(f"trial {trial.number} lost its worker and will be restarted: {reason}")
        return self._context.store.lose_attempt(trial, self._attempts.pop(trial.number))

    def _make_watchdog(self) -> Watchdog | None:
        """The watchdog of trainings in this process. Other pools monitor their workers themselves."""
        minutes = self._context.spec.resources.silent_minutes
        pool = (self._context.execution.setup or {}).get("pool")
        if minutes is None or self._search.epochs is None or pool == "ray":
            return None
        return Watchdog(60 * minutes, partial(self._on_timeout, minutes))

    def _on_timeout(self, minutes: float, numbers: Set[int]) -> None:
        """Fail a training that hangs. If a pack hangs, give up its attempts, so that each trial then trains alone."""
        if not numbers <= self._attempts.keys():
            return  # one of the trials has just ended
        trials = [self._trials[number] for number in sorted(numbers)]
        reason = f"it gave no sign of life for {minutes:g} minutes (`resources.silent_minutes`)"
        message = f"trial {trials[0].number} of stage {self._context.stage.name!r} hangs: {reason}"
        if len(trials) > 1:
            named = f"{', '.join(str(trial.number) for trial in trials[:-1])} or {trials[-1].number}"
            message = f"trial {named} of stage {self._context.stage.name!r}, trained as a pack, hangs: {reason}. "
            message += "Each of these trials will train alone"
        try:
            if len(trials) == 1:
                self.finish(trials[0], TaskOutcome(state="failed", error="silent", reason=reason))
                self.settle()
            else:
                for trial in trials:
                    self._context.store.lose_attempt(trial, self._attempts.pop(trial.number))
        finally:
            self._context.abandon(message)

    def _track_begin(self, trial: TrialRecord) -> None:
        if self._tracked:
            self._context.store.owe(self._context.study.id, self._begin_events(trial, again=True))

    def _begin_events(self, trial: TrialRecord, *, again: bool = False) -> list[str]:
        params, links = self._search.parameters(trial.point), self._search.links(trial.point)
        return self._context.run_tree.trial_began(self._context.stage, trial, params, links, again=again)

    def _end_events(self, trial: TrialRecord, outcome: TaskOutcome, now: float) -> list[str]:
        ended = trial.model_copy(
            update={
                "state": outcome.state,
                "metrics": outcome.metrics,
                "reason": outcome.reason,
                "ended_at": now,
            }
        )
        task = self._search.make_task(trial)
        configuration = ""
        if isinstance(task, TrainTask):
            configuration = yaml_text(task.configuration.model_dump(mode="json"))
        newest: Path | None = max(outcome.checkpoints, key=lambda row: row.epoch).path if outcome.checkpoints else None
        return self._context.run_tree.trial_ended(
            self._context.stage,
            ended,
            extra=self._search.known_metrics(trial.point),
            configuration_yaml=configuration,
            checkpoint=newest,
            result=self._result_of(ended),
            notes=notes_of(outcome.details),
        )

    def _result_of(self, trial: TrialRecord) -> str | None:
        """What the run's name says of a trial; nothing if the search optimises another quantity than the metric."""
        metric = self._context.metric
        ranked_by = self._search.objectives[0].metric if self._search.objectives else metric.key
        return decisive_text(trial, metric, ranked_by=ranked_by) if ranked_by.startswith(metric.key) else None

    def _note_best(self, trial: TrialRecord) -> None:
        if trial.is_usable and self._context.control.budget is not None:
            self._context.control.budget.note_result()
        objectives = self._search.objectives
        if trial.is_usable and objectives and (self._best is None or is_better(trial, self._best, objectives)):
            self._best = trial

    def _note_speed(self, trial: TrialRecord, metrics: Mapping[str, float], details: Mapping[str, Any]) -> str | None:
        """Note how fast a training was; returns a description if it was much slower than others like it.

        Trainings are alike if an image costs the same work, with the same batch size and methods, and they ran on the
        same type of device, in packs of the same size.
        """
        speed, macs = metrics.get("throughput_images_per_s"), metrics.get("training_macs", 0.0)
        if speed is None or not macs or "device" not in details:
            return None
        wall_time_s = metrics["wall_time_s"]
        cost = macs / (speed * wall_time_s)
        methods = tuple(item for item in sorted(trial.point.items()) if changes_speed(item[0]))
        kind = (metrics["parameters"], f"{cost:.2g}", methods, details["device"], details.get("pack_size", 1))
        slow = self._speeds.note(kind, trial.number, speed, wall_time_s=wall_time_s)
        return None if slow is None else f"{slow}, on {details['host']} ({details['device']})"

    def _describe_best(self) -> str | None:
        if self._best is None or not self._search.objectives:
            return None
        metric, deciding = self._search.objectives[0].metric, self._context.metric
        if len(self._search.objectives) > 1 and metric.removesuffix("_best") != deciding.key:
            return None
        value = self._best.metrics[metric]
        text = deciding.text(value) if metric.removesuffix("_best") == deciding.key else f"{metric} {value:.4g}"
        return f"{text} (trial {self._best.number})"


_SPEED_FIELDS = frozenset(
    {"batch_size", "optimizer", "augmentation", "mixing", "loss", "curriculum", "image_size", "ema"}
)
"""Recipe fields on which the images per second depend, besides the work of an image."""


def changes_speed(name: str) -> bool:
    """Whether the images per second of a training depend on the dimension of this name."""
    first, _, rest = name.partition(".")
    return first == "recipe" and rest.partition(".")[0] in _SPEED_FIELDS


def _newest_of(task: TrainTask) -> TrainTask:
    """The task of a training with the folder of its checkpoints, even if it has copied another training."""
    copied = newest_generation(task.folder)
    return task if copied is None else task.model_copy(update={"folder": copied[0]})


class StoringReporter(Reporter):
    """Stores a running trial's reports; lives in the study's process."""

    def __init__(
        self,
        context: StageContext,
        trial: TrialRecord,
        attempt: AttemptRecord,
        *,
        tracked: bool,
        watchdog: Watchdog | None = None,
        validates: bool = True,
        on_epoch: Callable[[TrialRecord, EpochReport], object] = lambda *_: None,
    ) -> None:
        self._validates = validates
        self._on_epoch = on_epoch
        self._context = context
        self._trial = trial
        self._attempt = attempt
        self._tracked = tracked
        self._watchdog = watchdog

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._watchdog is None:
            yield
            return
        self._watchdog.start(self._trial.number)
        try:
            yield
        finally:
            self._watchdog.stop(self._trial.number)

    def report(self, report: EpochReport) -> None:
        if self._watchdog is not None:
            self._watchdog.suspend()
        context = self._context
        events = []
        if self._tracked:
            now = context.store.clock.now()
            events = context.run_tree.epoch(context.stage, self._trial, report, now, validates=self._validates)
        context.store.add_report(self._attempt, report, study_id=context.study.id, events=events)
        value = context.metric.text(report.value(context.metric)) if self._validates else None
        context.progress.epoch(self._trial, report, value=value)
        self._on_epoch(self._trial, report)
        if context.control.budget is not None:
            context.control.budget.note_report(self._trial.number, report)
        if self._watchdog is not None:
            self._watchdog.reset()

    def should_stop(self) -> bool:
        if self._watchdog is not None:
            self._watchdog.reset()
        control = self._context.control
        return control.should_stop() or control.budget_is_over(self._trial.number)


def decisive_text(trial: TrialRecord, metric: DecidingMetric, *, ranked_by: str) -> str | None:
    """A trial's value of the metric that decides, after the last epoch or the best one; `None` if it has none."""
    value = trial.metrics.get(ranked_by) if trial.is_usable else None
    return None if value is None else metric.text(value)


def is_better(trial: TrialRecord, other: TrialRecord, objectives: tuple[Objective, ...]) -> bool:
    """Whether a trial beats another on the first objective; on a tie, the lower validation loss wins."""
    metric, direction = objectives[0]
    sign = 1.0 if direction == "maximize" else -1.0
    mine, theirs = sign * trial.metrics[metric], sign * other.metrics[metric]
    if mine != theirs:
        return mine > theirs
    return trial.metrics.get("val_loss", 0.0) < other.metrics.get("val_loss", 0.0)
