"""Stage `train`: trains candidate topologies under sampled recipes."""

from collections.abc import Mapping
from typing import Any

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.spec.study_file import TrainStage
from orchestrator.stages.context import StageContext, StageOutcome
from orchestrator.stages.retention import drop_checkpoints, trial_folder
from orchestrator.stages.screen import screened
from orchestrator.stages.searching import is_better, run_search
from orchestrator.stages.topology_ranking import choose_candidates
from orchestrator.store.records import TrialRecord
from plugins import registry
from search_spaces.dimensions import Choice, Point
from search_spaces.recipes import PLUGIN_FIELDS, Recipe, base_point
from trainers.config import Configuration, TrainTask

ACCURACY = Objective("val_accuracy", "maximize")
CHANGEABLE = frozenset(
    ("learning_rate", "weight_decay", "label_smoothing", "drop_path", "augmentation", "curriculum", "gradient_clip")
)
"""Recipe fields that population-based training may change in the middle of a training."""


def run_train(context: StageContext, spec: TrainStage) -> StageOutcome:
    """One trial per candidate with the base recipe, so that their accuracies compare, then sampled recipes."""
    candidates, grown_from = _candidates(context, spec)
    scores = _proxy_scores(context)
    dimensions = (Choice(name="topology", options=tuple(candidates)), *spec.recipe_space.dimensions)
    search = Search(
        num_trials=max(spec.num_trials, len(candidates)),
        objectives=(ACCURACY,),
        suggester=OptunaSuggester(
            dimensions,
            objectives=(ACCURACY,),
            sampler=spec.sampler,
            seed=context.seed,
            first=[base_point(dimensions, topology=candidate) for candidate in candidates],
        ),
        make_task=lambda trial: _task(context, spec, trial),
        parameters=lambda point: _parameters(context, spec, point),
        links=lambda point: (
            {"grown_from": grown_from[str(point["topology"])]} if point["topology"] in grown_from else {}
        ),
        known_metrics=lambda point: scores.get(str(point["topology"]), {}),
        epochs=spec.epochs,
        sizes=lambda: _largest(context, spec, candidates),
        changeable=tuple(
            dimension for dimension in spec.recipe_space.dimensions if dimension.name.split(".")[1] in CHANGEABLE
        ),
        weights_of=lambda point: str(point["topology"]),
    )
    trials = run_search(context, search, tracked=True)
    best = best_trial(trials)
    drop_checkpoints(context, context.store.trials(context.stage.id), best=best)
    return StageOutcome(
        result={
            "candidates": candidates,
            "num_candidates": len(candidates),
            "best": describe_trial(best),
            "leaderboard": [describe_trial(trial) for trial in sort_trials(trials)[:10]],
            "num_failed": len(context.store.trials(context.stage.id)) - len(trials),
        },
        summary=f"{len(trials)} trials; best validation accuracy {100 * best.metrics['val_accuracy']:.1f} % "
        f"(trial {best.number})",
        metrics={
            "val_accuracy": best.metrics["val_accuracy"],
            "val_loss": best.metrics["val_loss"],
            "num_trials": len(trials),
        },
        plots=_plots(context, trials),
    )


def _largest(context: StageContext, spec: TrainStage, candidates: list[str]) -> list[Configuration]:
    """Each candidate with the base recipe at the largest batch size that is searched."""
    space = spec.recipe_space
    recipe = space.base.model_copy(update={"batch_size": space.largest_batch_size})
    return [
        Configuration(data=context.spec.data, topology=candidate, recipe=recipe, epochs=spec.epochs, seed=0)
        for candidate in candidates
    ]


def configuration_of(context: StageContext, spec: TrainStage, trial: TrialRecord) -> Configuration:
    """Everything needed to train a trial again."""
    return Configuration(
        data=context.spec.data,
        topology=str(trial.point["topology"]),
        recipe=spec.recipe_space.decode(trial.point),
        epochs=spec.epochs,
        seed=trial.seed,
        stopping=spec.stopping,
    )


