"""The report on a study: one page that tells what was searched, what was found, what it cost, and how to use it."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

from orchestrator.reports.page import PageSection, Tile, render_page
from orchestrator.settings import Settings
from orchestrator.spec.stage_model import StageModel
from orchestrator.stages.kind import StageResult, stage_kind
from orchestrator.stages.promote import PromoteResult
from orchestrator.stages.screen import ScreenResult
from orchestrator.stages.train_result import TrainResult
from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.study import report_sections as sections
from orchestrator.study.access import database_gone, fetched_study_folder, find_study, open_existing
from orchestrator.study.growth import stored_spec
from orchestrator.study.reported import ReportedStage, ReportedStudy, minutes_text
from trainers.data.report import DataReport
from trainers.results.model_report import ModelReport, describe_result


class ReportNotWrittenError(OSError):
    """The file of a report cannot be written, or exists already."""


def html_report(name: str, settings: Settings) -> str:
    """The report on a study as HTML. The page needs no other file.

    Raises:
        orchestrator.study.access.UnknownStudyError: There is no study of that name.
    """
    study = find_study(name, settings)
    with open_existing(settings) as store:
        if store is None:
            raise database_gone(settings)
        return render_study(study, store, fetched_study_folder(settings, study))


def render_study(study: StudyRecord, store: Store, folder: Path) -> str:
    """The report on a study as HTML.

    Args:
        study: The study, with its actual state.
        store: The store.
        folder: Folder of the study's pictures.
    """
    reported = read_study(study, store, folder)
    parts = [
        PageSection("data", "The images", sections.data_blocks(reported)),
        PageSection("way", "From topologies to a champion", sections.funnel_blocks(reported)),
        PageSection("spent", "What it cost", sections.cost_blocks(reported)),
        PageSection("champion", "The champion", sections.champion_blocks(reported)),
        PageSection("mistakes", "What it gets wrong", sections.mistake_blocks(reported)),
        PageSection("trials", "The trained models", sections.trial_blocks(reported)),
        PageSection("curves", "Learning curves and stopping", sections.curve_blocks(reported)),
        PageSection("methods", "What each method gave", sections.method_blocks(reported)),
        PageSection("scores", "Did the training-free scores predict accuracy?", sections.score_blocks(reported)),
        PageSection("reuse", "How to use it", sections.reuse_blocks(reported)),
    ]
    return render_page(
        study.name, _lead(reported), tiles=_tiles(reported), sections=parts, footer=sections.origin_text(reported)
    )


def read_study(study: StudyRecord, store: Store, folder: Path) -> ReportedStudy:
    """Read what a report tells of a study. Results of stages that have not ended are left out."""
    spec = stored_spec(study)
    records, executions = store.stages(study.id), store.executions(study.id)
    stages = []
    for record in records:
        trials = store.trials(record.id)
        result = _result_of(record, None if spec is None else spec.stages[record.position], trials)
        stages.append(ReportedStage(record, trials, result))
    found = next((one.setup["data"] for one in executions if one.setup and "data" in one.setup), None)
    return ReportedStudy(
        study=study,
        spec=spec,
        stages=tuple(stages),
        executions=tuple(executions),
        data=None if found is None else DataReport.model_validate(found),
        folder=folder,
        reports_of=lambda trial: store.reports(trial.id),
    )


def save_report(study: str, file: Path, settings: Settings, *, overwrite: bool = False) -> Path:
    """Write the report on a study into a file and return its absolute path.

    Args:
        study: Name of the study.
        file: The file to write.
        settings: Settings of this installation.
        overwrite: Whether to replace an existing file.

    Raises:
        orchestrator.study.access.UnknownStudyError: There is no study of that name.
        ReportNotWrittenError: The file cannot be written, or exists and must not be replaced.
    """
    require_free(file, overwrite=overwrite)
    return write_page(html_report(study, settings), file, overwrite=overwrite)


def require_free(file: Path, *, overwrite: bool) -> None:
    """Check, before the report is made, that its file will not replace another one.

    Raises:
        ReportNotWrittenError: The file exists and must not be replaced, or its folder does not exist.
    """
    if file.exists() and not overwrite:
        raise _exists(file)
    if not file.absolute().parent.is_dir():
        raise _cannot_be_written(file, os.strerror(errno.ENOENT))


def write_page(html: str, file: Path, *, overwrite: bool = False) -> Path:
    """Write a report that `html_report` or a service made into a file and return its absolute path.

    Raises:
        ReportNotWrittenError: The file cannot be written, or exists and must not be replaced.
    """
    try:
        with file.open("w" if overwrite else "x", encoding="utf-8") as stream:
            stream.write(html)
    except FileExistsError:
        raise _exists(file) from None
    except OSError as error:
        raise _cannot_be_written(file, error.strerror) from error
    return file.absolute()


def _exists(file: Path) -> ReportNotWrittenError:
    return ReportNotWrittenError(f"{file} must not exist yet, but does. Add --overwrite, or name another.")


def _cannot_be_written(file: Path, reason: str | None) -> ReportNotWrittenError:
    return ReportNotWrittenError(f"{file} must be writable, but: {reason}. Name another with --out.")


class _Headline(NamedTuple):
    """The results that the top of a report shows, as far as there are any."""

    screen: ScreenResult | None
    train: TrainResult | None
    champion: PromoteResult | None


def _result_of(record: StageRecord, block: StageModel | None, trials: list[TrialRecord]) -> StageResult | None:
    """The typed result of a stage; `None` if it has none."""
    is_kept = record.kind == "promote"  # a study that grows keeps its champion meanwhile
    if not record.result or not (is_kept or record.state == "complete"):
        return None
    kind = stage_kind(record.kind)
    found: StageResult = (
        kind.result.model_validate(record.result) if block is None else kind.read(record, block, lambda: trials)
    )
    return found


def _headline(reported: ReportedStudy) -> _Headline:
    return _Headline(reported.last(ScreenResult), reported.last(TrainResult), reported.last(PromoteResult))


def _lead(reported: ReportedStudy) -> str:
    study, found = reported.study, _headline(reported)
    searched = []
    if found.screen is not None:
        searched.append(f"{found.screen.num_topologies:,} topologies scored without training")
    if found.train is not None:
        searched.append(f"{len(found.train.trials) or len(found.train.leaderboard)} trained models")
    among = f" It was found among {' and '.join(searched)} in {minutes_text(reported.total_s)}." if searched else ""
    state = (
        ""
        if study.state == "complete"
        else f" The study is {study.state}{f': {study.reason}' if study.reason else ''}."
    )
    if found.champion is not None:
        result = f"{100 * found.champion.test_accuracy:.1f} %"
        if found.champion.test is not None:
            result = describe_result(found.champion.test)
        return (
            f"The champion has {found.champion.parameters:,.0f} parameters and reaches {result} on the test images."
            f"{among}{state}"
        )
    if found.train is not None:
        metric = found.train.metric
        value = getattr(found.train.best, found.train.ranked_by, None)
        reached = "" if value is None else f" with a validation {metric.words} of {metric.text(value)}"
        return f"Trial {found.train.best.trial} is the best so far{reached}.{state or ' There is no champion.'}"
    return state.strip() or "The study has no result yet."


def _tiles(reported: ReportedStudy) -> list[Tile]:
    champion, train = reported.last(PromoteResult), reported.last(TrainResult)
    tiles = []
    if champion is not None:
        tiles += _champion_tiles(champion)
    elif train is not None:
        best = train.best
        tiles.append(Tile("Best validation accuracy", f"{100 * best.val_accuracy:.2f} %", f"trial {best.trial}"))
    if reported.total_s:
        tiles.append(Tile("Time", minutes_text(reported.total_s), sections.machine_text(reported).partition(": ")[0]))
    return tiles


def _champion_tiles(champion: PromoteResult) -> list[Tile]:
    report: ModelReport | None = champion.test
    detail = ""
    if report is not None:
        accuracy = report.metrics["accuracy"]
        if accuracy.low is not None and accuracy.high is not None:
            detail = f"95 %: {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %, {report.num_images:,} images"
    tiles = [Tile("Test accuracy", f"{100 * champion.test_accuracy:.2f} %", detail)]
    if report is not None and report.metric.choice.name in report.metrics and report.metric.choice.name != "accuracy":
        metric, value = report.metric, report.metrics[report.metric.choice.name].value
        tiles.append(Tile(f"Test {metric.words}", metric.text(value), "the metric that decides"))
    if report is not None:
        always = f"by always answering {report.baseline.name!r}"
        tiles.append(Tile("Baseline", f"{100 * report.baseline.accuracy:.1f} %", always))
    if champion.val_accuracy is not None:
        tiles.append(Tile("Validation accuracy", f"{100 * champion.val_accuracy:.2f} %", f"trial {champion.trial}"))
    tiles.append(
        Tile("Parameters", f"{champion.parameters:,.0f}", f"{champion.macs / 1e6:,.3g} million MACs per image")
    )
    return tiles
