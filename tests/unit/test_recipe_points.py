"""Recipes as points of a search, and values that lie outside of it."""

from typing import Any

import pytest

from search_spaces.dimensions import Choice
from search_spaces.recipe_points import encode_recipe
from search_spaces.recipes import Recipe, base_point, parse_recipe_space

BLOCK: dict[str, Any] = {
    "learning_rate": {"low": 5e-4, "high": 8e-3, "log": True},
    "batch_size": {"low": 16, "high": 64, "step": 16},
    "weight_decay": [0.0, 0.05],
    "label_smoothing": {"from": {"low": 0.05, "high": 0.4}, "to": 0.0, "until": {"low": 0.3, "high": 0.8}},
    "augmentation": ["none", "shift"],
    "curriculum": [
        "none",
        {"name": "paced", "start": {"low": 0.1, "high": 0.5}},
        ["cyclical", "progressive-tokenization"],
    ],
    "schedule": ["cosine", {"name": "cosine", "floor": 0.1}][:1],
}
SPACE = parse_recipe_space(BLOCK)

POINTS: list[dict[str, Any]] = [
    {},
    {"recipe.learning_rate": 1e-3, "recipe.batch_size": 48, "recipe.weight_decay": 0.0},
    {"recipe.label_smoothing.from": 0.1, "recipe.label_smoothing.until": 0.5, "recipe.augmentation": "shift"},
    {"recipe.curriculum": "paced", "recipe.curriculum.paced.start": 0.3},
    {"recipe.curriculum": "cyclical+progressive-tokenization"},
]


def point_with(values: dict[str, Any]) -> dict[str, Any]:
    return base_point(SPACE.dimensions, **values)


@pytest.mark.parametrize("values", POINTS)
def test_encoding_is_the_inverse_of_decoding(values: dict[str, Any]) -> None:
    point = point_with(values)
    found = encode_recipe(SPACE.decode(point), SPACE.dimensions)
    assert found == (point, ())


@pytest.mark.parametrize(
    ("fields", "outside"),
    [
        ({"learning_rate": 0.1}, ("recipe.learning_rate",)),
        ({"batch_size": 20}, ("recipe.batch_size",)),
        ({"weight_decay": 0.02}, ("recipe.weight_decay",)),
        ({"learning_rate": {"from": 1e-3, "to": 1e-4}}, ("recipe.learning_rate",)),
        ({"label_smoothing": 0.1}, ("recipe.label_smoothing.from", "recipe.label_smoothing.until")),
        ({"augmentation": "randaugment"}, ("recipe.augmentation",)),
        ({"curriculum": {"name": "paced", "start": 0.9}}, ("recipe.curriculum.paced.start",)),
        ({"curriculum": "paced"}, ("recipe.curriculum.paced.start",)),
    ],
)
def test_a_value_outside_the_search_is_replaced_by_the_base_value(
    fields: dict[str, Any], outside: tuple[str, ...]
) -> None:
    inside = SPACE.decode(point_with({"recipe.augmentation": "shift"})).model_dump()
    found = encode_recipe(Recipe.model_validate({**inside, **fields}), SPACE.dimensions)
    assert found.outside == outside
    base = point_with({key: found.point[key] for key in ("recipe.curriculum",)})
    assert {name: found.point[name] for name in outside} == {name: base[name] for name in outside}
    if "augmentation" not in fields:
        assert found.point["recipe.augmentation"] == "shift"


def test_dimensions_that_are_not_of_a_recipe_are_given() -> None:
    dimensions = (Choice(name="topology", options=("a", "b")), *SPACE.dimensions)
    assert encode_recipe(SPACE.base, dimensions, fixed={"topology": "b"}).point["topology"] == "b"
    found = encode_recipe(SPACE.base, dimensions, fixed={"topology": "c"})
    assert (found.point["topology"], found.outside) == ("a", ("topology",))
