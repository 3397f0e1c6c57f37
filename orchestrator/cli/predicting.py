"""The command predict, which classifies image files."""

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.console import fail, note, out, print_json, print_text, stdout
from orchestrator.cli.exit_status import BAD_INPUT
from orchestrator.safe_text import printable
from orchestrator.settings import load_settings
from orchestrator.stages.progress import as_percent
from orchestrator.study.models import find_model_folder
from trainers.data.folders import images_below, is_image_name
from trainers.data.listing import DataError, DataFindings

if TYPE_CHECKING:
    from trainers.champion import Prediction

_AT_ONCE = 256
"""Number of images that are decoded and classified before their predictions are printed."""


def predict_command(model: str, given: Sequence[str], *, top: int, as_csv: bool, as_json: bool) -> None:
    """Classify images with a study's champion or a model folder. Unreadable images are named, the others classified."""
    folder = find_model_folder(model, load_settings())
    from trainers.champion import load_model

    predictor = load_model(folder)
    problems: list[DataError] = []
    files = find_images(given, problems)

    def predictions() -> "Iterator[Prediction]":
        for start in range(0, len(files), _AT_ONCE):
            yield from predictor.predict(files[start : start + _AT_ONCE], top=top, problems=problems)

    if as_json:
        rows = [{**one._asdict(), "path": str(one.path)} for one in predictions()]
        if rows:
            print_json(rows)
    elif as_csv:
        _print_csv(predictions(), num_ranks=min(top, len(predictor.card.class_names)))
    else:
        for one in predictions():
            out(_line(one))
    if problems:
        fail(*map(str, problems), status=BAD_INPUT)


def find_images(given: Sequence[str], problems: list[DataError]) -> list[Path]:
    """The image files that a user means, in the given order; those of a folder or pattern are sorted by name.

    Args:
        given: Files, folders, which are searched at any depth, and patterns with `*`, `**`, `?` or `[`.
        problems: Receives what contains or matches no image.
    """
    files: list[Path] = []
    findings = DataFindings()
    for text in given:
        path = Path(text)
        if path.is_dir():
            found = images_below(path, findings)
            if not found:
                problems.append(DataError(f"{path} must contain images, but has none. Name another folder."))
        elif path.exists() or not set("*?[") & set(text):
            found = [path]  # a missing file is reported as such
        else:
            matching = [Path(name) for name in sorted(glob(text, recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = [one for one in matching if one.is_file() and is_image_name(one.name)]
            if not found:
                problems.append(DataError(f"the pattern {text} must match images, but matches none. Correct it."))
        files += found
    for skipped in findings.skipped.values():
        note(f"left out: {skipped.count} {skipped.reason}, such as {skipped.examples[0]}")
    return files


def _line(prediction: "Prediction") -> str:
    """One line; on a terminal that is too narrow, the other classes follow below."""
    text = printable(f"{prediction.path}: {prediction.label} {as_percent(prediction.probability)}")
    others = printable(", ".join(f"{label} {as_percent(probability)}" for label, probability in prediction.top[1:]))
    if not others:
        return text
    if stdout.is_terminal and len(text) + len(others) + 3 > stdout.width:
        below = textwrap.wrap(others, max(20, stdout.width - 4))
        return "\n".join([text, *(f"    {line}" for line in below)])
    return f"{text} ({others})"


def _print_csv(predictions: "Iterator[Prediction]", *, num_ranks: int) -> None:
    ranks = [name for rank in range(2, num_ranks + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    _print_row(["path", "label", "probability", *ranks])
    for one in predictions:
        _print_row([one.path, *(value for pair in one.top for value in pair)])


def _print_row(values: Sequence[object]) -> None:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(values)
    print_text(row.getvalue())
