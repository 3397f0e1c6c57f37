"""Combined scores: ranks, a small regression, and no leak from held-out topologies."""

import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.evaluation import combining
from orchestrator.evaluation.combining import LearnedCombination, nested_predictions, rank_aggregates, transfer

NAN = math.nan


def noise(seed, *, proxies, count):
    rng = np.random.default_rng(seed)
    return {f"p{index}": list(rng.normal(size=count)) for index in range(proxies)}, list(rng.normal(size=count))


def signal(seed, *, count=80):
    """Two proxies that each know one half of the accuracy, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    depth, width = rng.normal(size=count), rng.normal(size=count)
    scores = {"depth": list(np.exp(depth)), "width": list(width**3), "nothing": list(rng.normal(size=count))}
    return scores, list(depth + width + 0.2 * rng.normal(size=count))


def tau(left, right):
    return stats.kendalltau(left, right).statistic


def test_rank_aggregates_are_the_means_of_relative_ranks_and_of_their_logarithms() -> None:
    found = rank_aggregates({"a": [10.0, 30.0, 20.0, 40.0], "b": [1.0, 2.0, 2.0, 0.0]})
    ranks = np.array([[1, 3, 2, 4], [2, 3.5, 3.5, 1]]) / 4
    assert found["mean-rank"] == pytest.approx(ranks.mean(0))
    assert found["log-rank"] == pytest.approx(np.log(ranks).mean(0))


def test_a_proxy_that_failed_on_a_topology_is_left_out_of_its_aggregate() -> None:
    found = rank_aggregates({"a": [1.0, 2.0, NAN, NAN], "b": [3.0, 2.0, 1.0, math.inf]})
    assert found["mean-rank"] == pytest.approx([(1 / 2 + 1) / 2, (1 + 2 / 3) / 2, 1 / 3, NAN], nan_ok=True)


def test_without_any_signal_the_nested_estimate_is_near_zero_and_the_fitted_one_is_not() -> None:
    nested, fitted = [], []
    for seed in range(6):
        scores, accuracy = noise(seed, proxies=12, count=60)
        nested.append(tau(nested_predictions(scores, accuracy, seed=seed, repeats=3), accuracy))
        fitted.append(tau(LearnedCombination.fit(scores, accuracy, seed=seed).predict(scores), accuracy))
    assert -0.2 < np.mean(nested) < 0.08  # cross-validation without a signal is a little pessimistic, never optimistic
    assert np.mean(fitted) > 0.2


def test_with_a_signal_the_nested_estimate_beats_every_single_score() -> None:
    scores, accuracy = signal(0)
    learned = tau(nested_predictions(scores, accuracy, seed=0), accuracy)
    assert learned > 0.65
    assert learned > max(tau(column, accuracy) for column in scores.values()) + 0.1


def test_no_model_sees_the_accuracy_of_a_topology_that_it_predicts(monkeypatch) -> None:
    """One pass over the folds: changing the accuracy of a held-out part leaves the predictions of that part alone."""
    scores, accuracy = signal(1, count=30)
    folds = combining._folds

    def fixed(num_points, num_folds, rng):
        yield from folds(num_points, num_folds, np.random.default_rng(0))

    monkeypatch.setattr(combining, "_folds", fixed)
    before = nested_predictions(scores, accuracy, seed=0, repeats=1)
    part = next(fixed(30, 5, None))
    changed = [-1000.0 * value if held else value for value, held in zip(accuracy, part, strict=True)]
    after = nested_predictions(scores, changed, seed=0, repeats=1)
    assert [before[index] for index in np.flatnonzero(part)] == [after[index] for index in np.flatnonzero(part)]
    assert before != after


def test_no_model_sees_the_scores_of_a_topology_that_it_predicts_but_its_own(monkeypatch) -> None:
    scores, accuracy = signal(1, count=30)
    folds = combining._folds
    monkeypatch.setattr(combining, "_folds", lambda points, parts, _: folds(points, parts, np.random.default_rng(0)))
    part = np.flatnonzero(next(folds(30, 5, np.random.default_rng(0))))
    before = nested_predictions(scores, accuracy, seed=0, repeats=1)
    scores["depth"][part[0]] = 1e6
    after = nested_predictions(scores, accuracy, seed=0, repeats=1)
    assert [before[index] for index in part[1:]] == [after[index] for index in part[1:]]
    assert before[part[0]] != after[part[0]]


def test_every_model_predicts_ranks_with_the_same_mean_whatever_it_was_fitted_on() -> None:
    scores, accuracy = signal(0)
    for shift in (0.0, 500.0):
        model = LearnedCombination.fit(scores, [value + shift for value in accuracy], seed=0)
        assert np.mean(model.predict(scores)) == pytest.approx(0.5)


def test_only_the_order_of_scores_and_accuracies_matters() -> None:
    scores, accuracy = signal(2, count=30)
    bent = {name: stats.rankdata(values) for name, values in scores.items()}
    wanted = nested_predictions(bent, stats.rankdata(accuracy), seed=0, repeats=1)
    # Between training scores a held-out one is interpolated, so its place moves a little with the scale.
    assert nested_predictions(scores, np.exp(accuracy), seed=0, repeats=1) == pytest.approx(wanted, abs=0.05)


def test_weights_tell_what_the_combination_uses() -> None:
    scores, accuracy = signal(0)
    model = LearnedCombination.fit(scores, accuracy, seed=0)
    assert model.weights["depth"] > 0.3
    assert model.weights["width"] > 0.3
    assert abs(model.weights["nothing"]) < 0.15
    assert LearnedCombination.model_validate_json(model.model_dump_json()).predict(scores) == model.predict(scores)


def test_without_a_signal_the_inner_folds_choose_a_large_penalty() -> None:
    scores, accuracy = noise(0, proxies=12, count=60)
    assert LearnedCombination.fit(scores, accuracy, seed=0).penalty > 10
    assert LearnedCombination.fit(*signal(0), seed=0).penalty < 10


def test_failed_scores_count_as_the_middle_and_topologies_without_any_are_not_predicted() -> None:
    scores, accuracy = signal(0)
    scores["depth"][0] = NAN
    for name in scores:
        scores[name][1] = NAN
    scores["broken"], scores["flat"] = [NAN] * 80, [1.0, NAN, *[1.0] * 78]
    model = LearnedCombination.fit(scores, accuracy, seed=0)
    assert model.weights["broken"] == model.weights["flat"] == 0
    for predicted in (model.predict(scores), nested_predictions(scores, accuracy, seed=0)):
        assert math.isnan(predicted[1])
        assert np.isfinite(predicted[:1] + predicted[2:]).all()


def test_topologies_without_an_accuracy_are_neither_fitted_nor_predicted() -> None:
    scores, accuracy = signal(0)
    accuracy[3] = NAN
    predicted = nested_predictions(scores, accuracy, seed=0, repeats=1)
    assert [index for index, value in enumerate(predicted) if math.isnan(value)] == [3]


def test_too_few_topologies_give_no_predictions_and_no_model() -> None:
    scores, accuracy = noise(0, proxies=2, count=9)
    assert all(math.isnan(value) for value in nested_predictions(scores, accuracy, seed=0))
    with pytest.raises(ValueError, match="at least 10 topologies with an accuracy, but got 9"):
        LearnedCombination.fit(scores, accuracy, seed=0)


def test_a_combination_is_carried_over_to_a_space_whose_scores_have_another_scale() -> None:
    scores, accuracy = signal(0)
    other, other_accuracy = signal(1, count=50)
    moved = {name: [1e4 + 1e3 * value for value in values] for name, values in other.items()}
    predicted = transfer(scores, accuracy, moved)
    assert tau(predicted, other_accuracy) > 0.65
    assert predicted == pytest.approx(transfer(scores, accuracy, other))


def test_a_transfer_uses_the_proxies_of_both_tables_and_needs_one() -> None:
    scores, accuracy = signal(0)
    other = {"depth": scores["depth"], "new": scores["width"]}
    assert tau(transfer(scores, accuracy, other), scores["depth"]) == pytest.approx(1)
    with pytest.raises(ValueError, match="scores of the same proxies"):
        transfer(scores, accuracy, {"new": scores["width"]})


def test_noise_carried_to_another_target_of_the_same_topologies_has_no_tau_above_zero() -> None:
    """The two targets correlate by 0.8; fitted to the same topologies, the same noise reaches a tau of 0.2."""
    names = [f"space:{index}" for index in range(60)]
    rng, honest, leaking = np.random.default_rng(0), [], []
    for study in range(5):
        scores, accuracy = noise(study, proxies=24, count=60)
        other = [
            0.8 * value + 0.6 * rng.normal() for value in (np.array(accuracy) - np.mean(accuracy)) / np.std(accuracy)
        ]
        known = {"topologies_fit": names, "topologies_other": names}
        honest.append(tau(transfer(scores, accuracy, scores, **known, repeats=1), other))
        leaking.append(tau(transfer(scores, accuracy, scores), other))
    assert np.mean(honest) < 0.05
    assert np.mean(leaking) > 0.15


def test_only_shared_topologies_are_predicted_out_of_fold() -> None:
    scores, accuracy = signal(0)
    other, _ = signal(1, count=20)
    names = [f"space:{index}" for index in range(80)]
    plain = transfer(scores, accuracy, other)
    mixed = transfer(scores, accuracy, other, topologies_fit=names, topologies_other=[*names[:5], *["x"] * 15])
    assert mixed[5:] == plain[5:]
    assert all(one != two for one, two in zip(mixed[:5], plain[:5], strict=True))
    assert tau(mixed, plain) > 0.9


def test_the_same_seed_gives_the_same_predictions() -> None:
    scores, accuracy = signal(0, count=30)
    first, second, other = (nested_predictions(scores, accuracy, seed=seed, repeats=1) for seed in (0, 0, 1))
    assert first == second != other
