"""Choices that stages make from their trials: a trial, a stopping criterion, a growth step."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.stages.grow import GrowStage, GrowthSuggester, choose_step, growth_candidates
from orchestrator.stages.searching import is_better
from orchestrator.stages.stopping import OBJECTIVES, StoppingStage, best_of_each, choose_criterion
from orchestrator.stages.trade_off import pareto_front
from orchestrator.stages.train import best_score_before, scores_before
from orchestrator.stages.train_result import sort_trials
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.registry import parse_topology
from search_spaces.as_vit import AsViTTopology
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from tests.fakes import make_trial
from trainers.config import DataConfig, EpochReport

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
SCALING = {"ntk-condition": "minimize", "length-distortion": "maximize"}


def trained(number: int, accuracy: float, loss: float) -> TrialRecord:
    return make_trial(number, metrics={"val_accuracy": accuracy, "val_loss": loss})


def replayed(number: int, saved: float, lost: float) -> TrialRecord:
    return make_trial(number, metrics={"epochs_saved": saved, "accuracy_lost": lost})


def scored(number: int, condition: float, length: float) -> TrialRecord:
    return make_trial(number, metrics={"ntk-condition": condition, "length-distortion": length})


# --- the best trial ---


def test_accuracy_decides_then_the_lower_loss_then_the_earlier_trial() -> None:
    trials = [trained(0, 0.8, 0.5), trained(1, 0.9, 0.7), trained(2, 0.9, 0.6), trained(3, 0.9, 0.6)]
    assert [trial.number for trial in sort_trials(trials, (Objective.of(ACCURACY),))] == [2, 3, 1, 0]


def test_the_metric_of_the_study_decides_instead_of_the_accuracy() -> None:
    trials = [trained(0, 0.9, 0.7), trained(1, 0.8, 0.5)]
    loss = DecidingMetric.of(PluginChoice(name="loss"))
    assert [trial.number for trial in sort_trials(trials, (Objective.of(loss),))] == [1, 0]


def test_a_minimised_objective_is_better_when_lower() -> None:
    low, high = make_trial(0, metrics={"cost": 1.0}), make_trial(1, metrics={"cost": 2.0})
    assert is_better(low, high, (Objective("cost", "minimize"),))
    assert not is_better(high, low, (Objective("cost", "minimize"),))
    assert not is_better(low, low, (Objective("cost", "minimize"),))


# --- stopping ---


def test_the_criterion_that_saves_most_within_the_limit_is_chosen() -> None:
    trials = [replayed(0, 0.9, 0.2), replayed(1, 0.4, 0.004), replayed(2, 0.5, 0.005), replayed(3, 0.5, 0.001)]
    assert choose_criterion(trials, max_accuracy_lost=0.005).number == 3
    assert choose_criterion(trials, max_accuracy_lost=0.5).number == 0


def test_where_none_is_within_the_limit_the_least_loss_is_chosen() -> None:
    trials = [replayed(0, 0.9, 0.2), replayed(1, 0.4, 0.1), replayed(2, 0.6, 0.1)]
    assert choose_criterion(trials, max_accuracy_lost=0.01).number == 2


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [replayed(0, 0.9, 0.2), replayed(1, 0.5, 0.0), replayed(2, 0.4, 0.1), replayed(3, 0.7, 0.1)]
    assert [trial.number for trial in pareto_front(trials, OBJECTIVES)] == [1, 3, 0]
    for trial in trials:
        beaten = any(
            other.metrics["epochs_saved"] >= trial.metrics["epochs_saved"]
            and other.metrics["accuracy_lost"] <= trial.metrics["accuracy_lost"]
            and other.metrics != trial.metrics
            for other in trials
        )
        assert beaten == (trial not in pareto_front(trials, OBJECTIVES))


def test_each_criterion_has_a_best_setting() -> None:
    stage = StoppingStage.model_validate(
        {"stage": "stopping", "num_trials": 4, "criteria": [{"name": "patience", "epochs": [1, 2]}, "label-wave"]}
    )
    trials = [
        replayed(number, saved, lost).model_copy(update={"point": point})
        for number, (saved, lost, point) in enumerate(
            [
                (0.2, 0.0, {"stopping.criterion": "patience", "stopping.criterion.patience.epochs": 2}),
                (0.4, 0.0, {"stopping.criterion": "patience", "stopping.criterion.patience.epochs": 1}),
                (0.6, 0.1, {"stopping.criterion": "label-wave"}),
            ]
        )
    ]
    assert [trial.number for trial in best_of_each(trials, stage)] == [2, 1]


def test_a_training_is_compared_with_earlier_ones_that_were_not_stopped() -> None:
    metrics = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.7, 0.9, 0.6, 0.8)]
    states = ("complete", "complete", "stopped", "running", "complete")
    rows = [
        make_trial(number, metrics=one).model_copy(update={"state": state})
        for number, (one, state) in enumerate(zip(metrics, states, strict=True))
    ]
    store = SimpleNamespace(trials=lambda _: rows)
    context: Any = SimpleNamespace(metric=ACCURACY, store=store, stage=SimpleNamespace(id=1))
    assert best_score_before(context, rows[3]) == 0.7
    assert best_score_before(context, rows[0]) is None


def test_a_training_is_compared_with_the_curves_of_those_that_ended_before() -> None:
    losses = {0: (0.9, 0.4, 0.5), 1: (0.8, math.inf, 0.7), 2: (0.7,), 3: (0.6,), 4: (0.5,)}
    states = ("complete", "stopped", "failed", "running", "complete")
    rows = [
        make_trial(number, metrics={}).model_copy(update={"id": number, "state": state})
        for number, state in enumerate(states)
    ]

    def reports(trial_id: int) -> list[EpochReport]:
        return [
            EpochReport(
                epoch=epoch,
                train_loss=1.0,
                val_loss=loss,
                val_accuracy=0.5,
                learning_rate=0.1,
                num_images=9,
                wall_time_s=1.0,
            )
            for epoch, loss in enumerate(losses[trial_id], start=1)
        ]

    store = SimpleNamespace(trials=lambda _: rows, reports=reports)
    metric = DecidingMetric.of(PluginChoice(name="loss"))
    context: Any = SimpleNamespace(metric=metric, store=store, stage=SimpleNamespace(id=1))
    assert scores_before(context, rows[3]) == ((-0.9, -0.4, -0.5), (-0.8,))
    assert scores_before(context, rows[0]) == ()


# --- growth ---


def start(text: str = "6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,8") -> AsViTTopology:
    topology = parse_topology(f"as-vit:{text}")
    assert isinstance(topology, AsViTTopology)
    return topology


def stage(**fields) -> GrowStage:
    return GrowStage.model_validate({"stage": "grow", "target_params": 400_000, "reduction": 1, **fields})


def test_a_step_adds_one_block_and_one_of_the_different_widths() -> None:
    found = growth_candidates(start(), stage(width_ratios=[0.1, 0.15, 0.25, 0.5]))  # 8.8 and 9.2 both give 9
    assert [topology.width for topology in found[:3]] == [9, 10, 12]
    assert len(found) == 4 * 3
    assert all(sum(topology.depths) == 5 for topology in found)
    assert len({topology.depths for topology in found}) == 4


def test_growth_in_the_reduced_width_is_a_multiple_in_the_real_one() -> None:
    wide = start().with_size(width=64)
    found = growth_candidates(wide, stage(reduction=4, width_ratios=[0.1, 0.2]))
    assert {topology.width for topology in found} == {4 * round(16 * 1.1), 4 * round(16 * 1.2)}
    assert all(sum(topology.depths) == sum(wide.depths) + 1 for topology in found)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("width", "widths"),
    [(64, {64, 128}), (60, {64}), (128, {128, 192}), (640, {640, 704, 768}), (1000, {1024}), (90, {128})],
)
def test_growth_keeps_shape_rules_and_can_always_go_on(width: int, widths: set[int]) -> None:
    spec = stage(width_ratios=[0.05, 0.10, 0.15, 0.20], multiples={"width": 64, "head_width": 8})
    found = growth_candidates(start().with_size(width=width), spec)
    assert {one.width for one in found if isinstance(one, AsViTTopology)} == widths
    assert all(spec.multiples.problem(one) is None for one in found)


def test_growth_of_a_wide_network_ends_at_the_largest_width() -> None:
    found = growth_candidates(start().with_size(width=1024), stage(width_ratios=[0.05]))
    assert found == []


def test_rules_that_no_width_keeps_are_refused_before_growth() -> None:
    spec = stage(topology=start().id, reduction=3, multiples={"width": 1024})
    (problem,) = spec.data_problems([], DataConfig(source="digits", image_size=32), ("stages", 0))
    assert problem.path == ("stages", 0, "multiples")
    assert "must hold at some width that is a multiple of 3" in problem.message


def test_the_lowest_sum_of_ranks_is_taken() -> None:
    trials = [scored(0, 10.0, 5.0), scored(1, 20.0, 9.0), scored(2, 15.0, 8.0), scored(3, 12.0, 9.0)]
    assert choose_step(trials, SCALING).number == 3


def test_a_tie_goes_to_the_proxy_that_differs_most_in_its_own_direction() -> None:
    # Sums are equal; the lengths differ by half, the conditions by a tenth.
    assert choose_step([scored(0, 10.0, 5.0), scored(1, 11.0, 10.0)], SCALING).number == 1
    # Now the conditions differ most, and a lower one is better.
    assert choose_step([scored(0, 11.0, 10.0), scored(1, 1.0, 9.0)], SCALING).number == 1


def test_growth_rebuilt_from_any_of_its_trials_goes_on_the_same(tmp_path: Path) -> None:
    def grow(told: list[TrialRecord]) -> tuple[list[TrialRecord], GrowthSuggester]:
        suggester = GrowthSuggester(start(), stage(width_ratios=[0.25, 0.5]), TASK)
        trials = list(told)
        for trial in told:
            suggester.tell(trial)
        while (suggestion := suggester.ask(len(trials))) is not None:
            number = len(trials)
            state = "failed" if number % 5 == 4 else "complete"
            scores = {"ntk-condition": float(number * 7 % 5), "length-distortion": float(number * 3 % 4)}
            trials.append(make_trial(number, state=state, point=suggestion.point, metrics=scores))
            suggester.tell(trials[-1])
        return trials, suggester

    whole, suggester = grow([])
    assert suggester.has_arrived
    assert 400_000 <= suggester.family[-1].parameters <= 1.375 * 400_000
    assert len(suggester.family) > 1
    for stop in range(len(whole)):
        again, rebuilt = grow(whole[:stop])
        assert [trial.point for trial in again] == [trial.point for trial in whole]
        assert rebuilt.family == suggester.family


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"max_steps": 1, "target_params": 2_000_000}, "max_steps"),
        ({"width_ratios": [0.9], "target_params": 110_000}, "1.375 times"),
    ],
)
def test_growth_that_cannot_arrive_says_why(fields: dict[str, object], ending: str) -> None:
    suggester = GrowthSuggester(start(), stage(**fields), TASK)
    number = 0
    while (suggestion := suggester.ask(number)) is not None:
        scores = {"ntk-condition": 1.0, "length-distortion": 1.0}
        suggester.tell(make_trial(number, point=suggestion.point, metrics=scores))
        number += 1
    assert not suggester.has_arrived
    assert ending in suggester.ending


def test_growth_ends_where_no_candidate_can_be_scored() -> None:
    suggester = GrowthSuggester(start(), stage(width_ratios=[0.25]), TASK)
    number = 0
    while (suggestion := suggester.ask(number)) is not None:
        suggester.tell(make_trial(number, state="failed", point=suggestion.point))
        number += 1
    assert number == 4
    assert suggester.ending == "no candidate of the step could be scored"