def trained(context: StageContext) -> tuple[TrainStage, list[TrialRecord]]:
    """The latest earlier train stage's settings, and its trials with a result."""
    stage = context.earlier("train")
    if stage is None:  # the spec's own validation demands one
        raise LookupError(f"stage {context.stage.name!r} needs a train stage before it")
    spec = context.spec.stages[stage.position]
    assert isinstance(spec, TrainStage)
    return spec, [trial for trial in context.store.trials(stage.id) if trial.is_usable]


def best_trial(trials: list[TrialRecord]) -> TrialRecord:
    """The trial with the highest validation accuracy; the lower validation loss decides a tie."""
    return sort_trials(trials)[0]


def sort_trials(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Trials by validation accuracy, best first."""
    ordered: list[TrialRecord] = []
    for trial in trials:
        place = next(
            (index for index, other in enumerate(ordered) if is_better(trial, other, (ACCURACY,))), len(ordered)
        )
        ordered.insert(place, trial)
    return ordered


def describe_trial(trial: TrialRecord) -> dict[str, Any]:
    """A trained trial as the leaderboard shows it."""
    shown = ("val_accuracy", "val_loss", "parameters", "macs", "wall_time_s", "epochs")
    return {
        "trial": trial.number,
        "state": trial.state,
        **{name: trial.metrics[name] for name in shown if name in trial.metrics},
        **trial.point,
    }


def _candidates(context: StageContext, spec: TrainStage) -> tuple[list[str], dict[str, str]]:
    if spec.topologies:
        return list(spec.topologies), {}
    candidates: list[str] = []
    grown_from: dict[str, str] = {}
    grow = context.earlier("grow")
    if grow is not None:
        for topology in grow.result["selected"]:
            candidates.append(topology)
            grown_from[topology] = grow.result["start"]
    chosen = spec.chosen_candidates
    if chosen is not None and context.earlier("screen") is not None:
        _, ranked = screened(context)
        candidates += choose_candidates(ranked, best=chosen.best, spread=chosen.spread)
    return list(dict.fromkeys(candidates)), grown_from


def _proxy_scores(context: StageContext) -> dict[str, dict[str, float]]:
    if context.earlier("screen") is None:
        return {}
    spec, ranked = screened(context)
    return {row.topology: {f"proxy.{name}": row.trial.metrics[name] for name in spec.proxy_names} for row in ranked}


def _task(context: StageContext, spec: TrainStage, trial: TrialRecord) -> TrainTask:
    return TrainTask(
        configuration=configuration_of(context, spec, trial),
        folder=trial_folder(context, trial),
        keep_checkpoints=spec.keep_checkpoints,
    )


def _parameters(context: StageContext, spec: TrainStage, point: Point) -> Mapping[str, Any]:
    topology = registry.parse_topology(str(point["topology"]))
    space = registry.load("spaces", str(point["topology"]).partition(":")[0])()
    costs = space.costs(topology, context.image_task)
    return {
        "topology": topology.id,
        **space.describe(topology),
        "topology.parameters": costs.parameters,
        "topology.macs": costs.macs,
        **_flat_recipe(spec.recipe_space.decode(point)),
        "epochs": spec.epochs,
    }


def _flat_recipe(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        if name in PLUGIN_FIELDS:
            flat[f"recipe.{name}"] = value.name
            flat.update({f"recipe.{name}.{key}": setting for key, setting in value.settings.items()})
        else:
            flat[f"recipe.{name}"] = value
    return flat


def _plots(context: StageContext, trials: list[TrialRecord]) -> tuple[Any, ...]:
    from orchestrator.reports.plots import learning_curves

    context.folder.mkdir(parents=True, exist_ok=True)
    curves = {
        f"trial {trial.number}": [report.point for report in context.store.reports(trial.id)]
        for trial in sort_trials(trials)[:8]
    }
    path = context.folder / "learning-curves.png"
    learning_curves(curves, path)
    return (path,)
