"""Numbers as functions of training progress: their values, their bounds, and how a study file searches them."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from search_spaces.dimensions import Choice, Integer, Real
from search_spaces.ramps import Ramp, largest, value_at, whole_at
from search_spaces.recipes import PluginChoice, Recipe, parse_recipe_space


def ramp(**given: Any) -> Ramp:
    return Ramp.model_validate({"from": 0.4, "to": 0.0, **given})


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({}, (0.4, 0.3, 0.2, 0.1, 0.0)),
        ({"until": 0.5}, (0.4, 0.2, 0.0, 0.0, 0.0)),
        ({"shape": "cosine"}, tuple(0.4 * (1 + math.cos(math.pi * done)) / 2 for done in (0, 0.25, 0.5, 0.75, 1))),
        ({"shape": "step", "until": 0.5}, (0.4, 0.4, 0.0, 0.0, 0.0)),
        ({"step": 0.2}, (0.4, 0.4, 0.2, 0.0, 0.0)),
    ],
    ids=["linear", "until", "cosine", "step", "rounded"],
)
def test_a_ramp_goes_from_its_start_to_its_end(given: dict[str, Any], values: tuple[float, ...]) -> None:
    found = tuple(ramp(**given).at(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0))
    assert found == pytest.approx(values, abs=1e-12)


def test_a_plain_number_is_the_same_all_along() -> None:
    assert [value_at(0.1, progress) for progress in (0.0, 0.9)] == [0.1, 0.1]
    assert whole_at(Ramp(start=16, end=33), 0.5) == 24
    assert (largest(0.3), largest(ramp())) == (0.3, 0.4)


def test_the_values_of_a_rounded_ramp_can_be_listed() -> None:
    growing = Ramp.model_validate({"from": 128, "to": 224, "until": 0.8, "step": 32})
    assert growing.values() == (128.0, 160.0, 192.0, 224.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label_smoothing", {"from": 0.1, "to": 1.5}, "`to` must be below 1, but got 1.5"),
        ("batch_size", {"from": 16.5, "to": 32}, "`from` must be a whole number, but got 16.5"),
        ("drop_path", {"from": 0.1, "to": 0.1}, "`from` and `to` must differ, but both are 0.1"),
        ("dropout", {"from": 0.1, "to": 0.0, "until": 0.0}, "greater than 0"),
        ("dropout", {"from": 0.1}, "Field required"),
        ("dropout", {"from": 0.1, "to": 0.0, "shape": "square"}, "'linear', 'cosine' or 'step'"),
        ("warmup", {"from": 0.1, "to": 0.2}, "valid number"),
    ],
)
def test_a_ramp_that_does_not_fit_its_field_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({field: value})
    assert message in str(caught.value)


def test_a_recipe_with_ramps_survives_its_json() -> None:
    recipe = Recipe.model_validate(
        {"label_smoothing": {"from": 0.1, "to": 0.0}, "image_size": {"from": 16, "to": 32, "step": 16}}
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_part_of_a_ramp_can_be_searched() -> None:
    space = parse_recipe_space(
        {
            "dropout": {
                "from": [0.1, 0.3],
                "to": 0.0,
                "until": {"low": 0.2, "high": 0.8},
                "shape": ["linear", "step"],
            },
            "batch_size": {"from": {"low": 16, "high": 32, "step": 16}, "to": 64},
        }
    )
    kinds = {dimension.name: type(dimension) for dimension in space.dimensions}
    assert kinds == {
        "recipe.dropout.from": Choice,
        "recipe.dropout.until": Real,
        "recipe.dropout.shape": Choice,
        "recipe.batch_size.from": Integer,
    }
    assert space.base.dropout == Ramp(start=0.1, end=0.0, until=0.5)
    assert space.largest_batch_size == 64
    found = space.decode({"recipe.dropout.from": 0.3, "recipe.dropout.until": 0.25, "recipe.dropout.shape": "step"})
    assert found.dropout == Ramp(start=0.3, end=0.0, until=0.25, shape="step")
    assert found.batch_size == space.base.batch_size


def test_a_searched_part_must_stay_within_the_bounds_of_its_field() -> None:
    with pytest.raises(ValidationError, match="must be below 1, but got 2"):
        parse_recipe_space({"dropout": {"from": {"low": 0.5, "high": 2.0}, "to": 0.0}})


# --- lists of methods ---


def test_a_list_holds_alternatives_and_each_may_be_a_list_of_methods() -> None:
    alternatives = [
        "none",
        "paced",
        [{"name": "paced", "start": {"low": 0.2, "high": 0.6}}, "progressive-tokenization"],
    ]
    space = parse_recipe_space({"curriculum": alternatives})
    both = "paced+progressive-tokenization"
    (choice, start) = space.dimensions
    assert choice == Choice(name="recipe.curriculum", options=("none", "paced", both))
    assert start.name == f"recipe.curriculum.{both}.paced.start"
    assert start.when is not None
    assert start.when.holds({"recipe.curriculum": both})
    assert space.decode({"recipe.curriculum": "paced"}).curriculum == (PluginChoice(name="paced"),)
    found = space.decode({"recipe.curriculum": both, start.name: 0.3}).curriculum
    assert found == (PluginChoice(name="paced", settings={"start": 0.3}), PluginChoice(name="progressive-tokenization"))


def test_one_list_of_methods_is_fixed() -> None:
    space = parse_recipe_space({"curriculum": [["paced", "progressive-tokenization"]]})
    assert space.dimensions == ()
    assert [method.name for method in space.base.curriculum] == ["paced", "progressive-tokenization"]


def test_a_single_method_is_written_without_a_list() -> None:
    assert Recipe().model_dump(mode="json")["curriculum"] == "none"
    two = Recipe.model_validate({"curriculum": ["paced", {"name": "progressive-tokenization", "middle": 0.5}]})
    assert two.model_dump(mode="json")["curriculum"] == ["paced", {"name": "progressive-tokenization", "middle": 0.5}]


def test_a_method_is_named_once_in_a_list() -> None:
    with pytest.raises(ValueError, match="the methods of a list must differ, but got paced, paced"):
        parse_recipe_space({"curriculum": [["paced", "paced"]]})
