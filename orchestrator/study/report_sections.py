"""The sections of a report on a study, as blocks of a page. A section about which nothing is known has no blocks."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from orchestrator.engines.interfaces import Objective
from orchestrator.reports.page import (
    Bar,
    Block,
    PageBars,
    PageCode,
    PageColumns,
    PageDrawings,
    PageFacts,
    PageTable,
    PageText,
    draw_on_page,
    read_drawing,
    read_picture,
)
from orchestrator.reports.summary import configuration_yaml
from orchestrator.stages.averaging import AveragingResult, AveragingStage, describe_average
from orchestrator.stages.certainty import describe_certainty
from orchestrator.stages.grow import GrowResult
from orchestrator.stages.kind import stage_kind
from orchestrator.stages.promote import PromoteResult
from orchestrator.stages.screen import ScreenResult
from orchestrator.stages.search_figures import draw_search, view_search
from orchestrator.stages.stopping import StoppingResult, StoppingStage
from orchestrator.stages.trade_off import with_cost
from orchestrator.stages.train_result import LeaderboardRow, TrainResult, sort_trials
from orchestrator.stages.train_spec import TrainStage
from orchestrator.stages.verdict_results import CorrelateResult
from orchestrator.store.records import TrialRecord
from orchestrator.study.reported import ReportedStage, ReportedStudy, minutes_text
from orchestrator.tracking.names import short
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.protocols import CurvePoint
from plugins.registry import UnknownPluginError, create
from search_spaces.dimensions import Choice
from search_spaces.recipes import PluginChoice, Recipe, describe_plugin
from trainers.config import Configuration
from trainers.results.model_report import ClassFigures, ModelReport

_MAX_CLASSES, _MAX_TRIALS, _MAX_CURVES, _MAX_CONFUSIONS, _MAX_NAMES = 30, 10, 8, 8, 60
_FEW_TOPOLOGIES = 20
"""With fewer topologies, a correlation says little."""

# --- data, cost, funnel ---


def data_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """Images per part and class, what was left out, what is suspicious, and a picture of some images."""
    data = reported.data
    if data is None:
        return ()
    blocks: list[Block] = [PageText(f"{data.lines()[0]}. Source: {data.source}.")]
    blocks += [PageText(warning.message, is_warning=True) for warning in data.warnings]
    if data.skipped:
        skipped = [(one.reason, ", ".join(data.places(one)[:3]), f"{one.count:,}") for one in data.skipped]
        head = ("left out", "examples", "count")
        blocks.append(PageTable(head, tuple(skipped), num_text=2, caption="What is not used"))
    names = list(data.parts)
    smallest_first = sorted(data.classes, key=lambda one: _num_of_class(reported, one))
    shown = data.classes if len(data.classes) <= _MAX_CLASSES else smallest_first[:_MAX_CLASSES]
    rows = [(one, *(f"{data.parts[part].per_class.get(one, 0):,}" for part in names)) for one in shown]
    caption = "Images per class" if len(shown) == len(data.classes) else f"The {len(shown)} smallest classes"
    table = PageTable(("class", *names), tuple(rows), caption=caption)
    sheet = read_picture(reported.folder / "data.png", "Training images as the models see them")
    return (*blocks, PageColumns((table,) if sheet is None else (table, sheet)))


def _num_of_class(reported: ReportedStudy, name: str) -> int:
    assert reported.data is not None
    return sum(part.per_class.get(name, 0) for part in reported.data.parts.values())


def funnel_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """How many topologies and models each step left, and what each stage found."""
    screen, train = reported.last(ScreenResult), reported.last(TrainResult)
    grow, champion = reported.last(GrowResult), reported.last(PromoteResult)
    steps: list[tuple[str, int, str]] = []
    if screen is not None:
        by = " and ".join(screen.rank_by)
        steps.append(("topologies scored", screen.num_topologies, f"without training, ranked by {by}"))
    if grow is not None:
        ended = f"to {grow.final.parameters:,} parameters: {grow.final.topology}"
        steps.append(("networks grown", len(grow.family), f"from {grow.start} {ended}"))
    if train is not None:
        steps.append(("topologies trained", train.num_candidates, "each first with the same base recipe"))
        count = len(train.trials) or len(train.leaderboard)
        failed = f"; {train.num_failed} more failed" if train.num_failed else ""
        steps.append(("models trained", count, f"topologies with their recipes{failed}"))
    if champion is not None:
        origin = f"trial {champion.trial}, {champion.parameters:,.0f} parameters"
        steps.append(("champion", 1, f"{origin}, {100 * champion.test_accuracy:.1f} % of the test images right"))
    if not steps:
        return ()
    largest = max(count for _, count, _ in steps)
    bars = tuple(Bar(label, f"{count:,}", count / largest, detail) for label, count, detail in steps)
    blocks: list[Block] = [PageBars(bars)]
    if grow is not None and len(grow.family) > 1:
        from orchestrator.reports.plots import growth

        steps_grown = [step.model_dump() for step in grow.family]
        blocks += _drawings(
            [draw_on_page("growth", lambda path: growth(steps_grown, list(grow.family[0].scores), path))]
        )
    return tuple(blocks)


def cost_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """The time of each stage, its trials, and its result in one line."""
    times = [(stage, reported.time_s(stage)) for stage in reported.stages if stage.record.started_at is not None]
    if not times:
        return ()
    longest = max((seconds or 0.0 for _, seconds in times), default=0.0) or 1.0
    bars = []
    for stage, seconds in times:
        text = stage.record.state if seconds is None else minutes_text(seconds)
        bars.append(Bar(stage.record.name, text, (seconds or 0.0) / longest, _stage_line(stage)))
    blocks: list[Block] = [PageBars(tuple(bars))]
    trained = [trial for stage in reported.stages if stage.record.kind == "train" for trial in stage.trials]
    epochs = sum(trial.metrics.get("epochs", 0.0) for trial in trained)
    if epochs:
        more = f", in {len(reported.executions)} executions" if len(reported.executions) > 1 else ""
        machine = machine_text(reported)
        blocks.append(
            PageText(f"{epochs:,.0f} epochs were trained in all{more}." + (f" {machine}." if machine else ""))
        )
    train = reported.last(TrainResult)
    if train is not None and train.time_error is not None:
        blocks += [PageText(f"{line[0].upper()}{line[1:]}.") for line in train.time_error.lines]
    return tuple(blocks)


def _stage_line(stage: ReportedStage) -> str:
    ended = [trial.state for trial in stage.trials if trial.ended_at is not None]
    counts = ", ".join(f"{ended.count(state):,} {_TRIALS.get(state, state)}" for state in dict.fromkeys(ended))
    line = stage.record.reason or ("" if stage.result is None else stage_kind(stage.record.kind).line(stage.result))
    return " · ".join(part for part in (f"trials: {counts}" if counts else "", line) if part)


_TRIALS = {"complete": "complete", "stopped": "stopped early", "failed": "failed"}


def machine_text(reported: ReportedStudy) -> str:
    """On what the study ran, as its last execution recorded it."""
    setups = [one.setup for one in reported.executions if one.setup]
    reason = str(setups[-1].get("reason", "")) if setups else ""
    return reason.replace("RAY_ADDRESS names the cluster", "Ray cluster")


# --- champion ---


def champion_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """The champion's configuration, why it was chosen, and its metrics with their intervals."""
    champion, train = reported.last(PromoteResult), reported.last(TrainResult)
    if champion is None:
        return ()
    blocks: list[Block] = []
    if champion.test is not None and not champion.test.beats_baseline:
        always = champion.test.baseline.name
        blocks.append(PageText(f"It is NOT better than always answering {always!r}.", is_warning=True))
    if champion.test is not None:
        blocks += [PageText(note, is_warning=True) for note in champion.test.notes]
    averaging = champion.configuration.averaging
    single = {"last": "the last checkpoint", "best": "the checkpoint of the best epoch"}.get(averaging.name)
    origin = f"It is {single} of" if single else f"It is an average by {describe_plugin(averaging)} of checkpoints of"
    why = [f"{origin} trial {champion.trial}."]
    if champion.chosen is not None:
        why.append(f"Of the trials, it is {champion.chosen}.")
    if champion.refit:
        why.append("It was trained once more on the training and validation part.")
    if train is not None and train.certainty is not None:
        text = describe_certainty(train.certainty)
        why.append(f"{text[0].upper()}{text[1:]}.")
    blocks.append(PageText(" ".join(why)))
    facts = PageFacts(tuple(_configuration_facts(champion.configuration)))
    blocks.append(PageColumns((facts,) if champion.test is None else (facts, _metric_table(champion.test))))
    if champion.finalists:
        finals = [
            (
                str(one.trial),
                f"{one.mean:.4f}",
                "-" if one.spread is None else f"{one.spread:.4f}",
                str(len(one.values)),
            )
            for one in champion.finalists
        ]
        head = ("trial", "mean", "standard deviation", "trainings")
        blocks.append(PageTable(head, tuple(finals), caption="Finalists, trained again with other seeds"))
    return tuple(blocks)


