"""Searches in the form in which Optuna itself stores them, for optuna-dashboard and Optuna's own analyses."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.optuna_space import OptunaSpace
from orchestrator.store.records import FINISHED, TrialRecord
from search_spaces.dimensions import Dimension

optuna.logging.set_verbosity(optuna.logging.ERROR)


class OptunaExportError(ValueError):
    """A search cannot be written into an Optuna database; the message states the reason and what to do."""


@dataclass(frozen=True, kw_only=True)
class ExportedSearch:
    """A search with its trials, to be written as one study of Optuna's."""

    name: str
    """Name of Optuna's study."""
    dimensions: tuple[Dimension, ...]
    objectives: tuple[Objective, ...]
    trials: Sequence[TrialRecord]
    """All trials; those that have not ended are left out."""
    curves: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    """The first objective after each epoch, by number of the trial; Optuna keeps it for one objective only."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the search, such as its seed; plain JSON."""

    @property
    def ended(self) -> list[TrialRecord]:
        """The trials that are written."""
        return [trial for trial in self.trials if trial.state in FINISHED]


def export_searches(searches: Sequence[ExportedSearch], url: str, *, overwrite: bool = False) -> None:
    """Write searches into an Optuna database, which is created if necessary.

    A trial that failed, or whose objective is not finite, becomes a failed one, and one that a scheduler stopped a
    pruned one. Metrics that are no objectives, and the number of the trial, are its user attributes.

    Args:
        searches: What to write.
        url: SQLAlchemy URL of the database, such as `sqlite:///file.db`.
        overwrite: Whether studies of the same names are replaced.

    Raises:
        OptunaExportError: The database cannot be opened or written, or has a study of the same name.
    """
    prepared = [(search, [_frozen(search, trial) for trial in search.ended]) for search in searches]
    storage = _open(url)
    try:
        known = {summary.study_name for summary in optuna.get_all_study_summaries(storage=storage)}
        present = sorted(known & {search.name for search in searches})
        if present and not overwrite:
            raise OptunaExportError(
                f"the Optuna database must not have a study {present[0]!r} yet, but does. Add --overwrite, or name "
                "another database."
            )
        for search, trials in prepared:
            _write(search, trials, storage, is_present=search.name in known)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open(url: str) -> RDBStorage:
    try:
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's classes are known to the store only
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OptunaExportError(
            "--optuna must be the SQLAlchemy URL of a database that can be opened, such as sqlite:///optuna.db, but "
            f"that failed: {reason}. Correct the URL, or install the driver of the database."
        ) from error


def _write(search: ExportedSearch, trials: Sequence[FrozenTrial], storage: RDBStorage, *, is_present: bool) -> None:
    """Write one search. If that fails, no half of it remains."""
    if is_present:
        optuna.delete_study(study_name=search.name, storage=storage)
    try:
        study = optuna.create_study(
            storage=storage, study_name=search.name, directions=[one.direction for one in search.objectives]
        )
    except DuplicatedStudyError as error:  # another process was faster
        raise OptunaExportError(f"another process has just written the study {search.name!r}. Try again.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([one.metric for one in search.objectives])
        for name, value in search.attributes.items():
            study.set_user_attr(name, value)
        study.add_trials(trials)
    except BaseException:
        optuna.delete_study(study_name=search.name, storage=storage)
        raise


def _frozen(search: ExportedSearch, trial: TrialRecord) -> FrozenTrial:
    """A trial in Optuna's form.

    Raises:
        OptunaExportError: Its point does not lie in the search space.
    """
    names = [one.metric for one in search.objectives]
    found = [trial.metrics.get(name) for name in names] if trial.is_usable else [None]
    values = [float(value) for value in found if value is not None and isfinite(value)]
    is_whole = len(values) == len(names)
    is_single = len(names) == 1
    state = TrialState.FAIL
    if is_whole:
        state = TrialState.PRUNED if trial.rung is not None else TrialState.COMPLETE
    curve = search.curves.get(trial.number, {}) if is_single else {}
    try:
        distributions = OptunaSpace(search.dimensions).distributions_of(trial.point)
    except ValueError as error:
        raise OptunaExportError(f"{search.name}, trial {trial.number}: {error}") from error
    others = {name: value for name, value in trial.metrics.items() if name not in names and isfinite(value)}
    known = {"trial": trial.number, "seed": trial.seed, "state": trial.state, "reason": trial.reason}
    return FrozenTrial(
        number=-1,  # the storage sets number and id
        trial_id=-1,
        state=state,
        value=None,
        values=values if is_whole else None,
        datetime_start=_moment(trial.started_at),
        datetime_complete=_moment(trial.started_at if trial.ended_at is None else trial.ended_at),
        params=dict(trial.point),
        distributions=distributions,
        user_attrs={**{name: value for name, value in known.items() if value is not None}, **others},
        system_attrs={},
        intermediate_values={epoch: value for epoch, value in curve.items() if isfinite(value)},
    )


def _moment(seconds: float) -> datetime:
    """A time in the form that Optuna stores: local, without a zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().replace(tzinfo=None)
