"""What differs between two studies, and whether their test accuracies do."""

import shutil

import pytest

from orchestrator.cli.differing import short_row
from orchestrator.study.differing import MISSING, StudyDifference, _differences, _flat, accuracy_verdict
from tests.golden.test_homes import HOMES
from tests.tiny import CommandLine
from trainers.results.intervals import wilson_interval
from trainers.results.model_report import Estimate


def accuracy(right: int, count: int) -> Estimate:
    low, high = wilson_interval(right, count)
    return Estimate(value=right / count, low=low, high=high, method="Wilson")


def test_the_interval_of_a_difference_is_that_of_newcombes_example() -> None:
    # Newcombe 1998, table II, 56 of 70 against 48 of 80 by method 10: 0.0524 to 0.3339.
    assert accuracy_verdict("a", "b", accuracy(48, 80), accuracy(56, 70)) == (
        "b against a: +20.00 points of test accuracy (95 % interval +5.24 to +33.39); b is better"
    )
    worse = accuracy_verdict("a", "b", accuracy(56, 70), accuracy(48, 80))
    assert worse is not None
    assert worse.endswith("-33.39 to -5.24); a is better")


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        ("0.004", "0.002243443190744984", ("0.004", "0.002243")),
        ("0.002243443190744984", "0.002243443190744985", ("0.002243443190744984", "0.002243443190744985")),
        ("1303826749", "as-vit:0.12345", ("1303826749", "as-vit:0.12345")),
    ],
)
def test_sampled_numbers_are_shown_with_four_digits_if_they_still_differ(
    first: str, second: str, shown: tuple[str, str]
) -> None:
    assert short_row(StudyDifference("recipe.learning_rate", first, second))[1:] == shown


def test_a_small_difference_and_a_missing_interval_say_so() -> None:
    equal = accuracy_verdict("a", "b", accuracy(48, 80), accuracy(50, 80))
    assert equal is not None
    assert equal.endswith("neither is shown to be better")
    without = Estimate(value=0.5, low=None, high=None, method="none")
    assert accuracy_verdict("a", "b", without, accuracy(50, 80)) is None


@pytest.fixture
def old_home(command_line: CommandLine) -> CommandLine:
    shutil.copytree(HOMES / "0.1.0" / "home", command_line.home)
    return command_line


def test_two_studies_of_one_home_are_compared(old_home: CommandLine) -> None:
    done = old_home("diff", "finished", "interrupted", "--format", "json")
    assert done.status == 0, done.err
    found = done.json()
    results = {row["name"]: (row["first"], row["second"]) for row in found["results"]}
    assert results["state"] == ("complete", "interrupted")
    assert results["test accuracy"][0].endswith(" %")
    assert results["test accuracy"][1] == "(not there)"
    assert all(row["first"] != row["second"] for part in ("file", "data", "champion") for row in found[part])
    assert found["champion"] == []
    shown = old_home("diff", "finished", "interrupted", COLUMNS="80").out
    assert "No champion yet: interrupted." in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_method_without_settings_is_compared_with_one_that_has_some() -> None:
    first = _flat({"space": "as-vit", "criteria": [{"name": "patience", "epochs": {"low": 1, "high": 5}}]})
    second = _flat({"space": {"name": "as-vit", "width": 16}, "criteria": ["patience"]})
    assert [tuple(one) for one in _differences(first, second)] == [
        ("criteria", "[{name: patience, epochs: {low: 1, high: 5}}]", "patience"),
        ("space.width", MISSING, "16"),
    ]


def test_a_study_does_not_differ_from_itself_and_an_unknown_one_is_named(old_home: CommandLine) -> None:
    same = old_home("diff", "finished", "finished").out
    assert "No difference: file, images, champion's configuration." in same
    unknown = old_home("diff", "finished", "finishd")
    assert (unknown.status, "Did you mean 'finished'?" in unknown.err) == (2, True)
