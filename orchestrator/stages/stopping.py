"""Stage `stopping`: replays recorded learning curves under stopping criteria, without training."""

from pathlib import Path

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.reports.plots import stopping_front
from orchestrator.spec.study_file import StoppingStage
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.searching import run_search
from orchestrator.stages.train import trained
from orchestrator.store.records import TrialRecord
from search_spaces.recipes import base_point, describe_plugin
from trainers.config import ReplayTask

OBJECTIVES = (Objective("epochs_saved", "maximize"), Objective("accuracy_lost", "minimize"))


def run_stopping(context: StageContext, spec: StoppingStage) -> StageOutcome:
    """Search the setting that saves most epochs while it loses at most `max_accuracy_lost` of accuracy."""
    _, trials = trained(context)
    whole = [trial for trial in trials if trial.state == "complete"]
    if not whole:
        raise StageFailedError(
            "the stopping stage replays curves of trials that were trained to their end, but every trial was stopped "
            "early. Set `stopping: null` in the train stage."
        )
    curves = tuple(tuple(report.point for report in context.store.reports(trial.id)) for trial in whole)
    search = Search(
        num_trials=spec.num_trials,
        objectives=OBJECTIVES,
        suggester=OptunaSuggester(
            spec.dimensions,
            objectives=OBJECTIVES,
            sampler=spec.sampler,
            seed=context.seed,
            first=[base_point(spec.dimensions)],
        ),
        make_task=lambda trial: ReplayTask(criterion=spec.decode(trial.point), curves=curves),
    )
    replays = run_search(context, search)
    chosen = choose_criterion(replays, max_accuracy_lost=spec.max_accuracy_lost)
    criterion = spec.decode(chosen.point)
    saved, lost = chosen.metrics["epochs_saved"], chosen.metrics["accuracy_lost"]
    return StageOutcome(
        result={
            "criterion": criterion.model_dump(mode="json"),
            "epochs_saved": saved,
            "accuracy_lost": lost,
            "within_limit": lost <= spec.max_accuracy_lost,
            "num_curves": len(curves),
            "front": [_describe(trial, spec) for trial in pareto_front(replays)],
        },
        summary=f"{describe_plugin(criterion)} saves {100 * saved:.0f} % of the epochs "
        f"for {100 * lost:.2f} points of accuracy",
        metrics={"epochs_saved": saved, "accuracy_lost": lost, "num_curves": len(curves)},
        texts={"stopping.csv": _table(replays, spec)},
        plots=_plots(context, replays, chosen),
    )


def choose_criterion(trials: list[TrialRecord], *, max_accuracy_lost: float) -> TrialRecord:
    """Most epochs saved within the limit on accuracy; the least accuracy lost where none is within it."""
    allowed = [trial for trial in trials if trial.metrics["accuracy_lost"] <= max_accuracy_lost]
    if allowed:
        return min(
            allowed,
            key=lambda trial: (-trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"], trial.number),
        )
    return min(trials, key=lambda trial: (trial.metrics["accuracy_lost"], -trial.metrics["epochs_saved"], trial.number))


def pareto_front(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Trials that no other beats in epochs saved without losing more accuracy, by epochs saved."""
    ordered = sorted(trials, key=lambda trial: (-trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"]))
    front: list[TrialRecord] = []
    for trial in ordered:
        if not front or trial.metrics["accuracy_lost"] < front[-1].metrics["accuracy_lost"]:
            front.append(trial)
    return front[::-1]


def _describe(trial: TrialRecord, spec: StoppingStage) -> dict[str, object]:
    return {"trial": trial.number, "criterion": describe_plugin(spec.decode(trial.point)), **trial.metrics}


def _table(trials: list[TrialRecord], spec: StoppingStage) -> str:
    lines = ["trial,criterion,epochs_saved,accuracy_lost"]
    for trial in trials:
        saved, lost = trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"]
        lines.append(f'{trial.number},"{describe_plugin(spec.decode(trial.point))}",{saved:.6g},{lost:.6g}')
    return "\n".join(lines) + "\n"


def _plots(context: StageContext, trials: list[TrialRecord], chosen: TrialRecord) -> tuple[Path, ...]:
    path = context.folder / "stopping-front.png"
    points = [(trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"]) for trial in trials]
    stopping_front(points, trials.index(chosen), path)
    return (path,)
