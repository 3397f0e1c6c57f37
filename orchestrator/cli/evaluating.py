"""The command evaluate: judges a model on labelled images."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.console import fail, note, out, print_json, stderr
from orchestrator.cli.decoding import advise_skip_broken, show_decoding
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.cli.model_table import model_report
from orchestrator.reports.model_files import draw_report, report_texts
from orchestrator.settings import load_settings
from orchestrator.study.models import find_model_folder

if TYPE_CHECKING:
    from trainers.data.images import ImageSplit
    from trainers.data.labelled import Part
    from trainers.results.model_report import ModelReport


def evaluate_command(
    model: str, source: str | None, *, part: "Part | None", folder: Path | None, skip_broken: bool, as_json: bool
) -> None:
    """Judge a model, print the report, and write it with its figures into a new folder if one is named."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(
            f"--out must be a new or empty folder, but {folder} exists and is not empty. Name another.",
            status=BAD_INPUT,
        )
    from trainers.champion import load_model  # imports torch

    predictor = load_model(find_model_folder(model, load_settings()))
    with advise_skip_broken(), show_decoding(stderr):
        images = predictor.load_labelled(source, part=part, skip_broken=skip_broken)
    report = predictor.report_on(images)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        which = "all images" if images.part == "all" else f"{images.part} part"
        out(f"{model} on {report.num_images} images of {images.source} ({which}: {images.why})\n")
        out(model_report(report))
    if folder is not None:
        _write(report, images.split, folder)


def _write(report: "ModelReport", split: "ImageSplit", folder: Path) -> None:
    """Write the files of a report into a folder, which appears only when it is complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as temporary:
            part = Path(temporary, "report")
            part.mkdir()
            draw_report(report, split, part)
            for name, text in report_texts(report).items():
                (part / name).write_text(text, encoding="utf-8")
            content = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False)
            (part / "report.json").write_text(content + "\n", encoding="utf-8")
            part.replace(folder)
    except OSError as error:
        fail(f"{folder} must be a folder that can be written, but: {error.strerror}. Name another.", status=BAD_INPUT)
    note(f"plots and tables in {folder}")
