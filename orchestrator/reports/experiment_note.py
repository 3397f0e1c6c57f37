"""The text above a study's runs in MLflow: what was searched, what won, by how much, and where to look."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.store.records import StageRecord, StudyRecord
from orchestrator.tracking.names import count_text, short
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from trainers.results.model_report import ModelReport, describe_result

_MAX_RECIPE_FIELDS = 8


def experiment_note(
    study: StudyRecord,
    stages: Sequence[StageRecord],
    *,
    stage_key: Callable[[StageRecord], str],
    trial_key: Callable[[StageRecord, int], str],
    num_validation: int | None = None,
    report_key: str | None = None,
) -> str:
    """The text in Markdown, one paragraph per line, with the links of a `DescribeExperiment`.

    Args:
        study: The study, with its state.
        stages: Its stages, in order.
        stage_key: The key of a stage's run.
        trial_key: The key of a trial's run.
        num_validation: Number of validation images, if known.
        report_key: Key of the run with the report on the study, if there is one.
    """
    train = _last(stages, "train")
    promote = _last(stages, "promote")
    parts: list[str] = []
    if train is not None:
        rows = train.result["leaderboard"]
        best = train.result["best"] if promote is None else _row_of(rows, promote.result["trial"])
        best = best or train.result["best"]
        metric = DecidingMetric.model_validate(train.result.get("metric", ACCURACY))
        trial = f"[trial {best['trial']:02d}](run:{trial_key(train, best['trial'])})"
        ranked_by = train.result.get("ranked_by", metric.key)
        reached = f"{metric.text(best[ranked_by])} validation {metric.words}"
        parts += [
            _won(study, trial, best, promote, reached),
            _recipe(best),
            _margin(rows, best, metric, ranked_by, num_validation),
        ]
    else:
        parts.append(f"**{study.name}** is {study.state}" + (f": {study.reason}" if study.reason else "."))
    parts.append(f"**Searched:** {_searched(study.spec, stages)}")
    parts.append(_links(stages, train, promote, stage_key, report_key))
    return "\n\n".join(part for part in parts if part)


def _won(study: StudyRecord, trial: str, best: Mapping[str, Any], promote: StageRecord | None, reached: str) -> str:
    size = f", {count_text(best['parameters'])} parameters" if "parameters" in best else ""
    if promote is None:
        unfinished = "" if study.state == "complete" else f" The study is {study.state}."
        return f"{reached} so far: {trial}{size}.{unfinished}"
    report = promote.result.get("test")
    tested = f"{100 * promote.result['test_accuracy']:.1f} %"
    if report is not None:
        tested = describe_result(ModelReport.model_validate(report))
    named = f"{trial}{size}, is the champion, [{study.name}](model:{study.name})."
    return f"{tested} on the test part, {reached}: {named}"


def _recipe(best: Mapping[str, Any]) -> str:
    fields = [
        f"{name.removeprefix('recipe.').replace('_', ' ').replace('.', ' ')} {_plain(value)}"
        for name, value in best.items()
        if name.startswith("recipe.")
    ]
    more = f" and {len(fields) - _MAX_RECIPE_FIELDS} more" if len(fields) > _MAX_RECIPE_FIELDS else ""
    recipe = f"; {', '.join(fields[:_MAX_RECIPE_FIELDS])}{more}" if fields else ""
    return f"**Its recipe:** `{best['topology']}`{recipe}."


def _margin(
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    metric: DecidingMetric,
    ranked_by: str,
    num_validation: int | None,
) -> str:
    others = [row for row in rows if row["trial"] != best["trial"]]
    if not others:
        return ""
    value, before = best[ranked_by], others[0][ranked_by]
    is_accuracy = metric.key == ACCURACY.key
    image = f" (one validation image is {100 / num_validation:.2f} points)" if num_validation and is_accuracy else ""
    next_best = f"trial {others[0]['trial']:02d} with {metric.text(before)}"
    if value == before:
        loss = others[0]["val_loss"] - best["val_loss"]
        return f"**Margin:** none over {next_best}{image}; its loss is lower by {short(loss):.4g}."
    return f"**Margin:** {metric.difference(value, before)} over the next best, {next_best}{image}."


def _searched(spec: Mapping[str, Any], stages: Sequence[StageRecord]) -> str:
    done = []
    for block, stage in zip(spec["stages"], stages, strict=False):
        num_trials = block.get("num_trials")
        if stage.kind == "screen":
            space = block["space"]["name"] if isinstance(block["space"], Mapping) else block["space"]
            done.append(f"{num_trials} topologies of `{space}` scored without training")
        elif stage.kind == "train":
            fields = [
                name.replace("_", " ")
                for name, value in (block.get("recipe") or {}).items()
                if isinstance(value, list | Mapping)
            ]
            over = f" over {', '.join(fields)}" if fields else ""
            done.append(f"{num_trials} trainings of {block['epochs']} epochs{over}")
        elif stage.kind in {"stopping", "averaging"}:
            what = "stopping criteria replayed" if stage.kind == "stopping" else "averages of checkpoints evaluated"
            done.append(f"{num_trials} {what}")
    return "; ".join(done) + "." if done else f"{', '.join(stage.name for stage in stages)}."


def _links(
    stages: Sequence[StageRecord],
    train: StageRecord | None,
    promote: StageRecord | None,
    stage_key: Callable[[StageRecord], str],
    report_key: str | None,
) -> str:
    found = [f"[the report](report:{report_key})"] if report_key else []
    if train is not None:
        found += ["[trials, best first](view:trials)", f"[stage {train.name}](run:{stage_key(train)})"]
    if promote is not None:
        found.append(f"[stage {promote.name}](run:{stage_key(promote)})")
        found += [f"[report on the test](plots:{stage_key(promote)})"] if promote.result.get("test") else []
    found += [f"[plots of {stage.name}](plots:{stage_key(stage)})" for stage in stages if stage.kind in _WITH_PLOTS]
    return f"**Look at:** {' · '.join([*found, '[all runs](view:all)'])}"


_WITH_PLOTS = frozenset({"train", "correlate"})


def _last(stages: Sequence[StageRecord], kind: str) -> StageRecord | None:
    found = [stage for stage in stages if stage.kind == kind and stage.state == "complete"]
    return found[-1] if found else None


def _row_of(rows: Sequence[Mapping[str, Any]], trial: int) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["trial"] == trial), None)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return f"{short(value):.12g}" if isinstance(value, float) else str(value)
