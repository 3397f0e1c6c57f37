"""A study as a tree of MLflow runs, with their parameters, metrics, tags and inputs.

There is one experiment per study, a run per execution, a child run per stage, and a grandchild run per trained trial. A
resumed stage keeps its run, below the execution that began it. If a study grows, the stages that continue or run again
get a new run below that execution, and so do the trials that run again; the earlier runs are kept.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.store.past_growths import Growths
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord, TrialRecord
from orchestrator.tracking.events import (
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    LogInputs,
    LogMetrics,
    LogText,
    MetricPoint,
    RegisterModel,
    ResumeRun,
    SetTags,
    ShareView,
    StartRun,
    event_to_json,
)
from plugins.metrics.deciding import ACCURACY_CHOICE, DecidingMetric
from search_spaces.recipes import PluginChoice
from trainers.config import EpochReport

Rows = list[str]
_STATUS = {"complete": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
TRIALS_VIEW = "trials"
"""Name of the experiment's view that compares trained trials."""
ALL_VIEW = "all"
"""Name of the view that shows executions, stages and trials as a tree."""
_ALL_COLUMNS = (
    "metrics.val_accuracy",
    "metrics.parameters",
    "params.recipe.learning_rate",
    "params.recipe.augmentation",
    "params.recipe.curriculum",
    "params.recipe.schedule",
)
_TRIAL_COLUMNS = (
    "metrics.val_accuracy",
    "metrics.val_loss",
    "metrics.parameters",
    "metrics.wall_time_s",
    "params.topology",
    "params.recipe.learning_rate",
    "params.recipe.weight_decay",
    "params.recipe.schedule",
    "params.recipe.augmentation",
    "params.recipe.curriculum",
    "tags.vitsearch.state",
)
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
        self._metric = _metric_of(study)
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

    # --- executions ---

    def execution_began(
        self,
        execution: ExecutionRecord,
        inputs: Sequence[Mapping[str, Any]],
        *,
        data_report: Mapping[str, Any] | None = None,
        sheet: Path | None = None,
    ) -> Rows:
        """Make the experiment, and a parent run with the study file, the data, their description and a picture."""
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
                description=f"vitsearch study `{self._study.name}`: a run per execution, its stages and trials below.",
                tags=self._tags,
            ),
            ShareView(
                experiment=self._study.name,
                name=TRIALS_VIEW,
                columns=tuple(dict.fromkeys([f"metrics.{self._metric.key}", *_TRIAL_COLUMNS])),
                order_by=f"metrics.{self._metric.key}",
                descending=self._metric.direction == "maximize",
                filter="tags.`vitsearch.level` = 'trial'",
            ),
            ShareView(experiment=self._study.name, name=ALL_VIEW, columns=_ALL_COLUMNS, descending=False),
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
        )

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

    def execution_ended(
        self, execution: ExecutionRecord, state: str, *, ended_at: float, metrics: Mapping[str, float]
    ) -> Rows:
        key = self.execution_key(execution.number)
        return _rows(
            SetTags(key=key, tags={"vitsearch.state": state}),
            *_final_metrics(key, metrics, ended_at),
            EndRun(key=key, status=_STATUS.get(state, "KILLED"), end_time_ms=_ms(ended_at)),
        )

    # --- stages ---

    def stage_began(self, stage: StageRecord, execution: ExecutionRecord, params: Mapping[str, Any], at: float) -> Rows:
        """Begin or resume a stage. A resumed stage may have no run yet, if tracking was off."""
        key = self.stage_key(stage)
        resumed: list[Event] = []
        if stage.started_at is not None:
            resumed = [ResumeRun(key=key), SetTags(key=key, tags={"vitsearch.state": "running"})]
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
    ) -> Rows:
        key = self.stage_key(stage)
        tags = {"vitsearch.state": state, **({"vitsearch.reason": reason} if reason else {})}
        return _rows(
            *_final_metrics(key, metrics or {}, at),
            *(LogText(key=key, text=text, artifact_file=name) for name, text in (texts or {}).items()),
            *(LogArtifact(key=key, path=str(path), artifact_path="plots") for path in artifacts),
            SetTags(key=key, tags=tags),
            EndRun(key=key, status=_STATUS.get(state, "KILLED"), end_time_ms=_ms(at)),
        )

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
        self, stage: StageRecord, trial: TrialRecord, params: Mapping[str, Any], links: Mapping[str, str]
    ) -> Rows:
        """Begin or resume a trained trial; delivering this twice is safe."""
        return _rows(
            StartRun(
                key=self.trial_key(stage, trial.number),
                parent_key=self.stage_key(stage),
                name=f"trial {trial.number:02d}",
                experiment=self._study.name,
                tags={
                    **self._tags,
                    "vitsearch.level": "trial",
                    "vitsearch.stage": stage.kind,
                    "vitsearch.trial": str(trial.number),
                    "vitsearch.trial_seed": str(trial.seed),
                    **{f"vitsearch.{name}": target for name, target in links.items()},
                },
                params=dict(params),
                start_time_ms=_ms(trial.started_at),
            )
        )

    def epoch(self, stage: StageRecord, trial: TrialRecord, report: EpochReport, at: float) -> Rows:
        values = report.model_dump()
        curves = {name: values[name] for name in _CURVES} | report.metrics | report.signals
        points = tuple(MetricPoint(name, value, report.epoch, _ms(at)) for name, value in curves.items())
        return _rows(LogMetrics(key=self.trial_key(stage, trial.number), points=points))

    def trial_ended(
        self,
        stage: StageRecord,
        trial: TrialRecord,
        *,
        extra: Mapping[str, float],
        configuration_yaml: str,
        checkpoint: Path | None,
    ) -> Rows:
        """Log the end of a trial: final metrics, configuration, newest checkpoint (weights only), and state."""
        key = self.trial_key(stage, trial.number)
        ended_at = trial.ended_at or trial.started_at
        files = [] if checkpoint is None else [checkpoint / name for name in _CHECKPOINT_FILES]
        configuration = []
        if configuration_yaml:
            configuration = [LogText(key=key, text=configuration_yaml, artifact_file="configuration.yaml")]
        final = {name: value for name, value in trial.metrics.items() if not _has_curve(name)}
        tags = {"vitsearch.state": trial.state, **({"vitsearch.reason": trial.reason} if trial.reason else {})}
        return _rows(
            *_final_metrics(key, {**final, **extra}, ended_at),
            *configuration,
            *(LogArtifact(key=key, path=str(file), artifact_path="checkpoint") for file in files),
            SetTags(key=key, tags=tags),
            EndRun(key=key, status=_STATUS[trial.state], end_time_ms=_ms(ended_at)),
        )

    # --- the champion ---

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


def _metric_of(study: StudyRecord) -> DecidingMetric:
    """The metric by which a study decides; rows of version 0.1.0 name none."""
    named = study.spec.get("metric", ACCURACY_CHOICE)
    return DecidingMetric.of(PluginChoice.model_validate(named[0] if isinstance(named, list) else named))


def _has_curve(metric: str) -> bool:
    """Whether each epoch logs the metric, so that its last value needs no further point."""
    return metric in _CURVES or (metric.startswith("val_") and not metric.endswith("_best"))


def _suffix(growth: int) -> str:
    """The part of a key that distinguishes runs before and after a growth."""
    return f"@{growth}" if growth else ""


def _final_metrics(key: str, metrics: Mapping[str, float], at: float) -> list[LogMetrics]:
    if not metrics:
        return []
    points = tuple(MetricPoint(name, float(value), 0, _ms(at)) for name, value in metrics.items())
    return [LogMetrics(key=key, points=points)]


def _rows(*events: Event) -> Rows:
    return [event_to_json(event) for event in events]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
