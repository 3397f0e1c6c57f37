"""Two objectives: the Pareto front of the trials, and the trial that is chosen from it."""

import pytest

from orchestrator.engines.interfaces import Objective
from orchestrator.spec.cost import Cost
from orchestrator.spec.study_file import make_spec
from orchestrator.stages.trade_off import choose_trial, knee_of, pareto_front, with_cost
from orchestrator.store.records import TrialRecord
from tests.fakes import make_trial
from tests.unit.training import TOPOLOGY
from trainers.yaml_source import SpecError

ACCURACY, LOSS = Objective("val_accuracy", "maximize"), Objective("val_loss", "minimize")
LATENCY, PARAMETERS = Cost(name="latency"), Cost(name="parameters")
PAIR = (ACCURACY, Objective("latency_ms", "minimize"))


def trial(number: int, accuracy: float, latency: float, loss: float = 1.0) -> TrialRecord:
    return make_trial(number, metrics={"val_accuracy": accuracy, "latency_ms": latency, "val_loss": loss})


def numbers(trials: list[TrialRecord]) -> list[int]:
    return [one.number for one in trials]


def test_the_front_has_what_no_other_trial_beats_the_cheapest_first() -> None:
    trials = [trial(0, 0.9, 5), trial(1, 0.8, 2), trial(2, 0.85, 6), trial(3, 0.95, 9), trial(4, 0.7, 3)]
    assert numbers(pareto_front(trials, PAIR)) == [1, 0, 3]


def test_equal_trials_are_on_the_front_once_and_a_cheaper_equal_one_wins() -> None:
    assert numbers(pareto_front([trial(0, 0.9, 5), trial(1, 0.9, 5)], PAIR)) == [0]
    assert numbers(pareto_front([trial(0, 0.9, 5), trial(1, 0.9, 4)], PAIR)) == [1]


def test_a_metric_may_be_one_to_minimise() -> None:
    trials = [trial(0, 0.5, 5, loss=0.2), trial(1, 0.5, 2, loss=0.4), trial(2, 0.5, 6, loss=0.3)]
    assert numbers(pareto_front(trials, (LOSS, PAIR[1]))) == [1, 0]


def test_the_knee_is_where_the_gain_for_the_cost_ends() -> None:
    front = [trial(0, 0.50, 1), trial(1, 0.90, 2), trial(2, 0.92, 6), trial(3, 0.93, 11)]
    assert knee_of(front, PAIR).number == 1


def test_without_a_knee_the_best_metric_is_chosen() -> None:
    assert knee_of([trial(0, 0.5, 1)], PAIR).number == 0
    assert knee_of([trial(0, 0.5, 1), trial(1, 0.6, 2)], PAIR).number == 1
    assert knee_of([trial(0, 0.5, 1), trial(1, 0.75, 2), trial(2, 1.0, 3)], PAIR).number == 2
    bulging_down = [trial(0, 0.5, 1), trial(1, 0.51, 2), trial(2, 1.0, 3)]
    assert knee_of(bulging_down, PAIR).number == 2


def test_the_best_trial_within_the_limit_is_chosen() -> None:
    trials = [trial(3, 0.93, 11), trial(2, 0.92, 6), trial(1, 0.90, 2), trial(0, 0.50, 1)]
    chosen = choose_trial(trials, PAIR, LATENCY, limit=6)
    assert (chosen.trial.number, numbers(list(chosen.front))) == (2, [0, 1, 2, 3])
    assert chosen.reason == "the best trial within the limit (latency 6 ms of 6 ms)"
    assert choose_trial(trials, PAIR, LATENCY, limit=None).reason == "the knee of the front (latency 2 ms)"


def test_a_limit_that_no_trial_keeps_is_told_and_the_cheapest_is_chosen() -> None:
    chosen = choose_trial([trial(1, 0.9, 5), trial(0, 0.8, 3)], PAIR, LATENCY, limit=2)
    assert chosen.trial.number == 0
    assert chosen.reason == "the cheapest trial, NOT within the limit (latency 3 ms, limit 2 ms)"


def test_without_a_cost_the_best_trial_is_chosen_without_a_reason() -> None:
    ordered = [trial(1, 0.9, 5), trial(0, 0.8, 3)]
    assert choose_trial(ordered, with_cost(ACCURACY, None), None, limit=None) == (ordered[0], None, ())


def test_costs_are_shown_in_their_units() -> None:
    assert [LATENCY.text(4.917), PARAMETERS.text(331_882), Cost(name="macs").text(14_300_000)] == [
        "4.92 ms",
        "331,882",
        "14.3 million",
    ]


def study(**fields: object) -> dict[str, object]:
    stages = [{"stage": "train", "topologies": [TOPOLOGY], "num_trials": 1, "epochs": 1}, {"stage": "promote"}]
    return {"study": "one", "data": {"source": "digits"}, "stages": stages, **fields}


def limited(limit: object) -> list[dict[str, object]]:
    train, promote = study()["stages"]  # type: ignore[misc]
    return [train, {**promote, "limit": limit}]


def test_a_study_may_weigh_its_metric_against_a_cost() -> None:
    assert make_spec(study()).cost is None
    spec = make_spec(study(metric=["macro-f1", "latency"], stages=limited({"latency": 5})))
    assert spec.cost == LATENCY
    assert spec.metric[0].name == "macro-f1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": ["accuracy", "latency", "macs"]}, r"but got 3 names \(accuracy, latency, macs\)"),
        ({"metric": "latency"}, "the first is the cost 'latency'. Put the metric before it"),
        ({"metric": ["accuracy", "latncy"]}, "one of the costs .* Did you mean 'latency'"),
        ({"metric": ["accuracy", "macro-f1"]}, "must be one of the costs latency, macs, parameters"),
        ({"metric": ["accuracy", {"name": "macs", "x": 1}]}, "'macs' has no settings, but got x"),
        (
            {"metric": ["accuracy", "macs"], "engine": {"name": "ray", "scheduler": "asha"}},
            "a scheduler compares trials by one metric, but the study has two objectives",
        ),
        (
            {"stages": limited({"latency": 5})},
            "needs a study that weighs a cost, such as `metric: ",
        ),
        ({"metric": ["accuracy", "macs"], "stages": limited({"latency": 5})}, "must limit the cost .* 'macs'"),
        ({"metric": ["accuracy", "macs"], "stages": limited({"macs": 0})}, "above 0|greater than 0"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec(study(**fields))
