"""REINFORCE: its arithmetic compared with torch, its learning, and its final choice."""

import time

import numpy as np
import pytest
import torch

from orchestrator.engines.interfaces import Objective, Suggestion
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.records import TrialRecord
from plugins.samplers.policy import Policy, Rewards
from search_spaces.as_vit import AsViTSpace
from search_spaces.dimensions import Choice, Integer, Point
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial
from tests.rounding import assert_rounded

OPTIONS = {"kernel": (4, 5, 6, 7, 8), "split": (2, 4, 8), "heads": (16, 32)}
BOTH = (Objective("expressivity", "maximize"), Objective("condition", "minimize"))
SPACE = (
    Choice(name="split", options=(2, 4, 8)),
    Integer(name="kernel", low=4, high=8),
    Choice(name="one", options=(1,)),
)


def make_policy(seed: int = 3) -> Policy:
    rewards = Rewards((1.0, -1.0), window=4)
    return Policy(OPTIONS, seed=seed, learning_rate=0.08, momentum=0.9, rewards=rewards)


def suggest(num_trials: int, **options) -> OptunaSuggester:
    return OptunaSuggester(
        options.pop("dimensions", SPACE),
        objectives=BOTH,
        sampler=PluginChoice(name="reinforce"),
        seed=options.pop("seed", 1),
        final_number=num_trials - 1,
        **options,
    )


def quality(point: Point) -> float:
    return 2.0 * (point["split"] == 4) + (point["kernel"] == 7)


def ended(number: int, suggestion: Suggestion, state: str = "complete") -> TrialRecord:
    value = quality(suggestion.point)
    metrics = {"expressivity": value, "condition": -value} if state == "complete" else {}
    return make_trial(
        number, point=suggestion.point, sampler_state=suggestion.sampler_state, metrics=metrics, state=state
    )


def test_steps_are_those_of_adam_on_the_log_probability_times_the_advantage() -> None:
    policy, rng = make_policy(), np.random.default_rng(0)
    counts = [len(options) for options in OPTIONS.values()]
    start = 1e-3 * np.random.default_rng(3).standard_normal((3, 5))
    logits = [torch.tensor(row[:count], requires_grad=True) for row, count in zip(start, counts, strict=True)]
    adam = torch.optim.Adam(logits, lr=0.08)
    history: list[tuple[float, float]] = []
    num_steps, numerator, denominator = 30, 0.0, 0.0
    for _ in range(num_steps):
        drawn = policy.draw(rng)
        scores = tuple(rng.standard_normal(2))
        policy.learn(drawn, scores)

        history.append(scores)
        reward = 0.0
        if len(history) > 1:
            for metric, sign in ((0, 1.0), (1, -1.0)):
                recent = [row[metric] for row in history[-4:]]
                reward += sign * (recent[-1] - recent[-2]) / (max(recent) - min(recent) + 1e-6)
        numerator, denominator = 0.9 * numerator + 0.1 * reward, 0.9 * denominator + 0.1
        log_probability = sum(row.log_softmax(0)[place] for row, place in zip(logits, drawn, strict=True))
        adam.zero_grad()
        (-log_probability * (reward - numerator / denominator)).backward()
        adam.step()
    for row, expected, count in zip(policy.probabilities(), logits, counts, strict=True):
        assert_rounded(torch.from_numpy(row[:count]), expected.softmax(0), num_steps * 3 * count)
        assert row[count:].tolist() == [0.0] * (5 - count)


def test_draws_follow_the_probabilities_and_never_leave_the_options() -> None:
    policy, rng = make_policy(), np.random.default_rng(0)
    for _ in range(40):
        policy.learn((2, 1, 0), (rng.standard_normal(), 0.0))
    expected = policy.probabilities()
    draws = np.array([policy.draw(rng) for _ in range(4000)])
    for dimension, count in enumerate((5, 3, 2)):
        shares = np.bincount(draws[:, dimension], minlength=5) / 4000
        assert shares == pytest.approx(expected[dimension], abs=0.04)  # 5 standard deviations
        assert draws[:, dimension].max() < count


