"""Stage `train`: trains candidate topologies under sampled recipes."""

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.spec.model_names import trial_named
from orchestrator.stages.certainty import describe_certainty, rank_certainty
from orchestrator.stages.context import StageContext
from orchestrator.stages.grow import GROW
from orchestrator.stages.improvement import with_patience
from orchestrator.stages.kind import StageKind, StageOutcome
from orchestrator.stages.learned_schedules import learn_schedules, with_learned_schedule
from orchestrator.stages.retention import CUT, drop_checkpoints, num_kept_by, trial_folder
from orchestrator.stages.screen import SCREEN
from orchestrator.stages.starting_weights import TEACHER_INDEX, StartingWeights, plan_start, stored_weights
from orchestrator.stages.teaching import EarlierTrial, StageTeacher, plan_teacher
from orchestrator.stages.time_left import cost_error
from orchestrator.stages.topology_ranking import choose_candidates
from orchestrator.stages.trade_off import choose_trial, latencies, promotion_limit, with_cost
from orchestrator.stages.train_result import (
    TrainResult,
    leaderboard_row,
    ranking,
    recorded_metrics,
    result_line,
    sort_trials,
    trained_trials,
    with_trials,
)
from orchestrator.stages.train_spec import TrainStage
from orchestrator.stages.train_summary import measure_baseline, summary_line
from orchestrator.stages.warm_start import WarmPlan, conditions_of, plan_warm_start, stored_warm_start
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.protocols import Signal, reads_earlier_curves
from search_spaces.dimensions import Choice, Dimension, Point
from search_spaces.ema_rates import EmaRates
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice, Recipe, RecipeSpace, base_point
from trainers.config import Configuration, DataConfig, EpochReport, InitialWeights, TrainTask

CHANGEABLE = frozenset(
    ("learning_rate", "weight_decay", "label_smoothing", "drop_path", "augmentation", "curriculum", "gradient_clip")
)
"""Recipe fields that population-based training may change during a training."""
_ALWAYS_SHOWN = CHANGEABLE | {"batch_size", "schedule", "warmup"}
"""Recipe fields that MLflow always shows."""


