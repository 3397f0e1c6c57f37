"""Ranking trials early, on curves with a known order."""

import math

import pytest

from orchestrator.evaluation.early_ranking import judge_early

OPTIONS = {"resamples": 200, "confidence": 0.95, "seed": 0}


def curves(*, trials=12, epochs=27, settled=3):
    """Trials in reversed order before epoch `settled`, in their final order from there on."""
    return [
        [(rank if epoch >= settled else trials - rank) / trials for epoch in range(1, epochs + 1)]
        for rank in range(trials)
    ]


def test_the_ranking_is_reliable_from_where_it_stays_the_final_one() -> None:
    judgement = judge_early(curves(), **OPTIONS)
    assert [row.epoch for row in judgement.epochs] == list(range(1, 28))
    assert [row.tau.value for row in judgement.epochs[:3]] == pytest.approx([-1, -1, 1])
    assert judgement.epochs[-1].tau.value == pytest.approx(1)
    assert judgement.first_reliable_epoch == 3


def test_rungs_are_a_factor_of_three_apart_and_end_before_the_last_epoch() -> None:
    assert judge_early(curves(), **OPTIONS).rungs == [3, 9]
    assert judge_early(curves(settled=1, epochs=28), **OPTIONS).rungs == [1, 3, 9, 27]


def test_an_epoch_that_agrees_by_chance_before_a_worse_one_is_not_reliable() -> None:
    table = curves(settled=10)
    for rank, curve in enumerate(table):
        curve[4] = float(rank)
    judgement = judge_early(table, **OPTIONS)
    assert judgement.epochs[4].tau.value == pytest.approx(1)
    assert judgement.first_reliable_epoch == 10


def test_without_a_reliable_epoch_the_advice_is_to_train_to_the_end() -> None:
    judgement = judge_early(curves(settled=27), **OPTIONS)
    assert judgement.first_reliable_epoch is None
    assert judgement.rungs == []
    assert judgement.advice.startswith("Train every trial for all 27 epochs")


def test_the_advice_names_the_rungs_what_they_save_and_that_the_best_trial_is_kept() -> None:
    advice = judge_early(curves(), **OPTIONS).advice
    saved = (8 * (27 - 3) + 2 * (27 - 9)) / (12 * 27)
    assert "after 3 and 9 of 27 epochs" in advice
    assert f"saved {saved:.0%}" in advice
    assert "kept the best trial" in advice
    assert "trials are few" not in advice


def test_the_advice_says_where_the_best_trial_would_have_been_lost() -> None:
    table = curves()
    late = table[-1]
    late[:20] = [0.0] * 20  # the best in the end, the worst until then: tau stays above a low threshold
    judgement = judge_early(table, **OPTIONS, threshold=0.6)
    assert judgement.rungs[0] == 3
    assert "lost the best trial at epoch 3" in judgement.advice


def test_few_trials_are_said() -> None:
    assert "6 trials are few" in judge_early(curves(trials=6), **OPTIONS).advice


def test_a_lower_threshold_is_reached_earlier() -> None:
    table = curves()
    for curve in table[:2]:
        curve[2:8] = [1.0] * 6
    strict, lenient = (judge_early(table, **OPTIONS, threshold=value) for value in (0.9, 0.2))
    assert strict.first_reliable_epoch == 9
    assert lenient.first_reliable_epoch == 3


@pytest.mark.parametrize(
    "table", [[], curves(trials=3), curves(epochs=1), [[0.1, 0.5]] * 6], ids=["none", "few", "one epoch", "all equal"]
)
def test_where_nothing_can_be_compared_there_is_no_judgement(table) -> None:
    assert judge_early(table, **OPTIONS) is None


def test_epochs_at_which_all_trials_are_equal_have_no_tau_and_are_not_reliable() -> None:
    table = curves(settled=1)
    for curve in table:
        curve[1] = 0.1
    judgement = judge_early(table, **OPTIONS)
    assert judgement.epochs[1].tau.value is None
    assert judgement.first_reliable_epoch == 3


def test_a_curve_with_a_gap_is_left_out() -> None:
    table = curves()
    assert judge_early([*table, [math.nan] * 27], **OPTIONS) == judge_early(table, **OPTIONS)


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal lengths, but have \[2, 27\]"):
        judge_early([*curves(), [0.1, 0.2]], **OPTIONS)