def _metric_table(report: ModelReport) -> PageTable:
    rows = []
    for name, one in report.metrics.items():
        try:
            metric = DecidingMetric.of(PluginChoice(name=name))
        except UnknownPluginError:  # a plug-in that is no longer installed
            metric = ACCURACY.model_copy(update={"is_fraction": False})
        interval = "-"
        if one.low is not None and one.high is not None:
            interval = f"{_exact(one.low, metric)} to {_exact(one.high, metric)}"
        rows.append((name.replace("-", " "), _exact(one.value, metric), interval))
    caption = f"On the {report.num_images:,} test images, which no search has seen"
    return PageTable(("metric", "value", "95 % interval"), tuple(rows), caption=caption)


def _configuration_facts(configuration: Configuration) -> list[tuple[str, str]]:
    """Topology, length and everything in which the recipe differs from the default one."""
    facts = [("topology", configuration.topology), ("epochs", str(configuration.epochs))]
    default = Recipe().model_dump(mode="json")
    always = ("learning_rate", "weight_decay", "batch_size", "schedule", "augmentation", "curriculum")
    for name, value in configuration.recipe.model_dump(mode="json").items():
        if name in always or value != default.get(name):
            facts.append((name.replace("_", " "), _value_text(value)))
    if configuration.stopping is not None:
        facts.append(("stopping", describe_plugin(configuration.stopping)))
    return facts