def run_train(context: StageContext, spec: TrainStage) -> StageOutcome:
    """Train each candidate with the base recipe (`repeats` times), so that accuracies compare, then sampled recipes."""
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.search_figures import draw_search, view_search
    from orchestrator.stages.searching import run_search
    from orchestrator.stages.trial_pages import share_trials

    for message in spec.remarks(()):
        context.progress.note(message)
    learn_schedules(context.folder, spec.recipe, lambda name: _best_curve(context, name))
    begun = context.store.trials(context.stage.id)
    candidates, grown_from = _candidates(context, spec, begun)
    weights = None
    if spec.weights is not None:
        weights = plan_start(context, stored_weights(context.folder), candidates)
    teacher = None if spec.teacher is None else plan_teacher(context, spec.teacher, _named_trial(context, spec.teacher))
    scores, cost = _proxy_scores(context), context.spec.cost
    objectives = with_cost(ranking(context, spec), cost)
    measured: Mapping[str, float] = {}
    if cost is not None and cost.name == "latency":
        measured = latencies(context, candidates, begun, cost)
    dimensions = (Choice(name="topology", options=tuple(candidates)), *spec.recipe_space.dimensions)
    base = _base_points(dimensions, candidates, begun, repeats=spec.repeats)
    num_missing = _num_missing(base, begun)
    warm = _warm_plan(context, spec, dimensions, candidates, objectives)
    suggester = OptunaSuggester(
        dimensions,
        objectives=objectives,
        sampler=spec.sampler,
        seed=context.seed,
        first=[*base, *(() if warm is None else warm.first)],
        known=() if warm is None else warm.known,
    )
    search = Search(
        num_trials=max(spec.num_trials, len(begun) + num_missing),
        objectives=objectives,
        reported=Objective.of(context.metric),
        suggester=with_patience(suggester, objectives, spec.no_improvement, least=len(base)),
        make_task=lambda trial: _task(context, spec, trial),
        parameters=lambda point: training_parameters(context, spec, point),
        links=lambda point: _links(point, grown_from, weights, teacher, warm),
        known_metrics=lambda point: scores.get(str(point["topology"]), {}),
        measured=lambda point: {"latency_ms": measured[str(point["topology"])]} if measured else {},
        epochs=spec.epochs,
        sizes=lambda: _largest(context, spec, candidates),
        changeable=tuple(
            dimension for dimension in spec.recipe_space.dimensions if dimension.name.split(".")[1] in CHANGEABLE
        ),
        weights_of=lambda point: str(point["topology"]),
    )
    share_trials(context, search, dimensions)
    trials = run_search(context, search, tracked=True)
    ordered = sort_trials(trials, objectives)
    chosen = choose_trial(ordered, objectives, cost, limit=promotion_limit(context))
    best, baseline = chosen.trial, measure_baseline(context)
    certainty = None
    if cost is None:  # with a cost, no single trial is the best
        certainty = rank_certainty(
            context, ordered, lambda trial: configuration_of(context, spec, trial), ranked_by=objectives[0].metric
        )
    if certainty is not None:
        context.progress.note(describe_certainty(certainty))
    share_trials(context, search, dimensions, ordered=ordered)
    all_trials = context.store.trials(context.stage.id)
    drop_checkpoints(context, all_trials, best=best, may_continue=lambda trial: may_continue(spec, trial))
    with_base = frozenset(trial.number for trial in ordered if trial.point in base)
    view = view_search(all_trials, objectives, dimensions, best=best.number, base=with_base)
    return StageOutcome(
        result=TrainResult(
            candidates=tuple(candidates),
            num_candidates=len(candidates),
            metric=context.metric,
            ranked_by=objectives[0].metric,
            baseline=baseline,
            best=leaderboard_row(best, context.metric),
            leaderboard=tuple(leaderboard_row(trial, context.metric) for trial in ordered[:10]),
            trials=trained_trials(trials, base, objectives[0].metric),
            cost=cost,
            front=tuple(leaderboard_row(trial, context.metric) for trial in chosen.front),
            chosen=chosen.reason,
            num_failed=sum(trial.state == "failed" for trial in context.store.trials(context.stage.id)),
            weights=weights,
            teacher=teacher,
            warm_start=None if warm is None else warm.summary,
            certainty=certainty,
            time_error=cost_error(all_trials, lambda trial: configuration_of(context, spec, trial), context.image_task),
        ),
        summary=summary_line(
            context, trials, chosen, ranked_by=objectives[0].metric, baseline=baseline[context.metric.key]
        ),
        metrics={
            **recorded_metrics(best, context.metric),
            "val_baseline_accuracy": baseline["val_accuracy"],
            f"val_baseline_{context.metric.key.removeprefix('val_')}": baseline[context.metric.key],
            "num_trials": len(trials),
            **({} if certainty is None else {"probability_best": certainty.probability}),
        },
        plots=(*_plots(context, ordered), *draw_search(view, context.metric, context.folder)),
        events=tuple(context.run_tree.stage_linked(context.stage, _stage_links(weights, teacher, warm))),
    )


def _best_curve(context: StageContext, name: str) -> list[EpochReport]:
    """The reports of the best trial of an earlier train stage."""
    records = zip(context.store.stages(context.study.id), context.spec.stages, strict=False)
    record, spec = next((record, spec) for record, spec in records if spec.name == name)
    assert isinstance(spec, TrainStage), "checked with the study file"
    trials = context.store.trials(record.id)
    best = TRAIN.read(record, spec, lambda: trials).best.trial
    return context.store.reports(next(trial for trial in trials if trial.number == best).id)


