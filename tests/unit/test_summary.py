"""The champion's configuration file: `vitsearch train` reads it, and its instructions work as written."""

from pathlib import Path

import pytest

from orchestrator.reports.summary import active_time_s, configuration_yaml
from orchestrator.spec.study_file import load_configuration
from orchestrator.store.records import ExecutionRecord
from search_spaces.recipes import PluginChoice
from tests.fakes import make_stage
from tests.unit.training import configuration

ADVICE = {"epochs_saved": 0.45, "accuracy_lost": 0.0012}


def read_back(text: str, folder: Path):
    file = folder / "best.yaml"
    file.write_text(text, encoding="utf-8")
    return load_configuration(file)


def test_the_file_is_read_back_as_the_same_configuration(tmp_path: Path) -> None:
    lawa = PluginChoice(name="lawa", settings={"window": 3, "spacing": 1})
    for given in (configuration(), configuration(averaging=lawa, recipe={"gradient_clip": None})):
        assert read_back(configuration_yaml(given, None), tmp_path) == given
        assert read_back(configuration_yaml(given, {**ADVICE, "criterion": "patience"}), tmp_path) == given


@pytest.mark.parametrize("criterion", ["patience", {"name": "patience", "epochs": 2, "min_delta": 0.1}])
def test_the_advice_on_stopping_can_be_pasted(criterion: object, tmp_path: Path) -> None:
    text = configuration_yaml(configuration(), {**ADVICE, "criterion": criterion})
    assert "saves 45 % of the epochs for 0.12 points of accuracy" in text
    advice = text.rstrip().rpartition("with: ")[2]
    lines = [advice if line.startswith("stopping:") else line for line in text.splitlines()]
    assert read_back("\n".join(lines), tmp_path).stopping == PluginChoice.model_validate(criterion)


def execution(number: int, started_at: float, ended_at: float | None) -> ExecutionRecord:
    return ExecutionRecord(
        id=number,
        study_id=1,
        number=number,
        state="complete",
        reason=None,
        host="here",
        pid=1,
        code_version="0",
        started_at=started_at,
        ended_at=ended_at,
    )


def test_the_time_of_a_stage_has_no_pause_in_it() -> None:
    stage = make_stage(started_at=100.0, ended_at=90_030.0)
    executions = [execution(0, 10.0, 50.0), execution(1, 90.0, 120.0), execution(2, 90_000.0, 90_500.0)]
    assert active_time_s(stage, executions) == 20 + 30
    assert active_time_s(stage, [execution(0, 90.0, None)]) == 89_930
    assert active_time_s(make_stage(), executions) is None
