"""How far a study is, and its best model so far: what a list of studies shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.store.records import FINISHED, StageRecord, StudyRecord
from orchestrator.store.repository import Store
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice


class StudyStanding(BaseModel):
    """The standing of one study."""

    model_config = ConfigDict(frozen=True)

    progress: float
    """Fraction of the work that is done, from 0 to 1: each stage counts the same, a running one by its trials."""
    stage: str | None
    """Name of the first stage that is not complete; `None` if all are."""
    metric: str
    """Key of the metric by which the study decides, such as `val_accuracy`."""
    best: float | None
    """Best value of that metric so far; `None` if no training has ended."""
    best_text: str | None
    """The same for people: `94.2 %`."""
    test_accuracy: float | None
    """Test accuracy of the champion, a fraction; `None` without a champion."""


def study_standing(store: Store, study: StudyRecord, stages: Sequence[StageRecord]) -> StudyStanding:
    """The standing of a study with these stages."""
    return study_standings(store, [study], {study.id: stages}, store.pages().trial_counts(study.id))[0]


def study_standings(
    store: Store,
    studies: Sequence[StudyRecord],
    stages: Mapping[int, Sequence[StageRecord]],
    counts: Mapping[int, Mapping[str, int]],
) -> list[StudyStanding]:
    """The standings of studies, from a few queries for all of them.

    Args:
        store: The store.
        studies: The studies.
        stages: Their stages, by the id of the study.
        counts: Number of their trials in each state, by the id of the stage.
    """
    metrics = [_metric(study) for study in studies]
    unfinished: dict[tuple[str, bool], list[int]] = {}
    for study, metric in zip(studies, metrics, strict=True):
        trained = _trained(stages[study.id])
        if trained is not None and not _has_result(trained):
            unfinished.setdefault((metric.key, metric.direction == "maximize"), []).append(trained.id)
    best: dict[int, float] = {}
    for (key, is_highest), ids in unfinished.items():
        best |= store.pages().best_values(ids, key, is_highest=is_highest)
    return [
        _standing(study, stages[study.id], counts, metric, best) for study, metric in zip(studies, metrics, strict=True)
    ]


def _standing(
    study: StudyRecord,
    stages: Sequence[StageRecord],
    counts: Mapping[int, Mapping[str, int]],
    metric: DecidingMetric,
    best_so_far: Mapping[int, float],
) -> StudyStanding:
    blocks = dict(enumerate(study.spec.get("stages", ())))
    done = sum(
        1.0 if stage.state == "complete" else _fraction(blocks.get(stage.position, {}), counts.get(stage.id, {}))
        for stage in stages
    )
    best = _best(_trained(stages), metric, best_so_far)
    champions = [one.result for one in stages if one.kind == "promote" and one.result]
    return StudyStanding(
        progress=done / len(stages) if stages else 0.0,
        stage=next((stage.name for stage in stages if stage.state != "complete"), None),
        metric=metric.key,
        best=best,
        best_text=None if best is None else metric.text(best),
        test_accuracy=champions[-1]["test_accuracy"] if champions else None,
    )


def _fraction(block: Mapping[str, Any], counts: Mapping[str, int]) -> float:
    """The fraction of a stage's trials that have ended; nothing is known of stages without a number of trials."""
    total = block.get("num_trials")
    ended = sum(count for state, count in counts.items() if state in FINISHED)
    return min(ended / total, 1.0) if isinstance(total, int) and total > 0 else 0.0


def _metric(study: StudyRecord) -> DecidingMetric:
    """The metric of a study; accuracy if its plug-in is not installed here."""
    chosen = study.spec.get("metric") or ()
    first = chosen[0] if isinstance(chosen, list) and chosen else chosen
    try:
        return DecidingMetric.of(PluginChoice.model_validate(first)) if first else ACCURACY
    except ValueError:
        return ACCURACY


def _trained(stages: Sequence[StageRecord]) -> StageRecord | None:
    """The last training stage that has begun."""
    return next((one for one in reversed(stages) if one.kind == "train" and one.state != "waiting"), None)


def _has_result(stage: StageRecord) -> bool:
    return stage.state == "complete" and bool(stage.result.get("best"))


def _best(stage: StageRecord | None, metric: DecidingMetric, best_so_far: Mapping[int, float]) -> float | None:
    """The best value of a training stage: that of its result, or the best so far."""
    if stage is None:
        return None
    value = stage.result["best"].get(metric.key) if _has_result(stage) else best_so_far.get(stage.id)
    return None if value is None else float(value)
