"""The tables of docs/methods.md are made from files of results, which later runs continue."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import _methods_page
from benchmarks._arms import Arm
from benchmarks._claims import CLAIMS, Comparison, claims_table, verdict
from benchmarks._methods_page import BLOCKS, averages_table, methods_count, missing_arms
from benchmarks._pairs import PairedDifference
from benchmarks.averaging import METHODS, SPACED, Measured, known_of
from benchmarks.methods import AS_VIT, CONTROL, ELSEWHERE, KINDS
from search_spaces.recipes import describe_plugin
from vitsearch.tables import BenchmarkTable

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


def test_an_average_of_a_single_seed_has_no_gain_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    write(tmp_path, "averaging-digits.json", {"measured": [vars(one) for one in averages(seeds=1)]})
    assert averages_table("digits:4").splitlines()[-1] == "| `lawa(window=3)` |  | 1 |"


@pytest.mark.parametrize(
    ("block", "name", "command"),
    [
        (
            "methods",
            "digits:losses",
            "benchmarks.methods --images digits --kind losses --json benchmarks/results/methods-digits.json",
        ),
        (
            "methods",
            "noisy-digits:losses",
            "benchmarks.methods --images digits --label-noise 0.4 --kind losses --json "
            "benchmarks/results/methods-noisy-digits.json",
        ),
        ("averages", "digits:12", "benchmarks.averaging --json benchmarks/results/averaging-digits.json"),
        ("noise", "digits", "benchmarks.noisy_labels --json benchmarks/results/noisy-labels-digits.json"),
        (
            "stopping-rules",
            "table",
            "benchmarks.stopping_rules --average lawa-3 --json benchmarks/results/stopping-table.json",
        ),
        ("variance", "table", "benchmarks.tables make benchmarks/tables/table.yaml --data CIFAR10 --work FOLDER"),
    ],
)
def test_a_table_that_was_not_measured_is_its_command(
    block: str, name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    monkeypatch.setattr(_methods_page, "TABLES", tmp_path)
    if block == "methods":  # other kinds have results already
        write(tmp_path, "methods-digits.json", {"groups": {f"digits, {AS_VIT}": {"arms": {}}}})
    assert BLOCKS[block](name) == f"Not measured yet: `python -m {command}`."


def arms(**tests: list[float]) -> dict[str, Any]:
    """Results of arms on As-ViT, by the test accuracies of their seeds."""
    found = {
        name.replace("_", " "): {
            "result": {"test": test, "validation": test, "rate": 0.002, "tried": {"0.002": 0.5}, "epochs": 20}
        }
        for name, test in tests.items()
    }
    return {"groups": {f"digits, {AS_VIT}": {"arms": found}}}


def test_the_methods_that_are_missing_are_listed_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    monkeypatch.setattr(_methods_page, "KINDS", {"losses": (Arm("focal"), Arm("z-loss")), "batches": (Arm("large"),)})
    write(tmp_path, "methods-digits.json", arms(none=[0.5, 0.6], focal=[0.5, 0.6], large=[0.5, 0.6]))
    assert missing_arms("digits").splitlines()[0] == "- losses: z-loss"
    assert "batches" not in missing_arms("digits")


def test_methods_are_counted_without_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    write(
        tmp_path,
        "methods-digits.json",
        arms(none=[0.5, 0.6, 0.7], sophia=[0.4, 0.5, 0.61], lion=[0.6, 0.7, 0.81], root=[0.7, 0.5, 0.6]),
    )
    assert methods_count("digits") == "3 methods are measured: 1 shown to be better, 1 shown to be worse."


def test_a_claim_is_judged_by_the_paired_difference_on_each_set_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    write(
        tmp_path,
        "methods-digits.json",
        arms(none=[0.5, 0.6, 0.7], sophia=[0.4, 0.5, 0.61], root=[0.7, 0.5, 0.6], muon=[0.6, 0.6, 0.6]),
    )
    by_claim = {line.split(" | ")[0][2:]: line for line in claims_table("all").splitlines()[2:]}
    assert len(by_claim) == len(CLAIMS)
    assert by_claim["Sophia needs half of the steps"].endswith("| sophia, digits: *-9.7 [-11.1, -8.2]* | worse here |")
    assert by_claim["ROOT is ahead of Muon"].endswith("| root - muon, digits: +0.0 [-24.8, +24.8] | not shown |")
    assert by_claim["UBA is the best schedule"].endswith("| not measured |  |")


def test_averages_before_the_decay_are_judged_at_each_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    measured = [
        vars(
            Measured(
                schedule="constant", factor=factor, stop_at=12, method=method, seed=seed, accuracy=accuracy, passes=0
            )
        )
        for factor, gain in ((1.0, 0.0), (4.0, 0.1))
        for seed in range(3)
        for method, accuracy in (("last", 0.5), (describe_plugin(SPACED), 0.5 + gain + 0.001 * (seed - 1)))
    ]
    write(tmp_path, "averaging-digits.json", {"measured": measured})
    line = next(line for line in claims_table("all").splitlines() if "more so at a high rate" in line)
    name = describe_plugin(SPACED)
    assert f"{name} - last, digits, 12 epochs, 1 x the rate: +0.0 [-0.2, +0.2]; " in line
    assert f"{name} - last, digits, 12 epochs, 4 x the rate: **+10.0 [+9.8" in line
    assert line.endswith("| confirmed in part |")


BETTER, WORSE, EVEN = (PairedDifference(mean, mean - 1, mean + 1) for mean in (2.0, -2.0, 0.0))


@pytest.mark.parametrize(
    ("found", "better", "as_good"),
    [
        ([], "", ""),
        ([EVEN], "not shown", "not refuted"),
        ([BETTER], "confirmed here", "better here"),
        ([BETTER, EVEN], "confirmed in part", "better in part"),
        ([WORSE], "worse here", "refuted here"),
        ([WORSE, EVEN], "worse in part", "refuted in part"),
        ([WORSE, BETTER], "it depends", "it depends"),
    ],
)
def test_the_verdict_follows_from_the_intervals(found: list[PairedDifference], better: str, as_good: str) -> None:
    assert verdict("better", found) == better
    assert verdict("as good", found) == as_good


def test_every_claim_names_arms_that_the_benchmark_trains() -> None:
    known = {AS_VIT: {arm.name for arms in KINDS.values() for arm in arms}}
    known |= {topology: {arm.name for arm in arms} for topology, arms in ELSEWHERE.items()}
    for claim in CLAIMS:
        for one in claim.comparisons:
            if isinstance(one, Comparison):
                assert {one.method, one.other} - {CONTROL.name} <= known[one.topology], claim.text
            else:
                assert one.other in map(describe_plugin, METHODS)


def test_stopping_rules_and_the_parts_of_the_variance_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_methods_page, "RESULTS", tmp_path)
    monkeypatch.setattr(_methods_page, "TABLES", tmp_path)
    row = {"criterion": "patience(epochs=2)", "stopped, %": "40", "test lost": "+0.3"}
    write(tmp_path, "stopping-small.json", {"num_curves": 7, "rows": [row]})
    assert BLOCKS["stopping-rules"]("small").splitlines() == [
        "7 curves.",
        "",
        "| criterion | stopped, % | test lost |",
        "| --- | ---: | ---: |",
        "| `patience(epochs=2)` | 40 | +0.3 |",
    ]
    part = {"standard_deviation": 0.0123, "low": 0.01, "high": 0.02, "share": 0.25}
    noise = {"val_accuracy": {"mean": 0.4, "topology": part}}
    card = {"num_trainings": 3, "num_planned": 4, "noise": noise}
    (tmp_path / "small.card.yaml").write_text(json.dumps(card), encoding="utf-8")
    assert BLOCKS["variance"]("small").splitlines() == [
        "3 of 4 trainings, mean validation accuracy 40.0 %.",
        "",
        "| source | standard deviation, points [95 %] | share of the variance, % |",
        "| --- | ---: | ---: |",
        "| topology | 1.23 [1.00, 2.00] | 25 |",
    ]


def test_recipes_are_compared_on_the_topologies_that_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {"base": {"augmentation": "shift"}, "plain": {}, "late": {"augmentation": "shift", "warmup": 0.2}}
    accuracies = {"a": (0.40, 0.45, 0.39), "b": (0.50, 0.53, 0.50), "c": (0.60, 0.10)}  # c has no late one
    rows = [
        {
            "topology": topology,
            "recipe": recipe,
            "seed": seed,
            "epoch": epoch,
            "state": "complete",
            "val_accuracy": found,
        }
        for topology, values in accuracies.items()
        for recipe, value in zip(recipes, values, strict=False)
        for seed, epoch, found in ((0, 1, 0.1), (0, 2, value), (1, 2, 0.9))
    ]
    table = BenchmarkTable(epochs=pd.DataFrame(rows), card={"plan": {"recipes": recipes}})
    monkeypatch.setattr(_methods_page, "load_table", lambda _: table)
    assert BLOCKS["recipes"]("small").splitlines() == [
        "2 topologies have all recipes; `base` has 45.0 %.",
        "",
        "| recipe | differs by | validation, % | difference |",
        "| --- | --- | ---: | ---: |",
        "| `plain` | without `augmentation: shift` | 49.0 | +4.0 [-8.7, +16.7] |",
        "| `late` | `warmup: 0.2` | 44.5 | -0.5 [-6.9, +5.9] |",
    ]
    few = replace(table, epochs=table.epochs[table.epochs["topology"] == "c"])
    monkeypatch.setattr(_methods_page, "load_table", lambda _: few)
    assert BLOCKS["recipes"]("small") == "Fewer than two topologies have all recipes."
