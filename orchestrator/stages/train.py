"""Stage `train`: trains candidate topologies under sampled recipes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.spec.budget import Budget
from orchestrator.spec.cost import Cost
from orchestrator.spec.loss_checks import searched_loss_problems
from orchestrator.spec.method_checks import (
    image_size_problems,
    method_fit_problem,
    method_lists,
    method_problem,
)
from orchestrator.spec.model_names import trial_named, with_absolute_teacher, with_absolute_weights
from orchestrator.spec.plugin_checks import choice_problems, one_of, sampler_problems
from orchestrator.spec.problems import Problem
from orchestrator.spec.recipe_checks import recipe_problems
from orchestrator.spec.stage_model import Count, SpecModel, StageModel, StageName, latest
from orchestrator.spec.topology_checks import topology_text_problems
from orchestrator.spec.warm_start import WarmStart, with_absolute_warm_start
from orchestrator.stages.certainty import RankingCertainty, describe_certainty, rank_certainty
from orchestrator.stages.context import StageContext
from orchestrator.stages.grow import GROW, GrowStage
from orchestrator.stages.improvement import with_patience
from orchestrator.stages.kind import StageKind, StageOutcome, StageResult
from orchestrator.stages.learned_schedules import learn_schedules, stage_problems, stages_read, with_learned_schedule
from orchestrator.stages.retention import CUT, drop_checkpoints, num_kept_by, trial_folder
from orchestrator.stages.screen import SCREEN, ScreenStage
from orchestrator.stages.starting_weights import TEACHER_INDEX, StartingWeights, plan_start, stored_weights
from orchestrator.stages.teaching import EarlierTrial, StageTeacher, plan_teacher
from orchestrator.stages.time_left import CostError, cost_error
from orchestrator.stages.topology_ranking import choose_candidates
from orchestrator.stages.trade_off import choose_trial, latencies, promotion_limit, with_cost
from orchestrator.stages.train_summary import against_baseline, measure_baseline, summary_line
from orchestrator.stages.warm_start import WarmPlan, WarmStarted, conditions_of, plan_warm_start, stored_warm_start
from orchestrator.store.records import TrialRecord
from plugins import registry
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.metrics.names import RECORDED_METRICS, metric_key
from plugins.protocols import Signal
from search_spaces.base import Topology
from search_spaces.dimensions import Choice, Dimension, Point
from search_spaces.ema_rates import EmaRates
from search_spaces.ramps import Ramp
from search_spaces.recipes import PLUGIN_FIELDS, PluginChoice, Recipe, RecipeSpace, base_point, parse_recipe_space
from trainers.config import Configuration, DataConfig, EpochReport, InitialWeights, TrainTask
from trainers.yaml_source import KeyPath

CHANGEABLE = frozenset(
    ("learning_rate", "weight_decay", "label_smoothing", "drop_path", "augmentation", "curriculum", "gradient_clip")
)
"""Recipe fields that population-based training may change during a training."""
_ALWAYS_SHOWN = CHANGEABLE | {"batch_size", "schedule", "warmup"}
"""Recipe fields that MLflow always shows."""


class Candidates(SpecModel):
    """Selects the screened topologies to train."""

    best: Count = Field(default=3, description="number of topologies with the best ranks")
    spread: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=3,
        description="number of topologies spread evenly over the other ranks, so that a correlation can be measured",
    )

    @property
    def total(self) -> int:
        """Total number of topologies."""
        return self.best + self.spread


class TrainStage(StageModel):
    """Trains candidate topologies; each trial has a sampled recipe."""

    stage: Literal["train"]
    name: StageName = Field(default="train", description="name of the stage in reports; unique in the study")
    candidates: Candidates | None = Field(
        default=None,
        description="topologies of the preceding screen to train; a topology grown in between is added",
    )
    topologies: tuple[str, ...] = Field(
        default=(), description="topologies to train instead of `candidates`, each written as space:text"
    )
    sampler: PluginChoice = Field(default=PluginChoice(name="tpe"), description="chooses candidate and recipe")
    repeats: Count = Field(
        default=1,
        description="trainings of each candidate with the base recipe, each with another seed; `correlate` compares "
        "scores with their mean, and measures how much of the differences is chance",
    )
    num_trials: Count = Field(
        description="number of models to train: first each candidate `repeats` times with the base recipe, then "
        "sampled recipes"
    )
    epochs: Count = Field(description="budget of one trial in passes over the training set")
    budget: Budget | None = Field(
        default=None, description="what the stage may spend, such as `30m`; it ends early with the trials that it has"
    )
    no_improvement: Count | None = Field(
        default=None, description="end the search if this many trials in a row have not improved it"
    )
    keep_checkpoints: Count = Field(
        default=8,
        description="number of newest epochs whose weights are kept for averaging; an `averaging` stage with `stop_at` "
        "keeps as many as it needs",
    )
    rank_by: Literal["last", "best"] = Field(
        default="last",
        description="epoch whose metric ranks a trial: the `last` one, or the `best` one, whose weights are then "
        "promoted unless an averaging stage chooses others",
    )
    stopping: PluginChoice | None = Field(default=None, description="early-stopping criterion; null trains to the end")
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="recipe fields: a value fixes one, a list or {low, high} searches it"
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="weights that the trials start from: `STUDY@champion`, a model folder, a .safetensors or a .pth "
        "file; null starts from random weights",
    )
    teacher: str | None = Field(
        default=None,
        min_length=1,
        description="trained model whose predictions losses such as `soft-distillation` learn from: `STUDY@champion`, "
        "a model folder, or a trial of an earlier stage (`STAGE@best`, `STAGE@trial-7`)",
    )
    warm_start: WarmStart | None = Field(
        default=None, description="where the first points after the base recipe come from; null samples all points"
    )
    signals: tuple[Signal, ...] = Field(
        default=(),
        description="signals to record every epoch, in addition to those that plug-ins and later stopping stages read",
    )

    @property
    def chosen_candidates(self) -> Candidates | None:
        """The selection of screened topologies; `None` if the file names `topologies`."""
        return None if self.topologies else self.candidates or Candidates()

    @classmethod
    def with_absolute_paths(cls, raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Resolve the paths of weights, teacher and warm start."""
        given = dict(raw)
        if "weights" in given:
            given["weights"] = with_absolute_weights(given["weights"], folder)
        if "teacher" in given:
            given["teacher"] = with_absolute_teacher(given["teacher"], folder)
        if "warm_start" in given:
            given["warm_start"] = with_absolute_warm_start(given["warm_start"], folder)
        return given

    @cached_property
    def recipe_space(self) -> RecipeSpace:
        """The recipe's fixed values and dimensions."""
        return parse_recipe_space(self.recipe)

    @property
    def signals_read(self) -> frozenset[Signal]:
        return frozenset({Signal.GRADIENT_NORM}) if stages_read(self.recipe) else frozenset()

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:
        yield from sampler_problems(self.sampler, self._dimensions(), (*at, "sampler"))
        if self.stopping is not None:
            yield from choice_problems("stopping", self.stopping, (*at, "stopping"))
        wrong = list(recipe_problems(self.recipe, (*at, "recipe")))
        yield from wrong or searched_loss_problems(self.recipe, self.teacher, at)

    def order_problems(self, before: Sequence[StageModel], at: KeyPath) -> Iterator[Problem]:
        yield from stage_problems(self.recipe, before, (*at, "recipe", "schedule"))
        has_grown = latest(before, GrowStage) is not None
        yield from _candidate_problems(self, latest(before, ScreenStage), has_grown, at)
        named = None if self.teacher is None else trial_named(self.teacher)
        earlier = [stage.name for stage in before if isinstance(stage, TrainStage)]
        if named is not None and named.study is not None:
            yield Problem(
                (*at, "teacher"),
                "must be a trial of an earlier stage of this study (STAGE@best, STAGE@trial-7), a model folder or "
                f"STUDY@champion, but got {self.teacher!r}. Name one of these.",
            )
        elif named is not None and named.stage not in earlier:
            yield Problem((*at, "teacher"), one_of("the train stages before this one", named.stage, earlier))

    def data_problems(self, before: Sequence[StageModel], data: DataConfig, at: KeyPath) -> Iterator[Problem]:
        """Yield topologies and image sizes that do not fit the images, and curricula that the models do not support."""
        if Signal.MEMORIZED_LABELS in self.signals and data.label_noise == 0:
            yield Problem(
                (*at, "signals"),
                f"the signal {Signal.MEMORIZED_LABELS.value} needs wrong labels, but data.label_noise is 0. Set it, or "
                "remove the signal.",
            )
        unfit = [
            problem
            for index, text in enumerate(self.topologies)
            for problem in topology_text_problems(text, data, (*at, "topologies", index))
        ]
        yield from unfit
        if unfit:
            return
        yield from _curriculum_problems(self, before, data, at)
        yield from _image_size_problems(self, before, data, at)

    def _dimensions(self) -> tuple[Dimension, ...] | None:
        """The recipe dimensions to search; `None` if the recipe is invalid, which is reported separately."""
        try:
            return self.recipe_space.dimensions
        except ValueError:
            return None


