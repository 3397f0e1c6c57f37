"""The tables of docs/methods.md are made from files of results, which later runs continue."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _methods_page
from benchmarks._methods_page import averages_table, methods_table
from benchmarks.averaging import Measured, known_of

SIZES = {"seeds": 2, "epochs": 4, "images": 100, "factors": [1.0]}
DATA = {"source": "digits"}


def averages(*, seeds: int) -> list[Measured]:
    """A last checkpoint with 50 % and an average with 51 %, for each seed."""
    return [
        Measured(schedule="cosine", factor=1.0, stop_at=4, method=method, seed=seed, accuracy=accuracy, passes=passes)
        for seed in range(seeds)
        for method, accuracy, passes in (("last", 0.5, 0), ("lawa(window=3)", 0.51 + 0.001 * seed, 1))
    ]


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    file = folder / name
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_averages_of_an_earlier_run_are_known_whatever_its_number_of_seeds(tmp_path: Path) -> None:
    measured = [vars(one) for one in averages(seeds=2)]
    file = write(tmp_path, "averaging.json", {"data": DATA, "sizes": SIZES, "measured": measured})
    assert known_of(file, {"data": DATA, "sizes": {**SIZES, "seeds": 5}}) == averages(seeds=2)
    assert known_of(file, {"data": DATA, "sizes": {**SIZES, "seeds": 1}}) == averages(seeds=1)
    assert known_of(file, {"data": DATA, "sizes": {**SIZES, "epochs": 8}}) == []
    assert known_of(file, {"data": {"source": "cifar10"}, "sizes": SIZES}) == []
    assert known_of(tmp_path / "missing.json", {"data": DATA, "sizes": SIZES}) == []


def test_a_table_of_averages_tells_gains_over_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    write(tmp_path, "averaging-digits.json", {"measured": [vars(one) for one in averages(seeds=3)]})
    assert averages_table("digits:4").splitlines()[2:] == [
        "| `last` | 50.0 % | 0 |",
        "| `lawa(window=3)` | **+1.1 [+0.9, +1.3]** | 1 |",
    ]


def test_a_table_of_methods_that_were_not_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    write(tmp_path, "methods-digits.json", {"groups": {}})
    with pytest.raises(ValueError, match="losses has none"):
        methods_table("digits:losses")
