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


def study_standing(
    store: Store,
    study: StudyRecord,
    stages: Sequence[StageRecord],
    counts: Mapping[int, Mapping[str, int]] | None = None,
) -> StudyStanding:
    """The standing of a study.

    Args:
        store: The store.
        study: The study.
        stages: Its stages.
        counts: Number of its trials in each state, by the id of their stage, if they were read already.
    """
    counts = store.pages().trial_counts(study.id) if counts is None else counts
    blocks = dict(enumerate(study.spec.get("stages", ())))
    done = sum(
        1.0 if stage.state == "complete" else _fraction(blocks.get(stage.position, {}), counts.get(stage.id, {}))
        for stage in stages
    )
    metric = _metric(study)
    best = _best(store, stages, metric)
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


def _best(store: Store, stages: Sequence[StageRecord], metric: DecidingMetric) -> float | None:
    trained = next((one for one in reversed(stages) if one.kind == "train" and one.state != "waiting"), None)
    if trained is None:
        return None
    if trained.state == "complete" and trained.result.get("best"):
        value = trained.result["best"].get(metric.key)
        return None if value is None else float(value)
    values = [one.metrics[metric.key] for one in store.pages().results(trained.id) if metric.key in one.metrics]
    return max(values, key=metric.score, default=None)