def mistake_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """Confusions, the weakest classes, calibration, and the most confident mistakes of the champion."""
    from orchestrator.reports.model_plots import confusion_matrix, reliability

    found = reported.last_stage(PromoteResult)
    report = None if found is None else found[1].test
    if found is None or report is None:
        return ()
    right = report.num_images - report.num_mistakes
    calibration = report.calibration
    text = (
        f"{right:,} of {report.num_images:,} test images are right, {report.num_mistakes:,} wrong. The probabilities "
        f"that the model gives are off by {100 * calibration.ece:.1f} % on average (expected calibration error)."
    )
    blocks: list[Block] = [PageText(text)]
    blocks += _drawings(
        [
            draw_on_page("confusion-matrix", lambda path: confusion_matrix(report, path)),
            draw_on_page("reliability", lambda path: reliability(report, path)),
        ]
    )
    weakest = sorted(report.per_class, key=_recall)[:_MAX_CONFUSIONS]
    rows = [(one.name, f"{one.support:,}", _percent(one.recall), _percent(one.precision)) for one in weakest]
    head = ("class", "images", "found (%)", "right if answered (%)")
    classes = PageTable(head, tuple(rows), caption="The classes that are found least often")
    confusions = _confusions(report)
    if confusions:
        taken = PageTable(
            ("true class", "taken for", "images"), confusions, num_text=2, caption="The most frequent confusions"
        )
        blocks.append(PageColumns((taken, classes)))
    else:
        blocks.append(classes)
    if report.mistakes:
        sheet = read_picture(reported.picture(found[0], "mistakes.png"), "The most confident mistakes")
        blocks += [] if sheet is None else [sheet]
    return tuple(blocks)