class TrainedTrial(StageResult):
    """A trial that ended with a result."""

    trial: int
    state: Literal["complete", "stopped"]
    topology: str
    val_accuracy: float
    value: float | None = None
    """The figure by which it is ranked; `None`, in results of version 0.1.0, means that it is the accuracy."""
    has_base_recipe: bool
    """Whether the trial used the base recipe and no scheduler ended it; accuracies of such trials are comparable."""


class LeaderboardRow(StageResult):
    """A trial with its sampled point: one key per dimension, such as `recipe.learning_rate`."""

    model_config = ConfigDict(extra="allow")
    trial: int
    state: Literal["complete", "stopped"]
    val_accuracy: float
    val_loss: float
    topology: str


class TrainResult(StageResult):
    """The trained trials."""

    candidates: tuple[str, ...]
    """Candidate topologies. The first trials train them in this order with the base recipe, `repeats` times."""
    num_candidates: int
    metric: DecidingMetric = ACCURACY
    """The study's metric."""
    ranked_by: str = ACCURACY.key
    """The figure by which the trials are ordered: the metric's value after the last epoch, or the best one."""
    baseline: dict[str, float] = Field(default_factory=dict)
    """Validation metrics of always predicting the largest class; empty in results of version 0.1.0."""
    best: LeaderboardRow
    leaderboard: tuple[LeaderboardRow, ...]
    """The ten best trials."""
    trials: tuple[TrainedTrial, ...] = ()
    """All trials with a result, by number. Version 0.1.0 stored none; `StageContext.earlier` adds them to its rows."""
    cost: Cost | None = None
    """The second objective; `None` if the study has one."""
    front: tuple[LeaderboardRow, ...] = ()
    """The Pareto front of a study with two objectives, the cheapest trial first. `best` is the one that was chosen."""
    chosen: str | None = None
    """Why `best` was chosen from the front."""
    num_failed: int
    weights: StartingWeights | None = None
    """The weights that the trials started from; `None` for random weights."""
    teacher: StageTeacher | None = None
    """The model that the trials learned from; `None` for none."""
    warm_start: WarmStarted | None = None
    """What the search was warm-started from."""
    certainty: RankingCertainty | None = None
    """How likely the best trial is really the best; `None` for a single trial, and in results of version 0.1.0."""
    time_error: CostError | None = None
    """How well the time per epoch was predicted; `None` with fewer than 2 trials, and in results of version 0.1.0."""


