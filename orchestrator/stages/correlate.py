"""Stage `correlate`: how well each training-free score predicted the trained accuracy."""

from pathlib import Path

from orchestrator.correlation import ProxyCorrelation, correlate
from orchestrator.reports.plots import scatter_score_against_accuracy
from orchestrator.spec import CorrelateStage
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.screen import proxy_directions, screened
from orchestrator.stages.train import trained
from orchestrator.store.records import TrialRecord


def run_correlate(context: StageContext, spec: CorrelateStage) -> StageOutcome:
    """Kendall's tau-b of every proxy over the screened topologies that were trained with the base recipe.

    Only trials with the base recipe are compared, one per topology: sampled recipes would blur which one is better.
    """
    screen_spec, ranked = screened(context)
    scores_of = {row.topology: row.trial.metrics for row in ranked}
    truth = {
        topology: trial.metrics["val_accuracy"]
        for topology, trial in _base_trials(context).items()
        if topology in scores_of
    }
    if not truth:
        raise StageFailedError("no screened topology was trained with the base recipe to its end: nothing to correlate")
    context.progress.stage_began(context.stage, total=len(screen_spec.proxy_names), done=0)
    rows = correlate(
        {name: [scores_of[topology][name] for topology in truth] for name in screen_spec.proxy_names},
        list(truth.values()),
        directions=proxy_directions(screen_spec.proxy_names),
        baseline=spec.baseline,
        resamples=spec.resamples,
        confidence=spec.confidence,
        seed=context.seed,
    )
    return StageOutcome(
        result={
            "num_topologies": len(truth),
            "baseline": spec.baseline,
            "confidence": spec.confidence,
            "proxies": [{**row.model_dump(mode="json"), "beats_baseline": row.beats_baseline} for row in rows],
        },
        summary=f"{len(truth)} topologies; best tau {_text(rows[0])}",
        metrics={f"tau.{row.proxy}": row.tau.value for row in rows if row.tau.value is not None},
        texts={"correlation.csv": _table(rows)},
        plots=tuple(_plot(context, row, scores_of, truth) for row in rows),
    )


def _base_trials(context: StageContext) -> dict[str, TrialRecord]:
    stage = context.earlier("train")
    candidates = [] if stage is None else stage.result["candidates"]
    _, trials = trained(context)
    return {str(trial.point["topology"]): trial for trial in trials if trial.number < len(candidates)}


def _plot(
    context: StageContext, row: ProxyCorrelation, scores: dict[str, dict[str, float]], truth: dict[str, float]
) -> Path:
    path = context.folder / f"{row.proxy}-against-accuracy.png"
    scatter_score_against_accuracy(
        row.proxy, [scores[topology][row.proxy] for topology in truth], list(truth.values()), row.tau, path
    )
    return path


def _text(row: ProxyCorrelation) -> str:
    tau = row.tau
    if tau.value is None:
        return f"undefined ({row.note})"
    interval = "" if tau.low is None or tau.high is None else f" [{tau.low:.2f}, {tau.high:.2f}]"
    return f"{tau.value:.2f}{interval} ({row.proxy})"


def _table(rows: list[ProxyCorrelation]) -> str:
    lines = ["proxy,num_topologies,tau,low,high,minus_baseline,minus_baseline_low,minus_baseline_high,note"]
    for row in rows:
        difference = row.tau_minus_baseline
        cells = [row.tau.value, row.tau.low, row.tau.high]
        cells += [difference.value, difference.low, difference.high] if difference else [None, None, None]
        numbers = ",".join("" if cell is None else f"{cell:.6g}" for cell in cells)
        lines.append(f'{row.proxy},{row.num_topologies},{numbers},"{row.note or ""}"')
    return "\n".join(lines) + "\n"
