"""A study as a tree of MLflow runs, with their parameters, metrics, tags and inputs.

There is one experiment per study, a run per execution, a child run per stage, and a grandchild run per trained trial.
The stages hang below the newest execution, which takes them over from the interrupted one, so that its tree is
complete. If a study grows, the stages that continue or run again get a new run below that execution, which takes over
their finished trials; trials that run again get a new run as well, and the earlier runs are kept. Metrics are shown
with four significant digits; our tables have all.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.store.past_growths import Growths
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord, TrialRecord
from orchestrator.tracking.events import (
    DescribeExperiment,
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogText,
    MetricPoint,
    MoveRun,
    RegisterModel,
    ResumeRun,
    SetTags,
    ShareView,
    StartRun,
    event_to_json,
)
from orchestrator.tracking.names import short, trial_name
from orchestrator.tracking.pages import ALL_VIEW, TRIALS_VIEW
from trainers.config import EpochReport

Rows = list[str]
_STATUS = {"complete": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_TRIAL_METRICS = ("val_loss", "parameters")
"""Metrics that the view of trials shows after their place and the metric that decides."""
_TREE_COLUMNS = ("attributes.Description", "tags.vitsearch.state")
RANK = "rank"
"""Metric of a trial: its place in its stage, 1 for the best; ties in the first metric go to the lower loss."""
CHAMPION_TAG = "vitsearch.champion"
"""Tag of the trial from which the champion was made."""
DATA_REPORT = "data/data.json"
"""Artifact of an execution: what was understood of the images (`trainers.data.report`)."""
_CHECKPOINT_FILES = ("model.safetensors", "manifest.json")
_CURVES = ("train_loss", "val_loss", "val_accuracy", "learning_rate")


class RunTree:
    """Makes the events of one study as JSON; the store keeps them until they are delivered."""

    def __init__(
        self,
        study: StudyRecord,
        spec_text: str,
        *,
        setup: Mapping[str, Any] | None = None,
        growths: Growths | None = None,
    ) -> None:
        self._study = study
        self._growths = growths or Growths()
        self._spec_text = spec_text
        self._setup = dict(setup or {})
        self._tags = {
            "vitsearch.study": study.name,
            "vitsearch.spec_digest": study.spec_digest[:16],
            "vitsearch.seed": str(study.spec.get("seed")),
            "vitsearch.engine": str(self._setup.get("engine", study.spec.get("engine"))),
            "mlflow.user": study.owner,
        }

    def execution_key(self, number: int) -> str:
        return f"{self._study.uid}/execution/{number}"

    def stage_key(self, stage: StageRecord) -> str:
        return f"{self._study.uid}/stage/{stage.name}{_suffix(self._growths.latest_of_stage(stage.name))}"

    def trial_key(self, stage: StageRecord, number: int) -> str:
        suffix = _suffix(self._growths.latest_of_trial(stage.name, number))
        return f"{self._study.uid}/stage/{stage.name}/trial/{number}{suffix}"

    def _earlier_keys(self, stage: StageRecord, number: int) -> list[str]:
        """Keys of a trial's runs before it ran again."""
        latest = self._growths.latest_of_trial(stage.name, number)
        key = f"{self._study.uid}/stage/{stage.name}/trial/{number}"
        return [f"{key}{_suffix(growth)}" for growth in range(latest)]

    # --- executions ---

    def execution_began(
        self,
        execution: ExecutionRecord,
        inputs: Sequence[Mapping[str, Any]],
        *,
        stages: Sequence[StageRecord] = (),
        data_report: Mapping[str, Any] | None = None,
        sheet: Path | None = None,
    ) -> Rows:
        """Make the experiment, and a parent run with the study file, the data, their description and a picture.

        Args:
            execution: The execution.
            inputs: Its data.
            stages: Stages that began in an earlier execution; they move below this one.
            data_report: What was understood of the images.
            sheet: Picture of some images.
        """
        key = self.execution_key(execution.number)
        started = _ms(execution.started_at)
        described: list[Event] = []
        if data_report is not None:
            described.append(LogText(key=key, text=json.dumps(data_report, indent=2), artifact_file=DATA_REPORT))
        if sheet is not None:
            described.append(LogArtifact(key=key, path=str(sheet), artifact_path="data"))
        return _rows(
            EnsureExperiment(
                name=self._study.name,
                description=f"Study `{self._study.name}` is running: {', '.join(self._stage_names())}.",
                tags=self._tags,
            ),
            ShareView(
                experiment=self._study.name,
                name=ALL_VIEW,
                columns=_TREE_COLUMNS,
                descending=False,
                title="Executions, stages and trials",
                created_ms=_ms(self._study.created_at),
            ),
            StartRun(
                key=key,
                name=f"execution {execution.number + 1}",
                experiment=self._study.name,
                tags={**self._tags, "vitsearch.level": "execution", "vitsearch.code_version": execution.code_version},
                params={"seed": self._study.spec.get("seed"), **self._setup_params()},
                start_time_ms=started,
            ),
            LogText(key=key, text=self._spec_text, artifact_file="study.yaml"),
            *described,
            *(LogInputs(key=key, **facts) for facts in inputs),
            *(MoveRun(key=self.stage_key(stage), parent_key=key) for stage in stages),
        )

    def _stage_names(self) -> list[str]:
        return [str(stage.get("name") or stage["stage"]) for stage in self._study.spec.get("stages", ())]

    def experiment_described(self, text: str) -> Rows:
        """Replace the text above the runs; `DescribeExperiment` explains its links."""
        return _rows(DescribeExperiment(experiment=self._study.name, text=text))

    def execution_lost(self, execution: ExecutionRecord, *, ended_at: float) -> Rows:
        """End an execution whose process died. Its run may not exist yet, if tracking was off."""
        return _rows(
            StartRun(
                key=self.execution_key(execution.number),
                name=f"execution {execution.number + 1}",
                experiment=self._study.name,
                tags={**self._tags, "vitsearch.level": "execution", "vitsearch.code_version": execution.code_version},
                start_time_ms=_ms(execution.started_at),
            )
        ) + self.execution_ended(execution, "lost", ended_at=ended_at, metrics={})

    def _setup_params(self) -> dict[str, Any]:
        scheduler = self._setup.get("scheduler")
        named = {"scheduler": scheduler["name"]} if scheduler else {}
        return {**{key: self._setup[key] for key in ("engine", "pool", "reason") if key in self._setup}, **named}

    def reported(self, execution: ExecutionRecord, file: Path) -> Rows:
        """Show the report on the study with the execution that completed it."""
        return _rows(LogArtifact(key=self.execution_key(execution.number), path=str(file)))

    def execution_ended(
        self,
        execution: ExecutionRecord,
        state: str,
        *,
        ended_at: float,
        metrics: Mapping[str, float],
        summary: str | None = None,
    ) -> Rows:
        """End an execution; `summary` becomes the run's description."""
        tags = {"vitsearch.state": state, **({"mlflow.note.content": summary} if summary else {})}
        key = self.execution_key(execution.number)
        return _rows(
            SetTags(key=key, tags=tags),
            *_final_metrics(key, metrics, ended_at),
            EndRun(key=key, status=_STATUS.get(state, "KILLED"), end_time_ms=_ms(ended_at)),
        )

    # --- stages ---

    def stage_began(self, stage: StageRecord, execution: ExecutionRecord, params: Mapping[str, Any], at: float) -> Rows:
        """Begin or resume a stage. A resumed stage may have no run yet, if tracking was off."""
        key = self.stage_key(stage)
        resumed: list[Event] = []
        if stage.started_at is not None:
            resumed = [ResumeRun(key=key), _running_again(key)]
        return _rows(
            StartRun(
                key=key,
                parent_key=self.execution_key(execution.number),
                name=stage.name,
                experiment=self._study.name,
                tags={**self._tags, "vitsearch.level": "stage", "vitsearch.stage": stage.kind},
                params=dict(params),
                start_time_ms=_ms(at if stage.started_at is None else stage.started_at),
            ),
            *resumed,
        )

    def stage_ended(
        self,
        stage: StageRecord,
        state: str,
        *,
        at: float,
        metrics: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
        artifacts: Sequence[Path] = (),
        reason: str | None = None,
        summary: str | None = None,
    ) -> Rows:
        """End a stage with its results; `summary` becomes the run's description."""
        key = self.stage_key(stage)
        tags = {"vitsearch.state": state, **({"vitsearch.reason": reason} if reason else {})}
        tags |= {"mlflow.note.content": summary} if summary else {}
        return _rows(
            *_final_metrics(key, metrics or {}, at),
            *(LogText(key=key, text=text, artifact_file=name) for name, text in (texts or {}).items()),
            *(LogArtifact(key=key, path=str(path), artifact_path="plots") for path in artifacts),
            SetTags(key=key, tags=tags),
            EndRun(key=key, status=_STATUS.get(state, "KILLED"), end_time_ms=_ms(at)),
        )

    def stage_linked(self, stage: StageRecord, links: Mapping[str, str]) -> Rows:
        """Link the stage to where it started from: `initialised_from`, `warm_started_from`."""
        tags = {f"vitsearch.{name}": target for name, target in links.items()}
        return _rows(SetTags(key=self.stage_key(stage), tags=tags)) if tags else []

    def compared_with_study(self, stage: StageRecord, *, title: str, digest: str, study: str) -> Rows:
        """Link the stage to the study whose trained accuracies its scores were compared with."""
        tags = {"vitsearch.truth": title, "vitsearch.truth_digest": digest, "vitsearch.truth_study": study}
        return _rows(SetTags(key=self.stage_key(stage), tags=tags))

    def compared_with_table(
        self, stage: StageRecord, *, title: str, digest: str, name: str, source: str, num_topologies: int
    ) -> Rows:
        """Add the table of accuracies that scores were compared with as a dataset of the stage."""
        key = self.stage_key(stage)
        return _rows(
            SetTags(key=key, tags={"vitsearch.truth": title, "vitsearch.truth_digest": digest}),
            LogInputs(
                key=key,
                name=name,
                digest=digest[:36],
                source=source,
                context="ground truth",
                num_rows=num_topologies,
            ),
        )

    # --- trained trials ---

    def trial_began(
        self,
        stage: StageRecord,
        trial: TrialRecord,
        params: Mapping[str, Any],
        links: Mapping[str, str],
        *,
        again: bool = False,
    ) -> Rows:
        """Begin a trained trial, or resume one (`again`); delivering this twice is safe.

        Runs of a trial that ran before the study grew are no longer shown among the trials.
        """
        key = self.trial_key(stage, trial.number)
        name = trial_name(trial.number, parameters=params.get("topology.parameters"))
        resumed: list[Event] = []
        if again:
            resumed = [ResumeRun(key=key), _running_again(key)]
        earlier = [
            SetTags(key=one, tags={"vitsearch.level": "earlier trial"}, if_started=True)
            for one in self._earlier_keys(stage, trial.number)
        ]
        return _rows(
            *earlier,
            StartRun(
                key=key,
                parent_key=self.stage_key(stage),
                name=name,
                experiment=self._study.name,
                tags={
                    **self._tags,
                    "vitsearch.level": "trial",
                    "vitsearch.stage": stage.kind,
                    "vitsearch.stage_name": stage.name,
                    "vitsearch.state": "running",
                    "vitsearch.trial": str(trial.number),
                    "vitsearch.trial_seed": str(trial.seed),
                    "vitsearch.point": json.dumps(dict(trial.point)),
                    **{f"vitsearch.{name}": target for name, target in links.items()},
                },
                params=dict(params),
                start_time_ms=_ms(trial.started_at),
            ),
            *resumed,
        )

    def epoch(
        self, stage: StageRecord, trial: TrialRecord, report: EpochReport, at: float, *, validates: bool = True
    ) -> Rows:
        """Log an epoch; without `validates`, the validation images were trained on, and their figures are left out."""
        values = report.model_dump()
        curves = {name: values[name] for name in _CURVES} | report.metrics | report.signals
        if not validates:
            curves = {name: value for name, value in curves.items() if not name.startswith("val_")}
        points = tuple(MetricPoint(name, short(value), report.epoch, _ms(at)) for name, value in curves.items())
        return _rows(LogMetrics(key=self.trial_key(stage, trial.number), points=points))

    def trial_ended(
        self,
        stage: StageRecord,
        trial: TrialRecord,
        *,
        extra: Mapping[str, float],
        configuration_yaml: str,
        checkpoint: Path | None,
        result: str | None = None,
        notes: Sequence[str] = (),
    ) -> Rows:
        """Log the end of a trial: final metrics, configuration, newest checkpoint (weights only), state and name.

        Args:
            stage: Stage of the trial.
            trial: The trial.
            extra: Metrics from earlier stages.
            configuration_yaml: Everything needed to train it again.
            checkpoint: Folder of its newest checkpoint.
            result: The metric that decides, as short text for the run's name.
            notes: What users should know about how it ran; they become the tag `vitsearch.notes`.
        """
        key = self.trial_key(stage, trial.number)
        ended_at = trial.ended_at or trial.started_at
        files = [] if checkpoint is None else [checkpoint / name for name in _CHECKPOINT_FILES]
        configuration = []
        if configuration_yaml:
            configuration = [LogText(key=key, text=configuration_yaml, artifact_file="configuration.yaml")]
        final = {name: value for name, value in trial.metrics.items() if not _has_curve(name)}
        tags = {"vitsearch.state": trial.state, **({"vitsearch.reason": trial.reason} if trial.reason else {})}
        if notes:
            tags["vitsearch.notes"] = "\n".join(notes)
        result = "failed" if trial.state == "failed" else result
        tags["mlflow.runName"] = trial_name(trial.number, result=result, parameters=trial.metrics.get("parameters"))
        return _rows(
            *_final_metrics(key, {**final, **extra}, ended_at),
            *configuration,
            *(LogArtifact(key=key, path=str(file), artifact_path="checkpoint") for file in files),
            SetTags(key=key, tags=tags),
            EndRun(key=key, status=_STATUS[trial.state], end_time_ms=_ms(ended_at)),
        )

    def trial_interrupted(self, stage: StageRecord, trial: TrialRecord, *, at: float) -> Rows:
        """Show that a trial waits to be resumed."""
        key = self.trial_key(stage, trial.number)
        waits = SetTags(key=key, tags={"vitsearch.state": "waiting"})
        return _rows(waits, EndRun(key=key, status="KILLED", end_time_ms=_ms(at)))

    # --- all trials of a stage ---

    def trials_shown(
        self,
        stage: StageRecord,
        *,
        metrics: Sequence[str],
        descending: bool,
        params: Sequence[str],
        is_ranked: bool,
        at: float,
    ) -> Rows:
        """Share the view that compares the stage's trials: best first, with the parameters that the stage searches.

        Args:
            stage: The stage.
            metrics: The metrics that the search optimises; the first one decides.
            descending: Whether more of it is better.
            params: The searched parameters, such as `recipe.learning_rate`.
            is_ranked: Whether `trials_ranked` was sent; without, the table is sorted by the first metric.
            at: Time of the change.
        """
        several = sum(one["stage"] == stage.kind for one in self._study.spec.get("stages", ())) > 1
        # Version 0.1.0 did not name the stage. Trainings of a promote stage are trials as well.
        tag, value = ("stage_name", stage.name) if several else ("stage", stage.kind)
        shown = dict.fromkeys((*((RANK,) if is_ranked else ()), *metrics, *_TRIAL_METRICS))
        return _rows(
            ShareView(
                experiment=self._study.name,
                name=TRIALS_VIEW,
                columns=(*(f"metrics.{name}" for name in shown), *(f"params.{name}" for name in params)),
                order_by=f"metrics.{RANK if is_ranked else metrics[0]}",
                descending=descending and not is_ranked,
                filter=f"tags.`vitsearch.level` = 'trial' and tags.`vitsearch.{tag}` = '{value}'",
                title="Trials, best first",
                created_ms=_ms(at),
            )
        )

    def trials_taken_over(self, stage: StageRecord, trials: Sequence[TrialRecord]) -> Rows:
        """Hang trials of an earlier run of the stage below its new run, which it has since the study grew."""
        if not self._growths.latest_of_stage(stage.name):
            return []
        parent = self.stage_key(stage)
        return _rows(*(MoveRun(key=self.trial_key(stage, trial.number), parent_key=parent) for trial in trials))

    def trials_ranked(self, stage: StageRecord, ordered: Sequence[TrialRecord], *, at: float) -> Rows:
        """Give each trial its place; `ordered` has the best first. Trials without tracking have no run to write to."""
        return _rows(
            *(
                LogMetrics(
                    key=self.trial_key(stage, trial.number),
                    points=(MetricPoint(RANK, float(place), 0, _ms(at)),),
                    if_started=True,
                )
                for place, trial in enumerate(ordered, start=1)
            )
        )

    # --- the champion ---

    def champion_marked(
        self,
        stage: StageRecord,
        trial: TrialRecord,
        *,
        result: str,
        text: str,
        former: tuple[TrialRecord, str] | None = None,
    ) -> Rows:
        """Mark the trial from which the champion was made with a star, a tag and a description.

        Args:
            stage: Stage of the trial.
            trial: The trial.
            result: The metric that decides, as short text for the run's name.
            text: Description of the champion, Markdown.
            former: The trial of an earlier champion with its result, which loses its mark.
        """

        def named(one: TrialRecord, shown: str, *, is_champion: bool) -> dict[str, str]:
            parameters = one.metrics.get("parameters")
            name = trial_name(one.number, result=shown, parameters=parameters, is_champion=is_champion)
            return {"mlflow.runName": name}

        unmarked = []
        if former is not None and former[0].number != trial.number:
            key = self.trial_key(stage, former[0].number)
            removed = (CHAMPION_TAG, "mlflow.note.content")
            unmarked = [SetTags(key=key, tags=named(*former, is_champion=False), removed=removed, if_started=True)]
        marks = {CHAMPION_TAG: "true", "mlflow.note.content": text, **named(trial, result, is_champion=True)}
        return _rows(*unmarked, SetTags(key=self.trial_key(stage, trial.number), tags=marks, if_started=True))

    def champion_promoted(self, stage: StageRecord, folder: Path, *, tags: Mapping[str, str], text: str) -> Rows:
        key = self.stage_key(stage)
        return _rows(
            LogArtifact(key=key, path=str(folder), artifact_path="champion"),
            RegisterModel(
                key=key,
                name=self._study.name,
                artifact_path="champion",
                alias="champion",
                tags={**tags, "vitsearch.spec_digest": self._study.spec_digest[:16]},
                description=text,
            ),
        )


def _has_curve(metric: str) -> bool:
    """Whether each epoch logs the metric, so that its last value needs no further point."""
    return metric in _CURVES or (metric.startswith("val_") and not metric.endswith("_best"))


def _suffix(growth: int) -> str:
    """The part of a key that distinguishes runs before and after a growth."""
    return f"@{growth}" if growth else ""


def _final_metrics(key: str, metrics: Mapping[str, float], at: float) -> list[LogMetrics]:
    if not metrics:
        return []
    points = tuple(MetricPoint(name, short(float(value)), 0, _ms(at)) for name, value in metrics.items())
    return [LogMetrics(key=key, points=points)]


def _running_again(key: str) -> SetTags:
    """A run that goes on no longer has the reason for which it had stopped."""
    return SetTags(key=key, tags={"vitsearch.state": "running"}, removed=("vitsearch.reason",))


def _rows(*events: Event) -> Rows:
    return [event_to_json(event) for event in events]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
