"""Shows the trained trials of a stage in MLflow: a view with the searched parameters, and each trial's place."""

from collections.abc import Sequence

from orchestrator.engines.interfaces import Search
from orchestrator.stages.context import StageContext
from orchestrator.stages.searching import decisive_text
from orchestrator.store.records import StageRecord, TrialRecord
from search_spaces.dimensions import Choice, Dimension


def share_trials(
    context: StageContext,
    search: Search,
    dimensions: Sequence[Dimension],
    *,
    ordered: Sequence[TrialRecord] = (),
) -> None:
    """Share the view of a stage's trials, before its search and after it.

    Args:
        context: The context of the stage.
        search: The stage's search.
        dimensions: Its dimensions.
        ordered: After the search, its trials with a result, best first; each is given its place.
    """
    tree, now = context.run_tree, context.store.clock.now()
    events = tree.trials_ranked(context.stage, ordered, at=now)
    if not ordered:
        events = tree.trials_taken_over(context.stage, context.store.trials(context.stage.id))
    shown = tree.trials_shown(
        context.stage,
        metrics=[objective.metric for objective in search.objectives],
        descending=search.objectives[0].direction == "maximize",
        params=searched_parameters(search, dimensions, ordered),
        is_ranked=bool(ordered),
        at=now,
    )
    context.store.owe(context.study.id, [*events, *shown])


def searched_parameters(search: Search, dimensions: Sequence[Dimension], trials: Sequence[TrialRecord]) -> list[str]:
    """Names of the parameters that the search varies, as MLflow shows them; before any trial, those without condition.

    A plug-in's settings have other names in a trial's parameters than in its point, so the parameters decide.
    """
    names = [one.name for one in dimensions if one.when is None and not _is_single(one)]
    if not trials:
        return names
    points = [search.parameters(trial.point) for trial in trials]
    keys = dict.fromkeys(key for point in points for key in point if key == "topology" or key.startswith("recipe."))
    varied = [key for key in keys if key in names or len({repr(point.get(key)) for point in points}) > 1]
    return sorted(varied, key=lambda key: names.index(key) if key in names else len(names))


def mark_champion(context: StageContext, stage: StageRecord, number: int, *, text: str) -> list[str]:
    """Events that mark the trial from which the champion was made, and remove the mark of an earlier champion.

    Args:
        context: The context of the promote stage.
        stage: The stage of the trial.
        number: Number of the trial.
        text: Description of the champion, Markdown.
    """
    before = context.stage.result.get("trial")  # this stage has run before, and the study has grown since
    found = {trial.number: trial for trial in context.store.trials(stage.id) if trial.number in {number, before}}
    ranked_by = stage.result.get("ranked_by", context.metric.key)
    named = {
        one: (trial, decisive_text(trial, context.metric, ranked_by=ranked_by) or "") for one, trial in found.items()
    }
    champion, result = named[number]
    former = named.get(before) if before is not None else None
    return context.run_tree.champion_marked(stage, champion, result=result, text=text, former=former)


def _is_single(dimension: Dimension) -> bool:
    return isinstance(dimension, Choice) and len(dimension.options) == 1
