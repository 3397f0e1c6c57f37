"""True and false are no numbers, and absurd numbers are refused, in every field of a study file."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from orchestrator.spec.study_file import load_spec
from plugins.registry import PluginSettingsError, create
from search_spaces.numbers import truth_value_problem
from search_spaces.recipes import Recipe
from trainers.data.labels import read_labels
from trainers.data.listing import DataError
from trainers.yaml_source import SpecError

STUDY = yaml.safe_load((Path(__file__).parents[2] / "studies" / "quickstart.yaml").read_text(encoding="utf-8"))
WITHOUT_LIMIT = {"seed", "max_params", "high", "low"}
"""Seeds, sizes of models, and ends of ranges of settings that are no counts."""


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


NUMBERS = list(numbers_in(STUDY))


def problem_with(path: tuple[Any, ...], value: Any, folder: Path) -> str:
    changed = copy.deepcopy(STUDY)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "study.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(SpecError) as caught:
        load_spec(folder / "study.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_true_is_no_number(path: tuple[Any, ...], tmp_path: Path) -> None:
    message = problem_with(path, True, tmp_path)
    assert "must be a number, but got true" in message
    assert str(next(key for key in reversed(path) if isinstance(key, str))) in message


@pytest.mark.parametrize(
    "path", [path for path in NUMBERS if path[-1] not in WITHOUT_LIMIT], ids=lambda path: ".".join(map(str, path))
)
def test_an_absurd_number_is_refused_with_its_value(path: tuple[Any, ...], tmp_path: Path) -> None:
    message = problem_with(path, 10**18, tmp_path).replace(",", "")
    assert "1000000000000000000" in message or "1e+18" in message


def test_lists_and_functions_of_progress_take_no_truth_values() -> None:
    assert truth_value_problem([1, True], tuple[int, ...]) == "must be a number, but got true. Write a number."
    assert truth_value_problem(True, bool | int) is None
    for value in (False, {"from": True, "to": 0.5}):
        with pytest.raises(ValueError, match=r"must be a number, but got (true|false)"):
            Recipe.model_validate({"dropout": value})


def test_settings_of_plugins_take_no_truth_values_and_no_absurd_numbers() -> None:
    for value, message in ((True, "got true"), (10**18, "9,007,199,254,740,992")):
        with pytest.raises(PluginSettingsError, match=message):
            create("averaging", "lawa", {"window": value})


@pytest.mark.parametrize("label", [-5, -2, 2**63, 2**64 - 1])
def test_a_label_that_counts_nothing_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"from 0, or -1 .* row 2 has {label}"):
        read_labels("a.csv, label", [0, 1, label])


def test_the_label_minus_one_and_large_numbers_of_classes_stay() -> None:
    assert read_labels("a.csv, label", [-1, 10**12]).values == [None, str(10**12)]


def test_notes_in_a_type_may_be_anything() -> None:
    assert truth_value_problem(True, Annotated[bool, {"unit": "none"}]) is None
    assert truth_value_problem(True, Annotated[int, {"unit": "images"}]) is not None
