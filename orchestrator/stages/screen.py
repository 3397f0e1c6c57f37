"""Stage `screen`: samples topologies and scores them with training-free proxies. Nothing is trained."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.spec.proxy_choices import parts_of, proxy_directions, scored_choices
from orchestrator.spec.study_file import ScreenStage
from orchestrator.stages.context import StageContext, StageOutcome
from orchestrator.stages.searching import run_search
from orchestrator.stages.topology_ranking import Ranked, add_pool_scores, rank_topologies
from search_spaces.base import Costs, SearchSpace
from search_spaces.dimensions import Point
from trainers.config import ScoreTask


def run_screen(context: StageContext, spec: ScreenStage) -> StageOutcome:
    """Score `num_trials` different topologies; the result ranks them by the sum of their ranks.

    The sampler sees the parts of a pool proxy, whose own values are known only once all topologies are.

    Where the sampler has a last word of its own, such as the argmax of a policy, the last trial scores that.
    """
    space, directions, proxies = spec.search_space, proxy_directions(spec.ranking), scored_choices(spec.proxies)
    sampled_by = [part for name in spec.ranking for part in parts_of(name) or (name,)]
    objectives = tuple(Objective(proxy, direction) for proxy, direction in proxy_directions(sampled_by).items())
    suggester = OptunaSuggester(
        space.dimensions(),
        objectives=objectives,
        sampler=spec.sampler,
        seed=context.seed,
        problem=lambda point: _problem(space, point, spec, context),
        final_number=spec.num_trials - 1,
    )
    search = Search(
        num_trials=spec.num_trials,
        objectives=objectives,
        suggester=suggester,
        make_task=lambda trial: ScoreTask(
            data=context.spec.data,
            topology=space.decode(trial.point).id,
            proxies=proxies,
            batch_size=spec.batch_size,
            seed=context.seed,  # the same images, initial weights and circles for every topology: a paired comparison
        ),
    )
    trials = add_pool_scores(run_search(context, search), spec.proxies)
    ranked = rank_topologies(trials, directions)
    best = ranked[0]
    choice = suggester.final_choice()
    return StageOutcome(
        result={
            "num_topologies": len(ranked),
            "num_failed": len(context.store.trials(context.stage.id)) - len(ranked),
            "rank_by": directions,
            "best": _row(best, spec),
            "top": [_row(row, spec) for row in ranked[:10]],
            **({} if choice is None else {"final_choice": _final_choice(space.decode(choice).id, ranked, spec)}),
        },
        summary=f"{len(ranked)} topologies scored; best {best.topology}",
        metrics={
            "num_topologies": len(ranked),
            **{f"best.{name}": best.trial.metrics[name] for name in spec.proxy_names},
        },
        texts={"screening.csv": _table(ranked, space)},
    )


def screened(context: StageContext) -> tuple[ScreenStage, list[Ranked]]:
    """The latest earlier screen's settings and its ranked topologies."""
    stage = context.earlier("screen")
    if stage is None:  # the spec's own validation demands one
        raise LookupError(f"stage {context.stage.name!r} needs a screen before it")
    spec = context.spec.stages[stage.position]
    assert isinstance(spec, ScreenStage)
    usable = [trial for trial in context.store.trials(stage.id) if trial.is_usable]
    trials = add_pool_scores(usable, spec.proxies)
    return spec, rank_topologies(trials, proxy_directions(spec.ranking))


def _problem(space: SearchSpace, point: Point, spec: ScreenStage, context: StageContext) -> str | None:
    topology = space.decode(point)
    problem = space.problem(topology, context.image_task)
    return problem or _limit_problem(spec, space.costs(topology, context.image_task))


def _limit_problem(spec: ScreenStage, costs: Costs) -> str | None:
    for name, low, high in spec.limits.bounds():
        value = getattr(costs, name)
        if (low is not None and value < low) or (high is not None and value > high):
            return f"{name} must lie between {low} and {high}, but they are {value}"
    return None


def _row(row: Ranked, spec: ScreenStage) -> dict[str, Any]:
    return {
        "topology": row.topology,
        "trial": row.trial.number,
        "rank_sum": row.rank_sum,
        "scores": {name: row.trial.metrics[name] for name in spec.proxy_names},
        "parameters": int(row.trial.metrics["parameters"]),
        "macs": int(row.trial.metrics["macs"]),
    }


def _final_choice(topology: str, ranked: list[Ranked], spec: ScreenStage) -> dict[str, Any]:
    """The sampler's own choice with its place, counted from 1, or none where it could not be scored."""
    for place, row in enumerate(ranked, start=1):
        if row.topology == topology:
            return {**_row(row, spec), "place": place}
    return {"topology": topology, "place": None}


def _table(ranked: list[Ranked], space: SearchSpace) -> str:
    described = [space.describe(space.parse(row.topology.partition(":")[2])) for row in ranked]
    buffer = io.StringIO()
    metrics = sorted({name for row in ranked for name in row.trial.metrics})
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "rank_sum", "trial", "topology", *described[0], *metrics])
    for place, (row, parameters) in enumerate(zip(ranked, described, strict=True), start=1):
        values: Mapping[str, float] = row.trial.metrics
        writer.writerow(
            [
                place,
                row.rank_sum,
                row.trial.number,
                row.topology,
                *parameters.values(),
                *(values.get(name, "") for name in metrics),
            ]
        )
    return buffer.getvalue()
