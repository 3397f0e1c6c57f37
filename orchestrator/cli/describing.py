"""The command data: what was understood of a data set, before any training."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.console import fail, note, out, print_json, stderr
from orchestrator.cli.decoding import advise_skip_broken, show_decoding
from orchestrator.cli.exit_status import exit_on_error
from orchestrator.safe_text import printable
from orchestrator.spec.study_file import load_spec, make_data_config
from trainers.data.cache_settings import verified_cache
from trainers.data.report import DataReport

_STUDY_SUFFIXES = (".yaml", ".yml")
_MAX_CLASSES = 30


def data_command(source: str, *, settings: Mapping[str, Any], sheet: Path | None, verify: bool, as_json: bool) -> None:
    """Describe the images of a path or of a study file, and draw some of them into a picture file."""
    is_study = Path(source).suffix in _STUDY_SUFFIXES and Path(source).is_file()
    with exit_on_error(Path(source) if is_study else None):
        if is_study:
            config = load_spec(source, overrides={f"data.{name}": value for name, value in settings.items()}).data
        else:
            config = make_data_config({"source": source, "resize": "stretch", **settings})
        from trainers.data.describing import describe_data, draw_sheet  # imports torch

        advised: AbstractContextManager[None] = nullcontext() if is_study else advise_skip_broken()
        with advised, show_decoding(stderr), verified_cache() if verify else nullcontext():
            described = describe_data(config)
        if sheet is not None:
            try:
                draw_sheet(described.data, sheet)
            except (OSError, ValueError) as error:  # ValueError: a suffix that Pillow does not know
                reason = error.strerror if isinstance(error, OSError) else error
                fail(f"{sheet} must be a file that can be written, such as sheet.png, but: {reason}", status=2)
    if as_json:
        print_json(described.report.model_dump(mode="json"))
        return
    out(_report(described.report))
    if sheet is not None:
        note(f"contact sheet in {sheet}")


def _report(report: DataReport) -> RenderableType:
    table = Table("class", *report.parts, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in report.classes[:_MAX_CLASSES]:
        table.add_row(printable(name), *(str(part.per_class[name]) for part in report.parts.values()))
    if len(report.classes) > _MAX_CLASSES:
        table.add_row(f"... ({len(report.classes)} classes)", *("" for _ in report.parts))
    table.add_row("total", *(str(part.num_images) for part in report.parts.values()), style="bold")
    size = f"{report.image_size} x {report.image_size} pixels"
    found = ", ".join(report.originals[:4]) + (", ..." if len(report.originals) > 4 else "")
    unseen = " (the test part stays unseen)" if "test" in report.parts else ""
    lines = [
        f"{printable(report.source)}: {report.num_images} {report.colours} images of {len(report.classes)} classes",
        f"used at {size} (resize: {report.resize}); as stored{unseen}: {found}",
        "mean "
        + ", ".join(f"{value:.3f}" for value in report.mean)
        + "; standard deviation "
        + ", ".join(f"{value:.3f}" for value in report.std),
    ]
    parts: list[RenderableType] = [Text("\n".join(lines)), Text(), table]
    if report.skipped:
        parts += [Text("\nLeft out", style="bold")]
        left_out = Table.grid(padding=(0, 1))
        left_out.add_column(justify="right")
        for one in report.skipped:
            example = "".join(f", such as {place}" for place in report.places(one)[:1])
            left_out.add_row(str(one.count), Text(printable(f"{one.reason}{example}")))
        parts.append(left_out)
    if report.warnings:
        parts += [Text("\nWarnings", style="bold red")]
        warnings = Table.grid(padding=(0, 1))
        for warning in report.warnings:
            warnings.add_row("-", Text(printable(warning.message)))
        parts.append(warnings)
    return Group(*parts)