def run_train(context: StageContext, spec: TrainStage) -> StageOutcome:
    """Train each candidate with the base recipe (`repeats` times), so that accuracies compare, then sampled recipes."""
    from orchestrator.engines.suggester import OptunaSuggester
    from orchestrator.stages.search_figures import draw_search, view_search
    from orchestrator.stages.searching import run_search
    from orchestrator.stages.trial_pages import share_trials

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
            best=_leaderboard_row(best, context.metric),
            leaderboard=tuple(_leaderboard_row(trial, context.metric) for trial in ordered[:10]),
            trials=_trained(trials, base, objectives[0].metric),
            cost=cost,
            front=tuple(_leaderboard_row(trial, context.metric) for trial in chosen.front),
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
            **_recorded(best, context.metric),
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


def _recorded(trial: TrialRecord, metric: DecidingMetric) -> dict[str, float]:
    """The validation metrics of a trial. Those of version 0.1.0 have accuracy and loss alone."""
    keys = dict.fromkeys([*map(metric_key, RECORDED_METRICS), metric.key])
    return {key: trial.metrics[key] for key in keys if key in trial.metrics}


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


def ranking(context: StageContext, spec: TrainStage) -> Objective:
    """The figure by which trials are ranked."""
    return ranking_by(context.metric, spec)