def _largest(context: StageContext, spec: TrainStage, candidates: list[str]) -> list[Configuration]:
    """Each candidate with the base recipe and the largest batch size in the search."""
    space = spec.recipe_space
    base = with_learned_schedule(space.base, context.folder)
    recipe = base.model_copy(update={"batch_size": space.largest_batch_size})
    return [
        Configuration(
            data=context.spec.data,
            topology=candidate,
            recipe=recipe,
            epochs=spec.epochs,
            seed=0,
            teacher=_teacher_of(context, spec),
        )
        for candidate in candidates
    ]


def configuration_of(context: StageContext, spec: TrainStage, trial: TrialRecord) -> Configuration:
    """Everything needed to train a trial again."""
    return Configuration(
        data=context.spec.data,
        topology=str(trial.point["topology"]),
        recipe=with_learned_schedule(spec.recipe_space.decode(trial.point), context.folder.parent / spec.name),
        epochs=spec.epochs,
        seed=trial.seed,
        stopping=spec.stopping,
        weights=None if spec.weights is None else stored_weights(context.folder.parent / spec.name),
        teacher=_teacher_of(context, spec),
        metric=context.metric.choice,
    )


def _named_trial(context: StageContext, source: str) -> EarlierTrial | None:
    """The trial of an earlier stage that a text names; `None` if it names another model."""
    named = trial_named(source)
    stage = None if named is None else context.earlier(TRAIN, name=named.stage)
    if named is None or stage is None:
        return None
    number = stage.result.best.trial if named.number is None else named.number
    return EarlierTrial(named.stage, stage.record.id, number, is_best_epoch=stage.spec.rank_by == "best")


def _teacher_of(context: StageContext, spec: TrainStage) -> InitialWeights | None:
    """The teacher of a stage's trials."""
    return None if spec.teacher is None else stored_weights(context.folder.parent / spec.name, TEACHER_INDEX)


def may_continue(spec: TrainStage, trial: TrialRecord) -> bool:
    """Whether an ended training can be continued if the study gets more epochs or a larger budget."""
    if CUT in trial.details:
        return True
    from trainers.training.continuing import reason_to_retrain  # imports torch

    recipe = spec.recipe_space.decode(trial.point)
    is_whole = trial.state == "complete"
    return is_whole and reason_to_retrain(recipe, before=spec.epochs, epochs=spec.epochs) is None


def _links(
    point: Point,
    grown_from: Mapping[str, str],
    weights: StartingWeights | None,
    teacher: StageTeacher | None,
    warm: WarmPlan | None,
) -> dict[str, str]:
    """Where a trial comes from, for MLflow."""
    found = {
        "grown_from": grown_from.get(str(point["topology"])),
        "initialised_from": None if weights is None else weights.lineage,
        "taught_by": None if teacher is None else teacher.lineage,
        "warm_started_from": None if warm is None else warm.origin(point),
    }
    return {name: origin for name, origin in found.items() if origin is not None}


def _stage_links(
    weights: StartingWeights | None, teacher: StageTeacher | None, warm: WarmPlan | None
) -> dict[str, str]:
    """Where the stage started from, and what taught it, for MLflow."""
    found = {} if weights is None else {"initialised_from": weights.lineage}
    if teacher is not None:
        found["taught_by"] = teacher.lineage
    return found if warm is None else {**found, "warm_started_from": warm.summary.origin}


def _warm_plan(
    context: StageContext,
    spec: TrainStage,
    dimensions: Sequence[Dimension],
    candidates: Sequence[str],
    objectives: tuple[Objective, ...],
) -> WarmPlan | None:
    """The points to try after the base recipe, and the results that the sampler knows."""
    if spec.warm_start is None:
        return None
    return plan_warm_start(
        context,
        stored_warm_start(context.folder),
        space=spec.recipe_space,
        dimensions=dimensions,
        candidates=candidates,
        objectives=objectives,
        conditions=train_conditions(
            context.spec.data,
            context.study.data_digest,
            spec,
            None if spec.weights is None else stored_weights(context.folder).sha256,
            None if spec.teacher is None else stored_weights(context.folder, TEACHER_INDEX).sha256,
        ),
        room=spec.num_trials - len(candidates) * spec.repeats,
    )


