"""Tables as CSV text."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]], *, digits: int | None = 6) -> str:
    """A table as CSV.

    Args:
        header: Names of the columns.
        rows: Cells of each row; `None` becomes an empty cell.
        digits: Significant digits of floats; `None` writes them exactly.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(cell, digits) for cell in row] for row in rows)
    return buffer.getvalue()


def _cell(cell: Any, digits: int | None) -> Any:
    if cell is None:
        return ""
    return f"{cell:.{digits}g}" if isinstance(cell, float) and digits is not None else cell
