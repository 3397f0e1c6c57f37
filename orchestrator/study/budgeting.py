"""Gives each stage its budget: its own, and what the study's leaves for it."""

from orchestrator.spec.budget import Budget
from orchestrator.spec.stage_model import StageModel
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.budget import LIMITED, StageBudget, share_of_time
from orchestrator.stages.promote import PromoteStage
from orchestrator.store.records import ExecutionRecord, StageRecord
from orchestrator.store.repository import Store


def stage_budget(spec: StudySpec, store: Store, stage: StageRecord, execution: ExecutionRecord) -> StageBudget | None:
    """What a stage may spend in this execution; `None` if nothing limits it.

    Args:
        spec: The study.
        store: The store with what was spent before.
        stage: The stage, which begins now.
        execution: This execution.
    """
    own: Budget | None = getattr(spec.stages[stage.position], "budget", None)
    whole = spec.budget
    if stage.kind not in LIMITED or (own is None and whole is None):
        return None
    times: list[float] = []
    macs: list[float] = []
    trials: list[int] = []
    later_trainings = 0
    if own is not None:
        times += [] if own.time_s is None else [own.time_s - store.stage_spent_s(stage.id)]
        macs += [] if own.macs is None else [own.macs]
        trials += [] if own.trials is None else [own.trials]
    if whole is not None:
        later = [other.stage for other in spec.stages[stage.position + 1 :]]
        if whole.time_s is not None:
            spent_s = store.spent_s(stage.study_id, before=execution) + store.clock.now() - execution.started_at
            times.append(share_of_time(stage.kind, later, max(whole.time_s - spent_s, 0.0)))
            if stage.kind == "train":
                later_trainings = sum(_trainings_of(other) for other in spec.stages[stage.position + 1 :])
        if stage.kind == "train":
            macs += [] if whole.macs is None else [whole.macs - store.trained_macs(stage.study_id, but_stage=stage.id)]
            others = [other for other in store.stages(stage.study_id) if other.kind == "train" and other.id != stage.id]
            begun = sum(len(store.trials(other.id)) for other in others)
            trials += [] if whole.trials is None else [max(whole.trials - begun, 0)]
    if not (times or macs or trials):
        return None
    budget = StageBudget.for_kind(
        stage.kind,
        time_s=min(times, default=None),
        macs=min(macs, default=None),
        trials=min(trials, default=None),
        later_trainings=later_trainings,
        described=" and ".join(_words(one) for one in (own, whole) if one is not None),
    )
    for trial in store.trials(stage.id) if macs else ():
        for report in store.reports(trial.id):
            budget.note_report(trial.number, report)
    return budget


def _trainings_of(stage: StageModel) -> int:
    """Number of trainings of a promote stage; 0 for other stages."""
    return stage.finalists * stage.seeds + stage.refit if isinstance(stage, PromoteStage) else 0


def _words(budget: Budget) -> str:
    parts = []
    if budget.time is not None:
        parts.append(budget.time)
    if budget.macs is not None:
        parts.append(f"{budget.macs:.3g} multiply-accumulates")
    if budget.trials is not None:
        parts.append(f"{budget.trials} trials")
    return f"budget of {' and '.join(parts)}"
