"""A newer search of a recipe contains the older one, or the reason says why not."""

from typing import Any

import pytest

from search_spaces.recipes import parse_recipe_space
from search_spaces.widening import Widening, widen


def compare(old: dict[str, Any], new: dict[str, Any]) -> Widening:
    return widen(parse_recipe_space(old), parse_recipe_space(new))


WIDER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"drop_path": {"low": 0.1, "high": 0.2}}, {"drop_path": {"low": 0.0, "high": 0.2}}),
    ({"batch_size": {"low": 32, "high": 64, "step": 32}}, {"batch_size": {"low": 16, "high": 96, "step": 16}}),
    ({"batch_size": [32, 64]}, {"batch_size": [128, 64, 32]}),
    ({"augmentation": ["shift", "none"]}, {"augmentation": ["shift", "none", {"name": "affine"}]}),
    ({"curriculum": ["none"]}, {"curriculum": ["none", {"name": "paced", "start": {"low": 0.1, "high": 0.5}}]}),
    (
        {"mixing": ["none", {"name": "mixup", "alpha": 0.2}]},
        {"mixing": ["none", {"name": "mixup", "alpha": [0.2, 0.4]}]},
    ),
]


@pytest.mark.parametrize(("old", "new"), WIDER)
def test_a_wider_search_contains_the_older_one_but_not_the_other_way_round(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    assert compare(old, new).problems == ()
    assert compare(old, new).is_wider
    (problem,) = {field for field, _ in compare(new, old).problems}
    assert problem in new


def test_a_fixed_value_that_becomes_searched_is_filled_in() -> None:
    found = compare(
        {"learning_rate": 0.003, "curriculum": {"name": "paced", "start": 0.25}},
        {
            "learning_rate": {"low": 0.001, "high": 0.01, "log": True},
            "curriculum": ["none", {"name": "paced", "start": [0.25, 0.5]}],
        },
    )
    assert found.problems == ()
    assert found.filled == {
        "recipe.learning_rate": 0.003,
        "recipe.curriculum": "paced",
        "recipe.curriculum.paced.start": 0.25,
    }


def test_a_default_that_becomes_searched_is_filled_in() -> None:
    assert compare({}, {"batch_size": [32, 64]}).filled == {"recipe.batch_size": 64}
    assert compare({}, {"label_smoothing": {"low": 0, "high": 0.2}}).filled == {"recipe.label_smoothing": 0.0}


def test_writing_a_default_down_changes_nothing() -> None:
    assert compare({}, {"batch_size": 64, "schedule": "cosine"}) == Widening((), {}, is_wider=False)


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ({"learning_rate": 0.003}, {"learning_rate": {"low": 0.01, "high": 0.1}}, "learning_rate", "0.003"),
        ({"learning_rate": 0.003}, {"learning_rate": 0.004}, "learning_rate", "fixed at 0.003"),
        ({"batch_size": [32, 64]}, {"batch_size": [64, 128]}, "batch_size", "no longer has the option 32"),
        ({"batch_size": [32, 64]}, {"batch_size": 64}, "batch_size", "no longer searched"),
        (
            {"drop_path": {"low": 0.1, "high": 0.2}},
            {"drop_path": {"low": 0.1, "high": 0.2, "log": True}},
            "drop_path",
            "scale",
        ),
        (
            {"batch_size": {"low": 32, "high": 64, "step": 16}},
            {"batch_size": {"low": 32, "high": 96, "step": 32}},
            "batch_size",
            "32, 48",
        ),
        ({"curriculum": ["none", "paced"]}, {"curriculum": ["none", {"name": "paced", "start": [0.1, 0.2]}]},
         "curriculum", "earlier trials do not have"),
        ({"drop_path": 0.1}, {"drop_path": {"from": 0.1, "to": 0.0}}, "drop_path", "fixed at 0.1"),
    ],
)  # fmt: skip
def test_a_search_that_loses_points_is_named_with_the_reason(
    old: dict[str, Any], new: dict[str, Any], field: str, words: str
) -> None:
    ((name, reason),) = compare(old, new).problems
    assert name == field
    assert words in reason