def ranking_by(metric: DecidingMetric, spec: TrainStage) -> Objective:
    """The figure by which trials are ranked in a study that decides by a metric."""
    last = Objective.of(metric)
    return last._replace(metric=f"{last.metric}_best") if spec.rank_by == "best" else last


def sort_trials(trials: Sequence[TrialRecord], objectives: tuple[Objective, ...]) -> list[TrialRecord]:
    """Trials by the first objective, best first; ties go to the lower validation loss."""
    from orchestrator.stages.searching import is_better

    ordered: list[TrialRecord] = []
    for trial in trials:
        place = next(
            (index for index, other in enumerate(ordered) if is_better(trial, other, objectives)), len(ordered)
        )
        ordered.insert(place, trial)
    return ordered


def _leaderboard_row(trial: TrialRecord, metric: DecidingMetric) -> LeaderboardRow:
    shown = (f"{metric.key}_best", "best_epoch", "latency_ms", "parameters", "macs", "wall_time_s", "epochs")
    metrics = {name: trial.metrics[name] for name in shown if name in trial.metrics}
    return LeaderboardRow.model_validate(
        {"trial": trial.number, "state": trial.state, **_recorded(trial, metric), **metrics, **trial.point}
    )


def _trained(usable: Sequence[TrialRecord], base: Sequence[Point], ranked_by: str) -> tuple[TrainedTrial, ...]:
    """Trials with a result, by number; `base` are the points with the base recipe."""
    return tuple(
        TrainedTrial.model_validate(
            {
                "trial": trial.number,
                "state": trial.state,
                "topology": trial.point["topology"],
                "val_accuracy": trial.metrics["val_accuracy"],
                "value": trial.metrics[ranked_by],
                "has_base_recipe": trial.point in base and not {"scheduler", CUT} & trial.details.keys(),
            }
        )
        for trial in sorted(usable, key=lambda trial: trial.number)
    )


def _with_trials(
    raw: Mapping[str, Any],
    spec: TrainStage,  # noqa: ARG001 - other stages need it
    trials: Callable[[], list[TrialRecord]],
) -> Mapping[str, Any]:
    """Add the trials to a result stored by version 0.1.0, which did not store them."""
    if "trials" in raw:
        return raw
    usable = [trial for trial in trials() if trial.is_usable]
    base = [trial.point for trial in usable if trial.number < len(raw["candidates"])]
    return {**raw, "trials": _trained(usable, base, ACCURACY.key)}


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


