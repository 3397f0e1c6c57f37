"""Runs studies, and returns what they found as plain records."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.cli.quiet import quiet_libraries
from orchestrator.safe_text import masked_address
from orchestrator.settings import Settings
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.kind import StageResult, stage_kind
from orchestrator.stages.progress import Progress, SilentProgress
from orchestrator.stages.promote import PromoteResult
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.records import StageRecord, StudyRecord, StudyState, TrialRecord, TrialState
from orchestrator.study.access import NoChampionError, fetched_study_folder, find_study, open_existing
from plugins.registry import nearest_name
from search_spaces.dimensions import Scalar
from trainers.config import Configuration
from trainers.storage.artifacts import fetched
from vitsearch._study_files import load_study, settings_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from trainers.champion import Predictor

StudySource = StudySpec | Mapping[str, Any] | str | os.PathLike[str]
"""A study: what `load_study` returned, the content of a study file as a mapping, or the path of one."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One sampled point of a stage, with its result."""

    stage: str
    """Name of its stage."""
    number: int
    """Within its stage, starting at 0."""
    state: TrialState
    """`complete`, `stopped` (early, with a result), `failed`, `running`, or `waiting` (to be resumed)."""
    topology: str | None
    """As `space:text`; `None` in stages without topologies."""
    point: Mapping[str, Scalar]
    """What was sampled, by the name of the dimension, such as `recipe.learning_rate`."""
    metrics: Mapping[str, float]
    seed: int
    reason: str | None
    """Why it failed or was stopped."""
    started_at: float
    """Seconds since 1970, UTC."""
    ended_at: float | None


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The model that a study promoted."""

    trial: int
    """The trial of the train stage that it comes from."""
    metrics: Mapping[str, float]
    """`test_accuracy`, `test_loss`, `val_accuracy`, `val_loss`, `parameters` and `macs`."""
    configuration: Configuration
    """All that is needed to train it again."""
    folder: Path
    """The model's folder, which can be copied anywhere."""

    def load(self, *, device: "torch.device | str | None" = None) -> "Predictor":
        """The model, ready to predict. See `load_model`."""
        from vitsearch._models import load_model

        return load_model(self.folder, device=device)


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """The state and the results of a study at the time when this object was made."""

    name: str
    state: StudyState
    """`complete`, `failed` (a stage could not reach its goal), `cancelled`, `interrupted`, `running` or `waiting`."""
    reason: str | None
    """Why it failed or was interrupted."""
    spec: StudySpec = field(repr=False)
    folder: Path
    """The study's files: checkpoints, plots and the champion; with an object store, local copies of the plots."""
    stages: Mapping[str, StageResult] = field(repr=False)
    """The results of the complete stages by name, each of the type of its kind of stage, such as `TrainResult`."""
    _trials: Mapping[str, tuple[Trial, ...]] = field(repr=False)
    _champion: Champion | None = field(repr=False)

    @property
    def champion(self) -> Champion:
        """The model that the study promoted.

        Raises:
            NoChampionError: The stage `promote` is not complete, or the study has none.
        """
        if self._champion is None:
            raise NoChampionError(self.name, self.state)
        return self._champion

    def trials(self, stage: str | None = None) -> list[Trial]:
        """The trials of a stage by number, or those of all stages in order.

        Raises:
            ValueError: The study has no stage of that name.
        """
        if stage is None:
            return [trial for trials in self._trials.values() for trial in trials]
        if stage not in self._trials:
            nearest = nearest_name(stage, self._trials)
            hint = f"Did you mean {nearest!r}?" if nearest else "Name one of these."
            raise ValueError(
                f"`stage` must be a stage of study {self.name!r} ({', '.join(self._trials)}), but got {stage!r}. {hint}"
            )
        return list(self._trials[stage])

    def trials_frame(self, stage: str | None = None) -> "pd.DataFrame":
        """The same trials as a table: a row for each, a column for each dimension and each metric.

        Columns `stage`, `trial`, `state`, `topology`, `reason`, `trial_seed`, `started_at` and `ended_at` come first.

        Raises:
            ValueError: The study has no stage of that name.
        """
        import pandas as pd

        frame = pd.DataFrame([_row(trial) for trial in self.trials(stage)])
        if frame.empty:
            return pd.DataFrame(columns=_COLUMNS)
        for name in ("started_at", "ended_at"):
            frame[name] = pd.to_datetime(frame[name], unit="s", utc=True)
        return frame


_COLUMNS = ["stage", "trial", "state", "topology", "reason", "trial_seed", "started_at", "ended_at"]


def run_study(
    study: StudySource,
    *,
    home: Path | str | None = None,
    tracking: bool | None = None,
    progress: Progress | bool | None = None,
    should_stop: Callable[[], bool] | None = None,
    retry_failed: bool = False,
) -> StudyRun:
    """Run a study to its end, resume it where it stopped, or extend it if it has more trials, epochs or stages now.

    A complete study with nothing left to do is only read.

    `KeyboardInterrupt` (Ctrl-C, or the stop button of a notebook) leaves a study that the same call resumes: no
    finished trial runs again, and a training continues from its last checkpoint.

    Args:
        study: What `load_study` returns, a mapping, or the path of a study file.
        home: Where studies are kept, by default `VITSEARCH_HOME`.
        tracking: Whether MLflow is told, by default `VITSEARCH_TRACKING`.
        progress: `True` shows it on stderr; an object with the methods of `Progress` is called. Nothing is printed by
            default.
        should_stop: Called often, also during a training; the study is interrupted once it returns `True`.
        retry_failed: Whether failed trials of an existing study run once more.

    Returns:
        The study. Check its `state`: a study that failed or was interrupted by `should_stop` is returned, too.

    Raises:
        SpecError: The study has mistakes; the message names all of them.
        SpecChangedError: The name is taken by a study that cannot grow to these settings.
        DataError: The images cannot be used.
        DataChangedError: The images changed since the study began.
        TruthError: What a correlate stage compares with cannot be used.
        SettingsError: The home folder cannot be made, or an environment variable has a wrong value.
        StudyBusyError: Another process runs the study.
        DatabaseUnavailableError: The database was lost, or cannot be written.
        EngineUnavailableError: Ray is not installed, does not start, or its cluster does not answer.
    """
    quiet_libraries()
    from orchestrator.study import driver

    settings = settings_of(home, tracking)
    settings.apply()
    spec, text = _spec_and_text(study, settings)
    with _display(progress) as shown:
        driver.run_study(
            _without_exit(spec),
            text,
            settings,
            progress=shown,
            control=_StopWhen(should_stop),
            retry_failed=retry_failed,
        )
    return _read(spec.study, settings)