def train_conditions(
    data: DataConfig, data_digest: str, spec: TrainStage, weights: str | None, teacher: str | None
) -> dict[str, Any]:
    """What the results of a train stage depend on besides topology, recipe and seed.

    Args:
        data: The data of its study.
        data_digest: Their digest.
        spec: The stage.
        weights: sha256 of the weights that its trials start from.
        teacher: sha256 of the teacher.
    """
    stopping = None if spec.stopping is None else spec.stopping.model_dump(mode="json")
    return conditions_of(
        data=data.model_dump(mode="json", exclude_defaults=True),  # so that a field added later changes nothing
        data_digest=data_digest,
        epochs=spec.epochs,
        stopping=stopping,
        weights=weights,
        teacher=teacher,
    )


def _candidates(
    context: StageContext, spec: TrainStage, begun: Sequence[TrialRecord]
) -> tuple[list[str], dict[str, str]]:
    """Topologies to train, and the start of each grown topology.

    Topologies that have begun come first: an earlier stage of a study that has grown may rank them differently now.
    """
    known = [str(trial.point["topology"]) for trial in begun]
    if spec.topologies:
        return list(dict.fromkeys([*known, *spec.topologies])), {}
    grow, screen = context.earlier(GROW), context.earlier(SCREEN)
    grown_from = {} if grow is None else dict.fromkeys(grow.result.selected, grow.result.start)
    candidates = list(grown_from)
    chosen = spec.chosen_candidates
    if chosen is not None and screen is not None:
        ranked = [row.topology for row in screen.result.ranking]
        candidates += choose_candidates(ranked, best=chosen.best, spread=chosen.spread)
    return list(dict.fromkeys([*known, *candidates])), grown_from


def _base_points(
    dimensions: Sequence[Dimension], candidates: Sequence[str], begun: Sequence[TrialRecord], *, repeats: int
) -> list[Point]:
    """The point of each candidate with the base recipe, `repeats` times; all candidates once come first.

    The recipe is that of the first trial, even if its ranges are wider now.
    """
    recipe = begun[0].point if begun else base_point(dimensions)
    return [{**recipe, "topology": candidate} for candidate in candidates] * repeats


def _num_missing(base: Sequence[Point], begun: Sequence[TrialRecord]) -> int:
    """Number of base points that no trial has tried yet; a repeated point needs as many trials."""
    left, missing = [trial.point for trial in begun], 0
    for point in base:
        if point in left:
            left.remove(point)
        else:
            missing += 1
    return missing


def _proxy_scores(context: StageContext) -> dict[str, dict[str, float]]:
    screen = context.earlier(SCREEN)
    ranking = screen.result.ranking if screen is not None else ()
    return {row.topology: {f"proxy.{name}": score for name, score in row.scores.items()} for row in ranking}


def _task(context: StageContext, spec: TrainStage, trial: TrialRecord) -> TrainTask:
    return TrainTask(
        configuration=configuration_of(context, spec, trial),
        folder=trial_folder(context, trial),
        earlier_epochs=context.earlier_epochs,
        keep_checkpoints=num_kept_by(context, spec.name, keep_checkpoints=spec.keep_checkpoints, epochs=spec.epochs),
        signals=_signals(context, spec),
        best_score=best_score_before(context, trial) if spec.stopping is not None else None,
        earlier_scores=scores_before(context, trial) if _compares_curves(spec) else (),
        **context.computation,
    )