def _candidate_problems(
    stage: TrainStage, screen: ScreenStage | None, has_grown: bool, at: KeyPath
) -> Iterator[Problem]:
    if stage.topologies and stage.candidates is not None:
        yield Problem((*at, "topologies"), "give `candidates` or `topologies`, but got both. Remove one of them.")
    if len(set(stage.topologies)) < len(stage.topologies):
        yield Problem((*at, "topologies"), "topologies must differ, but one is repeated. Remove the duplicate.")
    candidates = stage.chosen_candidates
    if candidates is not None and screen is None and not has_grown:
        yield Problem(
            at, "a train stage needs a screen or grow stage before it, or `topologies`, but has none of them. Add one."
        )
    total = stage.repeats * (len(stage.topologies) if candidates is None else candidates.total + has_grown)
    where = (*at, "num_trials")
    if candidates is not None and screen is not None and candidates.total > screen.num_trials:
        yield Problem(
            (*at, "candidates"),
            f"best + spread must be at most the {screen.num_trials} topologies that stage {screen.name!r} scores, "
            f"but got {candidates.best} + {candidates.spread}. Lower them or raise its `num_trials`.",
        )
    often = "once" if stage.repeats == 1 else f"{stage.repeats} times"
    if stage.num_trials < total:
        yield Problem(
            where,
            f"must be at least {total}, the number of candidate topologies, each trained {often} with the base "
            f"recipe, but got {stage.num_trials}. Raise it or name fewer candidates.",
        )


def _curriculum_problems(
    stage: TrainStage, before: Sequence[StageModel], data: DataConfig, at: KeyPath
) -> Iterator[Problem]:
    """Yield curricula that the models of the stage do not support."""
    if "curriculum" not in stage.recipe:
        return
    path, spaces = (*at, "recipe", "curriculum"), _trained_spaces(stage, before)
    for place, methods in method_lists(stage.recipe["curriculum"]):
        problem = method_problem(methods, spaces) or method_fit_problem(
            methods, stage.recipe.get("image_size"), data, _some_topologies(stage, before)
        )
        if problem:
            yield Problem((*path, *place), problem)


def _image_size_problems(
    stage: TrainStage, before: Sequence[StageModel], data: DataConfig, at: KeyPath
) -> Iterator[Problem]:
    """Yield image sizes that exceed the image size of the data or do not fit the topologies."""
    raw = stage.recipe.get("image_size")
    if raw is None:
        return
    yield from image_size_problems(raw, data, _some_topologies(stage, before), (*at, "recipe", "image_size"))


def _some_topologies(stage: TrainStage, before: Sequence[StageModel]) -> list[Topology]:
    """The topologies that the stage names, or one of the space that an earlier stage searches."""
    texts = list(stage.topologies)
    screen = latest(before, ScreenStage)
    if not texts and screen is not None:
        space = screen.search_space
        texts = [space.decode(base_point(space.dimensions())).id]
    return [registry.parse_topology(text) for text in texts]


def _signals(context: StageContext, spec: TrainStage) -> tuple[Signal, ...]:
    """Signals that the trials record: those of the stage, and those that later stages read."""
    after = context.spec.stages[context.stage.position + 1 :]
    wanted = frozenset(spec.signals).union(*(stage.signals_read for stage in after))
    return tuple(signal for signal in Signal if signal in wanted)


def _trained_spaces(stage: TrainStage, before: Sequence[StageModel]) -> list[str]:
    """Names of the search spaces of the stage's topologies."""
    texts = list(stage.topologies)
    if not texts:
        screen, grown = latest(before, ScreenStage), latest(before, GrowStage)
        texts = [screen.space.name] if screen is not None else []
        texts += [grown.topology] if grown is not None and grown.topology is not None else []
    return list(dict.fromkeys(text.partition(":")[0] for text in texts))


def _line(result: TrainResult) -> str:
    value = float(result.best.model_dump()[result.ranked_by])
    shown = f"{100 * value:.2f} %" if result.metric.is_fraction else result.metric.text(value)
    beside = ""
    if result.metric.key in result.baseline:
        beside = f"; {against_baseline(value, result.baseline[result.metric.key], result.metric)}"
    of_front = f", {result.chosen}" if result.chosen else ""
    return f"validation {result.metric.words} {shown}{of_front}{beside}"


TRAIN = StageKind(
    model=TrainStage,
    result=TrainResult,
    run=run_train,
    line=_line,
    complete=_with_trials,
)
