"""A study's searches in an Optuna database, read back with Optuna."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.engines.interfaces import Objective
from orchestrator.engines.optuna_export import ExportedSearch, OptunaExportError, export_searches
from search_spaces.dimensions import Choice, Real
from tests.fakes import make_trial
from tests.tiny import CommandLine, FinishedStudy

DIMENSIONS = (
    Choice(name="topology", options=("a", "b")),
    Real(name="recipe.learning_rate", low=0.1, high=1.0, log=True),
)
POINT = {"topology": "a", "recipe.learning_rate": 0.3}
TRIALS = [
    make_trial(0, point=POINT, metrics={"val_accuracy": 0.9, "parameters": 100.0}, started_at=5.0, ended_at=9.5),
    make_trial(1, state="stopped", point=POINT, metrics={"val_accuracy": 0.5}, details={"rung": 2}),
    make_trial(2, state="failed", point=POINT, reason="out of memory"),
    make_trial(3, point=POINT, metrics={"val_accuracy": float("nan")}),
    make_trial(4, state="waiting", point=POINT),
]


def search(**changed: object) -> ExportedSearch:
    given = {
        "name": "photos/train",
        "dimensions": DIMENSIONS,
        "objectives": (Objective("val_accuracy", "maximize"),),
        "trials": TRIALS,
        "curves": {0: {1: 0.7, 2: 0.9}},
        "attributes": {"vitsearch.seed": 7},
    }
    return ExportedSearch(**{**given, **changed})  # type: ignore[arg-type]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def test_trials_keep_their_state_values_curves_times_and_attributes(url: str) -> None:
    export_searches([search()], url)
    study = optuna.load_study(study_name="photos/train", storage=url)
    found = study.trials
    assert [trial.state for trial in found] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert study.best_trial.params == POINT
    assert found[0].values == [0.9]
    assert found[0].intermediate_values == {1: 0.7, 2: 0.9}
    assert found[0].duration is not None
    assert found[0].duration.total_seconds() == 4.5
    assert found[0].user_attrs["parameters"] == 100.0
    assert found[2].user_attrs["reason"] == "out of memory"
    assert study.metric_names == ["val_accuracy"]
    assert study.user_attrs["vitsearch.seed"] == 7


def test_an_existing_study_is_replaced_only_on_request(url: str) -> None:
    export_searches([search()], url)
    with pytest.raises(OptunaExportError, match=r"study 'photos/train' yet, but does. Add --overwrite"):
        export_searches([search()], url)
    export_searches([search(trials=TRIALS[:1])], url, overwrite=True)
    assert len(optuna.load_study(study_name="photos/train", storage=url).trials) == 1


def test_a_point_outside_its_space_is_named_before_anything_is_written(url: str) -> None:
    outside = make_trial(5, point={**POINT, "recipe.learning_rate": 2.0}, metrics={"val_accuracy": 0.5})
    with pytest.raises(OptunaExportError, match=r"photos/train, trial 5: recipe.learning_rate: .* but got 2.0"):
        export_searches([search(trials=[*TRIALS, outside])], url)
    with pytest.raises(OptunaExportError, match=r"that failed: .*mysterious"):
        export_searches([search()], "mysterious://nowhere")


def test_every_search_of_a_finished_study_is_written(
    tiny: FinishedStudy, command_line: CommandLine, tmp_path: Path, url: str
) -> None:
    done = command_line("export", "tiny", "--optuna", url, "--json", home=tiny.home)
    assert done.status == 0, done.err
    names = ["tiny/screen", "tiny/train", "tiny/stopping", "tiny/averaging"]
    assert [one["name"] for one in done.json()["studies"]] == names
    for name in names:
        study = optuna.load_study(study_name=name, storage=url)
        assert len(study.trials) == len(tiny.rows.trials[name.partition("/")[2]])
    train = optuna.load_study(study_name="tiny/train", storage=url)
    assert train.best_value == tiny.rows.stages["train"].result["best"]["val_accuracy"]
    assert [len(trial.intermediate_values) for trial in train.trials] == [4] * 9
    assert command_line("export", "tiny", "--optuna", url, home=tiny.home).status == 2
    assert command_line("export", "tiny", home=tiny.home).status == 2
    both = command_line("export", "tiny", "--optuna", url, "--format", "onnx", home=tiny.home)
    assert (both.status, "either --format" in both.err) == (2, True)