def best_score_before(context: StageContext, trial: TrialRecord) -> float | None:
    """The best score with which a trial before this one ended, without those that were stopped early."""
    metric = context.metric
    earlier = [
        one.metrics[metric.key]
        for one in context.store.trials(context.stage.id)
        if one.number < trial.number and one.state == "complete" and metric.key in one.metrics
    ]
    return max(map(metric.score, earlier), default=None)


def scores_before(context: StageContext, trial: TrialRecord) -> tuple[tuple[float, ...], ...]:
    """The scores of the trials before this one after each of their epochs, without those that failed or still run."""
    found = []
    for one in context.store.trials(context.stage.id):
        if one.number < trial.number and one.is_usable:
            scores = [report.point_by(context.metric).deciding for report in context.store.reports(one.id)]
            found.append(tuple(takewhile(math.isfinite, scores)))
    return tuple(found)


def _compares_curves(spec: TrainStage) -> bool:
    """Whether the stage's criterion reads the curves of earlier trials."""
    if spec.stopping is None:
        return False
    return reads_earlier_curves(registry.create("stopping", spec.stopping.name, spec.stopping.settings))


def training_parameters(context: StageContext, spec: TrainStage, point: Point) -> Mapping[str, Any]:
    """A point as flat, readable parameters, for MLflow."""
    topology = registry.parse_topology(str(point["topology"]))
    space = registry.load("spaces", str(point["topology"]).partition(":")[0])()
    costs = space.costs(topology, context.image_task)
    return {
        "topology": topology.id,
        **space.describe(topology),
        "topology.parameters": costs.parameters,
        "topology.macs": costs.macs,
        **_flat_recipe(spec.recipe_space.decode(point), spec.recipe_space),
        "epochs": spec.epochs,
    }


def _flat_recipe(recipe: Recipe, space: RecipeSpace) -> dict[str, Any]:
    """Flatten a recipe to readable parameters, with the same keys for all trials of a study.

    Fields that most recipes leave at their default are included only if the study sets or searches them.
    """
    flat: dict[str, Any] = {}
    searched = {dimension.name.split(".")[1] for dimension in space.dimensions}
    for name, field in Recipe.model_fields.items():
        value, key = getattr(recipe, name), f"recipe.{name}"
        if name not in _ALWAYS_SHOWN | searched and value == field.default:
            continue
        if name in PLUGIN_FIELDS:
            choices: tuple[PluginChoice, ...] = value if isinstance(value, tuple) else (value,)
            flat[key] = "+".join(choice.name for choice in choices)
            for choice in choices:
                prefix = key if len(choices) == 1 else f"{key}.{choice.name}"
                flat.update({f"{prefix}.{setting}": given for setting, given in choice.settings.items()})
        elif isinstance(value, Ramp):
            flat[key] = str(value)
            flat.update({f"{key}.{part}": given for part, given in value.model_dump().items()})
        elif isinstance(value, EmaRates):
            flat[key] = str(value)
        else:
            flat[key] = value
    return flat


def _plots(context: StageContext, trials: Sequence[TrialRecord]) -> tuple[Any, ...]:
    from orchestrator.reports.plots import learning_curves

    context.folder.mkdir(parents=True, exist_ok=True)
    curves = {
        f"trial {trial.number}": [report.point for report in context.store.reports(trial.id)] for trial in trials[:8]
    }
    path = context.folder / "learning-curves.png"
    learning_curves(curves, path, metric=context.metric)
    return (path,)


def _signals(context: StageContext, spec: TrainStage) -> tuple[Signal, ...]:
    """Signals that the trials record: those of the stage, and those that later stages read."""
    after = context.spec.stages[context.stage.position + 1 :]
    wanted = frozenset(spec.signals).union(*(stage.signals_read for stage in after))
    return tuple(signal for signal in Signal if signal in wanted)


TRAIN = StageKind(
    model=TrainStage,
    result=TrainResult,
    run=run_train,
    line=result_line,
    complete=with_trials,
)