def test_a_step_without_scores_counts_as_the_worst_so_far() -> None:
    failed, told = Rewards((1.0, -1.0), window=20), Rewards((1.0, -1.0), window=20)
    assert failed.take(None) is None  # nothing to compare with yet
    for scores in ((3.0, 1.0), (1.0, 5.0), (2.0, 2.0)):
        assert failed.take(scores) == told.take(scores)
    # 1e-6 is added to the two ranges, 2 and 4.
    assert failed.take(None) == told.take((1.0, 5.0)) == pytest.approx(-0.5 - 0.75, abs=1e-6)


def test_it_learns_the_best_point_and_its_last_trial_is_the_argmax() -> None:
    suggester = suggest(15, dimensions=(*SPACE, Choice(name="noise", options=tuple(range(40)))), seed=3)
    for number in range(14):
        suggester.tell(ended(number, suggester.ask(number)))
    choice = suggester.final_choice()
    last = suggester.ask(14)
    assert last.point == choice
    assert last.sampler_state == {}
    suggester.tell(ended(14, last))
    assert suggester.final_choice() == choice


def test_the_last_trial_waits_for_all_others() -> None:
    suggester = suggest(3)
    first, second = suggester.ask(0), suggester.ask(1)
    suggester.tell(ended(1, second))
    assert suggester.ask(2) is None
    suggester.tell(ended(0, first))
    assert suggester.ask(2) is not None


def test_a_final_choice_that_is_known_leaves_the_last_trial_to_the_sampler() -> None:
    suggester = suggest(12)
    points = []
    for number in range(12):
        points.append(suggester.ask(number))
        suggester.tell(ended(number, points[-1]))
    assert suggester.final_choice() == {"split": 4, "kernel": 7, "one": 1}
    assert len({tuple(suggestion.point.items()) for suggestion in points}) == 12


def test_known_points_are_learned_from_again_and_never_tried_again() -> None:
    dimensions = AsViTSpace().dimensions()[:5]  # 900 points
    suggester = suggest(200, dimensions=dimensions, seed=2)
    seen, repeated = set(), 0
    for number in range(150):
        suggestion = suggester.ask(number)
        key = tuple(suggestion.point.items())
        assert key not in seen
        seen.add(key)
        value = -sum(float(value) for value in suggestion.point.values())
        metrics = {"expressivity": value, "condition": 0.0}
        state = suggestion.sampler_state
        repeated += len(state.get("reinforce:repeats") or ())
        suggester.tell(make_trial(number, point=suggestion.point, sampler_state=state, metrics=metrics))
    assert repeated > 20
    lowest = {
        dimension.name: dimension.options[0] if isinstance(dimension, Choice) else dimension.low
        for dimension in dimensions
    }
    assert suggester.final_choice() == lowest


def test_a_failed_trial_teaches_the_same_in_a_rebuilt_study() -> None:
    states = ["failed" if number % 3 == 1 else "complete" for number in range(14)]
    live, trials = suggest(50), []
    for number, state in enumerate(states):
        trials.append(ended(number, live.ask(number), state))
        live.tell(trials[-1])
    rebuilt = suggest(50)
    for trial in trials:
        rebuilt.tell(trial)
    assert rebuilt.ask(14) == live.ask(14)
    assert rebuilt.final_choice() == live.final_choice()


def test_later_steps_cost_no_more_than_the_first() -> None:
    options = {
        d.name: d.options if isinstance(d, Choice) else range(d.low, d.high + 1) for d in AsViTSpace().dimensions()
    }
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((10, 50, 2)).tolist()
    times: list[list[float]] = []
    for _ in range(5):
        policy = Policy(options, seed=1, learning_rate=0.08, momentum=0.9, rewards=Rewards((1.0, -1.0), window=20))
        drawn = policy.draw(rng)
        times.append([])
        for part in scores:
            started = time.process_time()
            for row in part:
                policy.learn(drawn, row)
            times[-1].append(time.process_time() - started)
    fastest = [min(one) for one in zip(*times, strict=True)]
    assert fastest[-1] < 3 * fastest[0]


def test_a_dimension_with_too_many_values_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"reinforce needs .*, but seed has 1,000,000 values \(at most 1,000 are supported\)"
    ):
        suggest(5, dimensions=(Integer(name="seed", low=1, high=1_000_000),))
