"""MLflow's pages: views, addresses and short names."""

import json

import pytest

from orchestrator.tracking.events import ShareView
from orchestrator.tracking.names import count_text, same_text, short, trial_name
from orchestrator.tracking.pages import compare_path, saved_view, state_of_saved_view

VIEW = ShareView(
    experiment="digits",
    name="trials",
    columns=("metrics.rank", "params.recipe.learning_rate"),
    order_by="metrics.rank",
    descending=False,
    filter="tags.`vitsearch.level` = 'trial'",
)


def test_a_view_keeps_its_columns_in_order_and_wide_enough_for_their_heads() -> None:
    state = state_of_saved_view(saved_view(VIEW))
    assert state["selectedColumns"] == ["metrics.`rank`", "params.`recipe.learning_rate`"]
    assert state["columnOrder"][-2:] == state["selectedColumns"]
    widths = state["columnWidths"]
    assert widths["params.`recipe.learning_rate`"] > widths["metrics.`rank`"]
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`rank`", True)
    assert state["searchFilter"] == VIEW.filter


def test_a_view_with_a_title_is_listed_with_the_same_state() -> None:
    listed = saved_view(VIEW.model_copy(update={"title": "Trials, best first", "created_ms": 7}))
    assert json.loads(listed)["name"] == "Trials, best first"
    assert json.loads(listed)["createdAt"] == 7
    assert state_of_saved_view(listed) == state_of_saved_view(saved_view(VIEW))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "{"}', '{"state": "[1]"}'])
def test_a_tag_of_another_form_is_an_empty_view(text: str) -> None:
    assert state_of_saved_view(text) == {}


def test_the_address_that_compares_runs_names_them_all() -> None:
    path = "#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%221%22%5D&differences=parameters"
    assert compare_path("1", ["a", "b"]) == path


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.99166666, 0.9917),
        (0.0, 0.0),
        (331882.0, 331882.0),
        (12345.678, 12346.0),
        (-0.0001234567, -0.0001235),
        (999.96, 1000.0),
        (float("inf"), float("inf")),
    ],
)
def test_numbers_have_four_significant_digits_and_whole_numbers_all(value: float, shown: float) -> None:
    assert short(value) == shown


def test_texts_that_differ_in_left_out_digits_are_the_same() -> None:
    assert same_text("0.00123457", "0.001235")
    assert same_text("adamw", "adamw")
    assert not same_text("0.00123457", "0.001236")
    assert not same_text("adamw", "muon")


def test_names_of_trials_are_short() -> None:
    assert trial_name(5) == "05"
    assert trial_name(5, result="99.2 %", parameters=331882) == "05 · 99.2 % · 332k"
    assert trial_name(105, result="failed", is_champion=True) == "★ 105 · failed"
    assert [count_text(count) for count in (950, 9_600, 331_882, 3_460_000, 86_000_000, 1.2e9)] == [
        "950",
        "10k",
        "332k",
        "3.46M",
        "86M",
        "1.2G",
    ]