def load_run(name: str, *, home: Path | str | None = None) -> StudyRun:
    """A study that was run before, here or on the command line, as it is now.

    Raises:
        UnknownStudyError: There is no study of that name.
        TruthError: A version of vitsearch with another form of study files made it.
    """
    return _read(name, settings_of(home))


class _StopWhen:
    """A caller's function as the control of a study."""

    def __init__(self, should_stop: Callable[[], bool] | None) -> None:
        self._should_stop = should_stop

    def should_stop(self) -> bool:
        return self._should_stop is not None and self._should_stop()


def _spec_and_text(study: StudySource, settings: Settings) -> tuple[StudySpec, str]:
    """A study, and its text for MLflow."""
    if not isinstance(study, StudySpec | Mapping):
        spec = load_study(study, home=settings.home)
        return spec, Path(study).read_text(encoding="utf-8")
    spec = study if isinstance(study, StudySpec) else load_study(study, home=settings.home)
    return spec, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _without_exit(spec: StudySpec) -> StudySpec:
    """The study without the limit on silent trainings in this process, unless it was set: it ends the process."""
    from orchestrator.engines.choice import choose, detect_machine

    resources = spec.resources
    if "silent_minutes" in resources.model_fields_set or choose(spec, detect_machine()).pool == "ray":
        return spec
    return spec.model_copy(update={"resources": resources.model_copy(update={"silent_minutes": None})})


def _display(progress: Progress | bool | None) -> AbstractContextManager[Progress]:
    if progress is None or progress is False:
        return nullcontext(SilentProgress())
    if progress is not True:
        return nullcontext(progress)
    from rich.console import Console

    from orchestrator.cli.decoding import study_display

    return study_display(Console(stderr=True, highlight=False))


def _read(name: str, settings: Settings) -> StudyRun:
    from orchestrator.stages.truths import read_spec

    study = find_study(name, settings)
    spec, folder = read_spec(study), fetched_study_folder(settings, study)
    with open_existing(settings) as store:
        if store is None:
            raise DatabaseUnavailableError(
                f"the database {masked_address(settings.database_url)} must exist, but it has disappeared. Restore it."
            )
        rows = store.stages(study.id)
        records = {stage.name: store.trials(stage.id) for stage in rows}
        known = {stage.name: _result(stage, spec, records[stage.name]) for stage in rows if stage.result}
        results = {stage.name: known[stage.name] for stage in rows if stage.state == "complete"}
    trials = {stage: tuple(_trial(stage, record, study) for record in found) for stage, found in records.items()}
    return StudyRun(
        name=study.name,
        state=study.state,
        reason=study.reason,
        spec=spec,
        folder=folder,
        stages=results,
        _trials=trials,
        _champion=_champion(known, folder),  # a study that grows keeps its champion meanwhile
    )


def _result(stage: StageRecord, spec: StudySpec, trials: list[TrialRecord]) -> StageResult:
    result: StageResult = stage_kind(stage.kind).read(stage, spec.stages[stage.position], lambda: trials)
    return result


def _trial(stage: str, record: TrialRecord, study: StudyRecord) -> Trial:
    # The rows of a killed process stay "running" until the study is resumed.
    is_left = record.state == "running" and study.state != "running"
    topology = record.point.get("topology") or record.details.get("topology")
    return Trial(
        stage=stage,
        number=record.number,
        state="waiting" if is_left else record.state,
        topology=None if topology is None else str(topology),
        point=record.point,
        metrics=record.metrics,
        seed=record.seed,
        reason=record.reason,
        started_at=record.started_at,
        ended_at=record.ended_at,
    )


def _champion(results: Mapping[str, StageResult], folder: Path) -> Champion | None:
    promoted = [result for result in results.values() if isinstance(result, PromoteResult)]
    if not promoted:
        return None
    result = promoted[-1]
    return Champion(
        trial=result.trial,
        metrics={name: value for name, value in result if isinstance(value, float)},
        configuration=result.configuration,
        folder=fetched(folder / result.folder),
    )


def _row(trial: Trial) -> dict[str, Any]:
    """A trial as a row of a table with `_COLUMNS` and a column for each dimension and metric."""
    row: dict[str, Any] = {
        "stage": trial.stage,
        "trial": trial.number,
        "state": trial.state,
        "topology": trial.topology,
        "reason": trial.reason,
        "trial_seed": trial.seed,
        "started_at": trial.started_at,
        "ended_at": trial.ended_at,
    }
    row |= {name: value for name, value in trial.point.items() if name != "topology"}
    return row | {f"metric.{name}" if name in _COLUMNS else name: value for name, value in trial.metrics.items()}
