"""Averaging stages and configurations that cannot be computed are refused at their place."""

from pathlib import Path

import pytest

from orchestrator.spec.checks import configuration_problems
from orchestrator.spec.study_file import SpecError, load_spec
from orchestrator.stages.averaging import AveragingStage, choose_average
from orchestrator.stages.retention import num_kept
from orchestrator.store.records import TrialRecord
from plugins.metrics.deciding import ACCURACY
from tests.fakes import make_trial
from tests.unit.training import configuration

STUDY = """\
study: averages
data: {source: digits, image_size: 32}
stages:
  - stage: train
    topologies: ["autoformer:2,2|2,2|16,8"]
    num_trials: 2
    epochs: 8
    keep_checkpoints: 3
    recipe: {%s}
  - stage: averaging
    num_trials: 2
    methods: [%s]
    %s
"""


def check(tmp_path: Path, *, recipe: str = "", methods: str = "last", more: str = "") -> str | None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY % (recipe, methods, more), encoding="utf-8")
    try:
        load_spec(file)
    except SpecError as error:
        return str(error).removeprefix(f"{tmp_path}/")
    return None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"more": "stop_at: 0"}, "stages[1].stop_at: must be an epoch (a whole number from 1), `stopping`, a list of"),
        ({"more": "stop_at: [4, 2.5]"}, "or a range {low, high}, but got 2.5"),
        ({"more": "stop_at: [4, 4]"}, "the options of a choice must differ"),
        ({"more": "stop_at: {low: 5, high: 2}"}, "`low` must lie below `high`"),
        ({"more": "stop_at: {from: 5, to: 2}"}, "must be an epoch, a list of epochs or a range {low, high}, but got"),
        ({"more": "stop_at: [9, 4]"}, "stop_at: must be at most the 8 epochs of stage 'train', but got 9"),
        ({"more": "stop_at: stopping"}, "stage 'averaging' needs a stopping stage before it"),
        ({"more": "max_accuracy_lost: 0.01"}, "must be left out unless `stop_at` has several epochs"),
        (
            {"more": "stop_at: 2", "methods": "{name: lawa, window: 3}"},
            "at most the 2 checkpoints up to the latest epoch",
        ),
        ({"more": "stop_at: [4, 6]", "methods": "last, uniform-soup"}, "methods[1]: uniform-soup mixes trials as they"),
        ({"methods": "trained-ema"}, "methods[0]: trained-ema reads an average of the weights that training maintains"),
        ({"methods": "trained-ema", "recipe": "ema: {rates: [0.9, 0.99]}"}, "`rate` must be one of the decays in"),
        (
            {"methods": "{name: trained-ema, rate: [0.9, 0.5]}", "recipe": "ema: {rates: [0.9, 0.99]}"},
            "must be one of the decays in recipe.ema (0.9, 0.99), but got 0.5",
        ),
        (
            {"methods": "{name: trained-ema, rate: 0.9}", "recipe": "ema: [0.9, 0.99]"},
            "`rate` must be left out if recipe.ema is searched",
        ),
        ({"recipe": "ema: {rates: [0.9]}"}, "recipe.ema.rates: must be a list of at least 2"),
        ({"recipe": "ema: {rates: [0.9, 0.9]}"}, "`rates` must differ"),
        ({"recipe": "ema: {rate: [0.9, 0.8]}"}, "recipe.ema.rate: must be one of the keys rates, but got 'rate'"),
        ({"recipe": "ema: 1.5"}, "recipe.ema: must be"),
    ],
)
def test_what_cannot_be_averaged_is_refused_at_its_place(tmp_path: Path, given: dict[str, str], message: str) -> None:
    found = check(tmp_path, **given)
    assert found is not None
    assert message in found


@pytest.mark.parametrize(
    "given",
    [
        {"more": "stop_at: [8, 4]", "methods": "last, uniform-soup, {name: greedy-soup, across: [epochs, trials]}"},
        {"more": "stop_at: {low: 3, high: 8}\n    max_accuracy_lost: 0.01", "methods": "{name: lawa, window: [2, 3]}"},
        {"recipe": "ema: {rates: [0.9, 0.99]}", "methods": "{name: trained-ema, rate: [0.9, 0.99]}"},
        {"recipe": "ema: 0.9", "methods": "{name: trained-ema, rate: 0.9}"},
        {"recipe": "ema: {low: 0.9, high: 0.99}", "methods": "trained-ema"},
    ],
)
def test_what_can_be_averaged_is_taken(tmp_path: Path, given: dict[str, str]) -> None:
    assert check(tmp_path, **given) is None


@pytest.mark.parametrize(
    ("stop_at", "methods", "kept"),
    [
        (None, ["last", {"name": "lawa", "window": 5}], 3),
        (8, ["last"], 3),
        ([6, 8], ["last"], 3),
        ([4, 8], ["last"], 5),
        ({"low": 4, "high": 8}, ["last", {"name": "lawa", "window": [2, 3]}], 7),
        ([4, 8], ["best"], 8),
        ("stopping", ["last"], 8),
    ],
)
def test_trainings_keep_the_checkpoints_that_are_averaged(stop_at: object, methods: list[object], kept: int) -> None:
    stage = AveragingStage.model_validate(
        {"stage": "averaging", "num_trials": 1, "methods": methods, "stop_at": stop_at}
    )
    assert num_kept([stage], keep_checkpoints=3, epochs=8) == kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"averaging": "uniform-soup"}, "must be of one training, but uniform-soup mixes several trials of a study"),
        ({"averaging": "trained-swa"}, "but the configuration has no recipe.swa"),
        ({"averaging": {"name": "trained-ema", "rate": 0.5}, "recipe": {"ema": 0.9}}, "but got 0.5"),
    ],
)
def test_an_average_of_a_configuration_is_checked_before_it_trains(fields: dict[str, object], message: str) -> None:
    (problem,) = configuration_problems(configuration(**fields))
    assert problem.path == ("averaging",)
    assert message in problem.message


def averages(*found: tuple[float, float]) -> list[TrialRecord]:
    """Averages with an accuracy and a fraction of epochs saved, the best first."""
    trials = [
        make_trial(number, metrics={"val_accuracy": accuracy, "epochs_saved": saved})
        for number, (accuracy, saved) in enumerate(found)
    ]
    return sorted(trials, key=lambda trial: -trial.metrics["val_accuracy"])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0.0, 2),  # better than the average at the end, so it is chosen although the training ends early
        (0.02, 1),  # loses 1 point and saves more
        (0.5, 3),
    ],
)
def test_the_best_average_wins_wherever_it_ends_the_training(limit: float, expected: int) -> None:
    ordered = averages((0.90, 0.0), (0.91, 0.6), (0.92, 0.4), (0.5, 0.9))
    assert choose_average(ordered, ACCURACY, max_accuracy_lost=limit).number == expected
