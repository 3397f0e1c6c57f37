"""A study as plain data, which `vitsearch status --format json` prints."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.reports.standing import StudyStanding, study_standings
from orchestrator.store.records import ExecutionRecord, StageRecord, StudyRecord, StudyState
from orchestrator.store.repository import Store
from orchestrator.store.service_records import SubmissionRecord
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from trainers.config import Configuration


def study_summary(store: Store, study: StudyRecord) -> dict[str, Any]:
    """The state and results of all stages, the leaderboard, the correlation and the champion (`None` if missing)."""
    records = store.stages(study.id)
    stages = [_with_absolute_folder(stage, store.study_folder(study)) for stage in records]
    owed, executions = store.outbox(study.id), store.executions(study.id)
    counts = store.pages().trial_counts(study.id)
    return {
        "study": study.name,
        "uid": study.uid,
        "state": study.state,
        "reason": study.reason,
        "owner": study.owner,
        "seed": study.spec["seed"],
        "spec_digest": study.spec_digest,
        "created_at": study.created_at,
        "updated_at": _newest_times(store, [study], {study.id: records})[study.id],
        "num_executions": len(executions),
        "data": next((one.setup["data"] for one in executions if one.setup and "data" in one.setup), None),
        "stages": [
            _stage(stage, counts.get(stage.id, {}), executions, is_alive=study.state == "running") for stage in stages
        ],
        "metric": (_last_result(stages, "train") or {}).get("metric", ACCURACY.model_dump(mode="json")),
        "baseline": (_last_result(stages, "train") or {}).get("baseline", {}),
        "cost": (_last_result(stages, "train") or {}).get("cost"),
        "front": (_last_result(stages, "train") or {}).get("front", []),
        "ranked_by": (_last_result(stages, "train") or {}).get("ranked_by", ACCURACY.key),
        "certainty": (_last_result(stages, "train") or {}).get("certainty"),
        "time_error": (_last_result(stages, "train") or {}).get("time_error"),
        "leaderboard": (_last_result(stages, "train") or {}).get("leaderboard", []),
        "correlation": _last_result(stages, "correlate"),
        "champion": _last_result(stages, "promote"),
        "tracking": {"owed": owed.count_owed(), "rejected": owed.count_rejected(), "reason": owed.rejection()},
    }


def summary_before_begin(
    submission: SubmissionRecord, spec: Mapping[str, Any], state: StudyState, reason: str | None
) -> dict[str, Any]:
    """The summary of a study that was submitted and has not begun.

    Args:
        submission: Its newest submission.
        spec: Its study file.
        state: Its state, as `orchestrator.study.states` tells it.
        reason: Why it waits, or does no longer.
    """
    nothing = dict.fromkeys(("data", "cost", "certainty", "time_error", "correlation", "champion"))
    stage: dict[str, Any] = {"state": "waiting", "reason": None, "wall_time_s": None, "trials": {}, "result": {}}
    return {
        **nothing,
        "study": submission.name,
        "uid": submission.uid,
        "state": state,
        "reason": reason,
        "owner": submission.owner,
        "seed": spec["seed"],
        "spec_digest": "",
        "created_at": submission.created_at,
        "updated_at": submission.created_at,
        "num_executions": 0,
        "stages": [{"name": stage_name(one), "kind": one["stage"], **stage} for one in spec["stages"]],
        "metric": ACCURACY.model_dump(mode="json"),
        "baseline": {},
        "front": [],
        "ranked_by": ACCURACY.key,
        "leaderboard": [],
        "tracking": {"owed": 0, "rejected": 0, "reason": None},
    }


def stage_name(stage: Mapping[str, Any]) -> str:
    """Name of a stage in a study file, by default its kind."""
    return str(stage.get("name") or stage["stage"])


def study_line(store: Store, study: StudyRecord) -> dict[str, Any]:
    """The data of one study for `vitsearch list`."""
    return study_lines(store, [study])[0]


def study_lines(store: Store, studies: Sequence[StudyRecord]) -> list[dict[str, Any]]:
    """The data of studies for a list, from a few queries for all of them."""
    ids = [study.id for study in studies]
    stages, counts = store.pages().stages(ids), store.pages().trial_counts(*ids)
    standings = study_standings(store, studies, stages, counts)
    newest = _newest_times(store, studies, stages)
    return [
        _line(study, stages[study.id], standing, newest[study.id])
        for study, standing in zip(studies, standings, strict=True)
    ]


def _newest_times(
    store: Store, studies: Sequence[StudyRecord], stages: Mapping[int, Sequence[StageRecord]]
) -> dict[int, float]:
    """When something last changed in studies, by id: while a stage runs, its trials change, and the study does not."""
    running = [stage for one in stages.values() for stage in one if stage.state == "running"]
    newest = {study.id: study.updated_at for study in studies}
    of_trials = store.pages().newest_times([stage.id for stage in running])
    for stage in running:
        times = (newest[stage.study_id], stage.started_at or 0.0, of_trials.get(stage.id, 0.0))
        newest[stage.study_id] = max(times)
    return newest


def _line(
    study: StudyRecord, stages: Sequence[StageRecord], standing: StudyStanding, updated_at: float
) -> dict[str, Any]:
    return {
        "study": study.name,
        "state": study.state,
        "reason": study.reason,
        "owner": study.owner,
        "stages": len(stages),
        "stages_done": sum(stage.state == "complete" for stage in stages),
        **standing.model_dump(mode="json"),
        "created_at": study.created_at,
        "updated_at": updated_at,
    }


def configuration_yaml(configuration: Configuration, recommended_stopping: dict[str, Any] | None) -> str:
    """A configuration as text that `vitsearch train` reads, with the stopping stage's recommendation as a comment."""
    text = yaml.safe_dump(configuration.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if recommended_stopping is None:
        return text
    saved, lost = recommended_stopping["epochs_saved"], recommended_stopping["accuracy_lost"]
    metric = DecidingMetric.model_validate(recommended_stopping.get("metric", ACCURACY))
    criterion = recommended_stopping["criterion"]
    if isinstance(criterion, dict):
        criterion = dict(sorted(criterion.items(), key=lambda item: item[0] != "name"))
    advice = yaml.safe_dump(
        {"stopping": criterion},
        default_flow_style=True,
        sort_keys=False,
        width=1000,
    ).strip()
    return (
        f"{text}# The stopping stage found a criterion that saves {100 * saved:.0f} % of the epochs for "
        f"{metric.amount(lost)}.\n# To use it, replace the line `stopping:` with: {advice[1:-1]}\n"
    )


def active_time_s(stage: StageRecord, executions: Sequence[ExecutionRecord]) -> float | None:
    """Seconds that a stage ran, without the time between executions; `None` if it has not ended."""
    if stage.started_at is None or stage.ended_at is None:
        return None
    began, ended = stage.started_at, stage.ended_at
    spans = (min(one.ended_at or ended, ended) - max(one.started_at, began) for one in executions)
    return sum(span for span in spans if span > 0)


def _stage(
    stage: StageRecord, counts: Mapping[str, int], executions: Sequence[ExecutionRecord], *, is_alive: bool
) -> dict[str, Any]:
    trials, state = Counter(counts), stage.state
    if not is_alive:  # after a process was killed, its rows stay "running" until the study is resumed
        trials["waiting"] += trials.pop("running", 0)
        state = "interrupted" if state == "running" else state
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": state,
        "reason": stage.reason,
        "wall_time_s": active_time_s(stage, executions),
        "trials": {state: trials[state] for state in sorted(trials) if trials[state]},
        "result": stage.result,
    }


def _with_absolute_folder(stage: StageRecord, study_folder: Path) -> StageRecord:
    """The stage with an absolute path to its champion's folder, if it has one."""
    if "folder" not in stage.result:
        return stage
    return stage.model_copy(update={"result": {**stage.result, "folder": str(study_folder / stage.result["folder"])}})


def _last_result(stages: list[StageRecord], kind: str) -> dict[str, Any] | None:
    """The result of the last finished stage of a kind, or `None`. A study that grows keeps its champion meanwhile."""
    is_kept = kind == "promote"
    found = [one.result for one in stages if one.kind == kind and one.result and (is_kept or one.state == "complete")]
    return found[-1] if found else None