def _confusions(report: ModelReport) -> tuple[tuple[str, ...], ...]:
    pairs = [
        (count, report.classes[row], report.classes[column])
        for row, cells in enumerate(report.confusion)
        for column, count in enumerate(cells)
        if count and row != column
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return tuple((truth, answer, f"{count:,}") for count, truth, answer in pairs[:_MAX_CONFUSIONS])


def _recall(one: ClassFigures) -> float:
    return 2.0 if one.recall is None else one.recall


# --- trials and curves ---


def trial_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """The best trials as a table, and the figures of the search: fronts, history, importance, all trials."""
    found = reported.last_stage(TrainResult)
    if found is None:
        return ()
    stage, result = found
    rows = result.leaderboard[:_MAX_TRIALS]
    blocks: list[Block] = []
    if result.chosen is not None:
        blocks.append(PageText(f"Trial {result.best.trial} was chosen: it is {result.chosen}."))
    blocks.append(_leaderboard(rows, result))
    if len(result.trials) > len(rows):
        blocks.append(PageText(f"All {len(result.trials)}: vitsearch trials {reported.study.name}"))
    figures = _search_figures(reported, stage, result)
    return (*blocks, *figures)


def _leaderboard(rows: Sequence[LeaderboardRow], result: TrainResult) -> PageTable:
    """The best trials with their figures and everything that differs between them."""
    values = [row.model_dump() for row in rows]
    fields = [name for name in dict.fromkeys(key for row in values for key in row) if name.startswith("recipe.")]
    varied = [name for name in fields if len({repr(row.get(name)) for row in values}) > 1]
    metrics = dict.fromkeys(["val_accuracy", result.ranked_by, "val_loss"])
    cost = [] if result.cost is None or result.cost.key == "parameters" else [result.cost.key]
    head = ["trial", *(_metric_name(one) for one in metrics), "parameters", *cost, *map(_field_name, varied)]
    table = []
    for row in values:
        numbers = [_metric_text(one, row.get(one), result.metric) for one in metrics]
        spent = [_value_text(row.get(name)) for name in cost]
        chosen = [_value_text(row.get(name)) for name in varied]
        parameters = "-" if row.get("parameters") is None else f"{row['parameters']:,.0f}"
        table.append((str(row["trial"]), *numbers, parameters, *spent, *chosen))
    topologies = tuple(str(row["topology"]) for row in values)
    places = [index for index, row in enumerate(values) if row["trial"] == result.best.trial]
    caption = f"The {len(rows)} best models" if len(rows) > 1 else ""
    return PageTable(
        tuple(head), tuple(table), marked=places[0] if places else None, caption=caption, details=topologies
    )


def _search_figures(reported: ReportedStudy, stage: ReportedStage, result: TrainResult) -> list[Block]:
    block = _block(reported, stage)
    if not isinstance(block, TrainStage):
        return []
    objective = Objective(result.ranked_by, result.metric.direction)
    dimensions = (Choice(name="topology", options=result.candidates), *block.recipe_space.dimensions)
    base = frozenset(trial.trial for trial in result.trials if trial.has_base_recipe)
    objectives = with_cost(objective, result.cost)
    view = view_search(stage.trials, objectives, dimensions, best=result.best.trial, base=base)
    with TemporaryDirectory(prefix="vitsearch-page-") as folder:
        drawn = draw_search(view, result.metric, Path(folder), suffix=".svg")
        return _drawings([read_drawing(path) for path in drawn])


def curve_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """Learning curves with the epochs at which the found criterion stops, and the criteria that were replayed."""
    found = reported.last_stage(TrainResult)
    if found is None:
        return ()
    stage, train = found
    stopping = reported.last_stage(StoppingResult)
    curves = _curves(reported, stage, train)
    stops = {} if stopping is None else _stops(curves, stopping[1])
    blocks: list[Block] = []
    if stopping is not None:
        result = stopping[1]
        within = "" if result.within_limit else ", which is more than the file allows; no criterion loses less"
        blocks.append(
            PageText(
                f"Of the stopping criteria that were replayed on {result.num_curves} curves, "
                f"{describe_plugin(result.criterion)} saves {100 * result.epochs_saved:.0f} % of the epochs for "
                f"{result.metric.amount(result.accuracy_lost)}{within}."
            )
        )
    drawings = []
    if curves:
        drawings.append(_draw_curves(curves, train.metric, stops))
    if stopping is not None:
        drawings.append(_draw_front(reported, *stopping))
    blocks += _drawings(drawings)
    if stopping is not None and stopping[1].best_of_each:
        rows = [
            (one.criterion, f"{100 * one.epochs_saved:.0f}", _amount(one.accuracy_lost, stopping[1].metric))
            for one in stopping[1].best_of_each
        ]
        head = ("criterion", "epochs saved (%)", f"{stopping[1].metric.words} lost")
        blocks.append(PageTable(head, tuple(rows), caption="The best setting of each criterion"))
    return tuple(blocks)


def _curves(reported: ReportedStudy, stage: ReportedStage, train: TrainResult) -> dict[str, list[CurvePoint]]:
    """Curves of the best trials, best first, by name."""
    usable = [trial for trial in stage.trials if trial.is_usable and train.ranked_by in trial.metrics]
    ordered = sort_trials(usable, (Objective(train.ranked_by, train.metric.direction),))
    read = {f"trial {trial.number}": reported.reports_of(trial) for trial in ordered[:_MAX_CURVES]}
    if any(
        train.metric.key not in {"val_loss", "val_accuracy", *one.metrics} for rows in read.values() for one in rows
    ):
        return {}  # recorded without this metric
    return {name: [one.point_by(train.metric) for one in rows] for name, rows in read.items() if rows}


def _stops(curves: Mapping[str, Sequence[CurvePoint]], result: StoppingResult) -> dict[str, int]:
    """The epoch at which the found criterion stops each curve. Criteria that are not installed any more stop none."""
    from trainers.tasks.replay import replay_curves

    try:
        criterion = create("stopping", result.criterion.name, result.criterion.settings)
        replayed = replay_curves(criterion, list(curves.values()))
    except (UnknownPluginError, ValueError, KeyError):
        return {}
    ends = zip(curves, replayed, strict=True)
    return {name: one.stopped_after for name, one in ends if one.stopped_after is not None}


def _draw_curves(curves: Mapping[str, Sequence[CurvePoint]], metric: DecidingMetric, stops: Mapping[str, int]) -> Any:
    from orchestrator.reports.plots import learning_curves

    return draw_on_page("learning-curves", lambda path: learning_curves(curves, path, metric=metric, stops=stops))


def _draw_front(reported: ReportedStudy, stage: ReportedStage, result: StoppingResult) -> Any:
    from orchestrator.reports.plots import stopping_front

    block = _block(reported, stage)
    replays = [trial for trial in stage.trials if trial.is_usable]
    if not isinstance(block, StoppingStage) or len(replays) < 2:
        return None
    names = [describe_plugin(block.decode(trial.point)) for trial in replays]
    points = [(trial.metrics["epochs_saved"], trial.metrics["accuracy_lost"]) for trial in replays]
    chosen = (result.epochs_saved, result.accuracy_lost)
    if chosen not in points:
        return None
    index = points.index(chosen)
    return draw_on_page(
        "stopping-front", lambda path: stopping_front(points, index, path, metric=result.metric, names=names)
    )


# --- methods and scores ---


def method_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """The trials with each option of the recipe, and the gains of averaging."""
    blocks: list[Block] = []
    train = reported.last_stage(TrainResult)
    if train is not None:
        rows = _option_rows(train[0].trials, train[1])
        if rows:
            head = ("field", "option", "trials", f"best {train[1].metric.words}", "mean")
            caption = "Trials with each option. The other fields differ too, so this shows what was tried, not a cause"
            blocks.append(PageTable(head, rows, num_text=2, caption=caption))
    averaging = reported.last_stage(AveragingResult)
    if averaging is not None:
        blocks += _averaging_blocks(reported, *averaging)
    return tuple(blocks)


def _option_rows(trials: Sequence[TrialRecord], result: TrainResult) -> tuple[tuple[str, ...], ...]:
    """A row for each option of each field of the recipe that was searched as a choice, the best one first."""
    usable = [trial for trial in trials if trial.is_usable and result.ranked_by in trial.metrics]
    rows: list[tuple[str, ...]] = []
    for field in dict.fromkeys(name for trial in usable for name in trial.point if name.startswith("recipe.")):
        values: dict[str, list[float]] = {}
        for trial in usable:
            if field in trial.point:
                values.setdefault(_value_text(trial.point[field]), []).append(trial.metrics[result.ranked_by])
        is_choice = (
            all(not isinstance(trial.point.get(field), float) for trial in usable) or len(values) <= len(usable) / 3
        )
        if not 1 < len(values) <= _MAX_NAMES or not is_choice:
            continue
        metric = result.metric
        best = {option: max(found, key=metric.score) for option, found in values.items()}
        for option in sorted(values, key=lambda one: -metric.score(best[one])):
            mean = _exact(fmean(values[option]), metric)
            rows.append((_field_name(field), option, str(len(values[option])), _exact(best[option], metric), mean))
    return tuple(rows)


def _averaging_blocks(reported: ReportedStudy, stage: ReportedStage, result: AveragingResult) -> list[Block]:
    from orchestrator.reports.search_plots import averaging_gains

    gain = (
        result.metric.difference(result.gain, 0.0) if result.metric.direction == "maximize" else f"{result.gain:+.4f}"
    )
    text = (
        f"The best average of the checkpoints of trial {result.averaged_from} is {describe_plugin(result.averaging)}: "
        f"{gain} against its last weights, and {result.gain_val_loss:+.4f} of validation loss."
    )
    if result.averaging.name == "last" and result.gain <= 0:
        text = f"No average of the checkpoints of trial {result.averaged_from} is better than its last weights."
    if result.stop_at is not None:
        text += (
            f" The training could have ended after epoch {result.stop_at} ({100 * result.epochs_saved:.0f} % saved)."
        )
    blocks: list[Block] = [PageText(text)]
    block = _block(reported, stage)
    value = result.value if result.value is not None else result.val_accuracy
    if isinstance(block, AveragingStage):
        before, epochs = result.metric.score(value) - result.gain, _epochs_of(reported, result.averaged_from)
        gains = [
            (average_name(block, trial, epochs=epochs), result.metric.score(trial.metrics[result.metric.key]) - before)
            for trial in stage.trials
            if trial.is_usable and result.metric.key in trial.metrics
        ]
        blocks += _drawings([draw_on_page("averaging-gains", lambda path: averaging_gains(gains, result.metric, path))])
    return blocks


def _epochs_of(reported: ReportedStudy, number: int) -> int:
    """Number of epochs of a trial of the last train stage."""
    train = reported.last_stage(TrainResult)
    trials = [] if train is None else train[0].trials
    return round(next((trial.metrics.get("epochs", 0.0) for trial in trials if trial.number == number), 0.0))


def average_name(block: AveragingStage, trial: TrialRecord, *, epochs: int) -> str:
    """An average in words, with the epoch at which the training would end if it saves any of the `epochs`."""
    saved = trial.metrics.get("epochs_saved", 0.0)
    return describe_average(block.decode(trial.point), round(epochs * (1 - saved)) if saved > 0 else None)


def score_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """The verdict on the training-free scores, and how early trials can be compared."""
    from orchestrator.reports.plots import agreement_over_epochs, correlation_summary

    result = reported.last(CorrelateResult)
    if result is None:
        return ()
    baseline = result.baselines[0]
    winners = [
        row.proxy if row.training_macs is None else f"{row.proxy} (after a few training steps)"
        for row in result.proxies
        if baseline in row.beats
    ]
    who = f"{', '.join(winners)} predicted better" if winners else "No score is shown to predict better"
    text = (
        f"{who} than {baseline} on {result.num_topologies} topologies of {result.truth.name} ({result.truth.target})."
    )
    if result.num_topologies < _FEW_TOPOLOGIES:
        text += f" That is too few for a firm verdict: train {_FEW_TOPOLOGIES} or more."
    blocks: list[Block] = [PageText(text)]
    drawings = []
    if any(row.tau.value is not None for row in result.proxies):
        verdicts = [row.verdict for row in result.proxies]
        drawings.append(
            draw_on_page("correlation-summary", lambda path: correlation_summary(verdicts, path, baseline=baseline))
        )
    early = result.early
    if early is not None and any(one.tau.value is not None for one in early.epochs):
        drawings.append(draw_on_page("agreement-over-epochs", lambda path: agreement_over_epochs(early, path)))
    blocks += _drawings(drawings)
    if early is not None:
        blocks.append(PageText(early.advice))
    return tuple(blocks)


# --- reuse ---


def reuse_blocks(reported: ReportedStudy) -> tuple[Block, ...]:
    """Commands for the champion and for the next study, and the study file."""
    name, champion = reported.study.name, reported.last(PromoteResult)
    blocks: list[Block] = []
    if champion is not None:
        commands = (
            f"vitsearch predict {name} photo.jpg\n"
            f"vitsearch evaluate {name} folder-with-labels\n"
            f"vitsearch export {name} --format onnx"
        )
        blocks.append(PageCode("Use the champion:", commands))
        again = f"vitsearch best {name} > best.yaml\nvitsearch train best.yaml --data other-images"
        blocks.append(PageCode("Train its configuration again, on the same or other images:", again))
    if reported.last(TrainResult) is not None:
        block = f"stages:\n  - stage: train\n    warm_start: {{study: {name}, top: 5}}"
        blocks.append(PageCode("Let the next study begin with its best configurations:", block))
    if champion is not None:
        advice = champion.model_dump(mode="json")["recommended_stopping"]
        text = configuration_yaml(champion.configuration, advice)
        blocks.append(PageCode("The champion's configuration", text, is_folded=True))
    if reported.study.spec:
        content = yaml.safe_dump(reported.study.spec, sort_keys=False, allow_unicode=True)
        blocks.append(PageCode("The study file, with all settings", content, is_folded=True))
    return tuple(blocks)


def origin_text(reported: ReportedStudy) -> str:
    """From what the report was made: study, seed, digests and versions."""
    study = reported.study
    versions = dict.fromkeys(one.code_version for one in reported.executions)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(study.updated_at))
    return (
        f"Study {study.name} ({study.uid}) of {study.owner}, {study.state} at {when}. Seed {study.spec.get('seed')}, "
        f"file {study.spec_digest[:16]}, data {study.data_digest[:16]}, vitsearch {', '.join(versions) or 'unknown'}."
    )


