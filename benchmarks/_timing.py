"""Timing of calls and tables of results, for all benchmarks."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Timing of several runs of a call."""

    seconds: list[float]
    cpu_s: float
    """CPU time of all threads per run, which depends less on the load of the machine."""
    result: Any
    """Result of the last run."""

    @property
    def median(self) -> float:
        """Median wall-clock seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest, seconds."""
        return max(self.seconds) - min(self.seconds)


def measure(
    call: Callable[[], Any], runs: int, *, warm: bool = False, wait: Callable[[], object] = lambda: None
) -> Timing:
    """Run a call several times.

    Args:
        call: The call to time.
        runs: Number of runs.
        warm: Whether to run the call once before, without timing.
        wait: Waits until a device has finished the work of the call; included in the time.
    """
    if warm:
        call()
    wait()
    seconds = []
    before = time.process_time()
    for _ in range(runs):
        start = time.perf_counter()
        result = call()
        wait()
        seconds.append(time.perf_counter() - start)
    return Timing(seconds, (time.process_time() - before) / runs, result)


def save_report(file: Path | None, report: Mapping[str, Any]) -> None:
    """Write the measurements so far to a JSON file, if one is wanted. It is replaced as a whole, so it is never cut."""
    if file is not None:
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        new.replace(file)


def print_table(title: str, rows: Sequence[dict[str, Any]], *, medians: bool = True) -> None:
    """Print rows below their column headers, and the medians of numeric columns."""
    columns = list(rows[0])
    cells = [[_shown(row[column]) for column in columns] for row in rows]
    if medians:
        numeric = [column for column in columns if isinstance(rows[0][column], float)]
        last = [
            _shown(statistics.median(row[column] for row in rows)) if column in numeric else "" for column in columns
        ]
        cells.append(["median", *last[1:]])
    widths = [max(len(line[index]) for line in [columns, *cells]) for index in range(len(columns))]
    print(f"\n{title}")
    for line in [columns, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
