"""Runs the tests that need a GPU, and notes each result as soon as it is known."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks._timing import save_report

_TESTS = Path(__file__).resolve().parents[2] / "tests"
_MARK = "pytest.mark.gpu"


class _Notes:
    """A plug-in of pytest that counts results, and keeps the reasons of failures."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after the set-up, the call and the end of each test."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[report.outcome] += 1
        if report.failed:
            lines = report.longreprtext.strip().splitlines() or [""]
            errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
            self.failures.append({"test": report.nodeid, "reason": " ".join(errors or lines[-1:])[:500]})
        self.save()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest after it has read a file."""
        if report.failed:
            self.counts["failed"] += 1
            self.failures.append({"test": report.nodeid, "reason": report.longreprtext.strip()[-500:]})
            self.save()

    def save(self) -> None:
        """Write the figures."""
        save_report(self._file, {**{name: self.counts[name] for name in _OUTCOMES}, "failures": self.failures})


_OUTCOMES = ("passed", "failed", "skipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu: all tests are skipped, which is then no failure (cuda)")
    parser.add_argument("--processes", type=int, default=0, help="processes that share the GPU (none but this one)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    files = sorted(str(file) for file in _TESTS.rglob("test_*.py") if _MARK in file.read_text(encoding="utf-8"))
    spread = ["-n", str(options.processes)] if options.processes else []
    notes = _Notes(options.json)
    pytest.main([*files, "-m", "gpu", "-q", "-p", "no:cacheprovider", *spread], plugins=[notes])
    notes.save()
    counts = {name: notes.counts[name] for name in _OUTCOMES}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["failed"] or not sum(counts.values()) or (options.device != "cpu" and not counts["passed"]):
        names = ", ".join(failure["test"].rpartition("::")[2] for failure in notes.failures)
        sys.exit(f"the tests must pass, but {counts['failed']} of {sum(counts.values())} failed: {names or 'none ran'}")


if __name__ == "__main__":
    main()