# --- helpers ---


def _block(reported: ReportedStudy, stage: ReportedStage) -> Any:
    """The stage's block of the study file, or `None`."""
    return None if reported.spec is None else reported.spec.stages[stage.record.position]


def _drawings(found: Sequence[Any]) -> list[Block]:
    drawn = tuple(one for one in found if one is not None)
    return [PageDrawings(drawn)] if drawn else []


def _metric_name(key: str) -> str:
    words = key.removeprefix("val_").replace("_", " ").removesuffix(" best")
    best = "best " if key.endswith("_best") else ""
    return f"{best}val. {words}"


def _metric_text(key: str, value: Any, metric: DecidingMetric) -> str:
    if value is None:
        return "-"
    if key.removesuffix("_best") == metric.key:
        return _exact(value, metric)
    return _exact(value, ACCURACY) if key == ACCURACY.key else f"{value:.4f}"


def _exact(value: float, metric: DecidingMetric) -> str:
    return f"{100 * value:.2f} %" if metric.is_fraction else f"{value:.4f}"


def _amount(lost: float, metric: DecidingMetric) -> str:
    return f"{100 * lost:.2f} points" if metric.is_fraction else f"{lost:.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _field_name(name: str) -> str:
    return name.removeprefix("recipe.").replace("_", " ").replace(".", " ")


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{short(value):.12g}"
    if isinstance(value, list):
        return ", ".join(map(_value_text, value)) or "none"
    if isinstance(value, dict):
        inner = ", ".join(f"{key}={_value_text(one)}" for key, one in value.items() if key != "name")
        return f"{value['name']}({inner})" if "name" in value else inner
    return str(value)
