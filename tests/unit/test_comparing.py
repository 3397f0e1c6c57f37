"""Trials side by side, and the server that shows them."""

import io
import socket
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli import serving
from orchestrator.cli.comparing import comparison_table
from orchestrator.cli.serving import find_server
from orchestrator.settings import Settings
from orchestrator.store.records import StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.study.comparison import Comparison, NoTrialsError, compare_trials
from plugins.metrics.deciding import ACCURACY
from tests.fakes import make_stage, make_trial

STUDY = StudyRecord(
    id=1,
    uid="abc",
    name="digits",
    spec={"stages": [{"stage": "train"}]},
    spec_digest="d" * 64,
    data_digest="d" * 64,
    state="complete",
    reason=None,
    owner="me",
    created_at=0.0,
    updated_at=0.0,
)
TOPOLOGIES = ("as-vit:8,8,4,1|2,4,6,1|2,2,3,1|3,1,3,1|16,16", "as-vit:4,8,4,1|2,4,6,1|2,2,3,1|3,1,3,1|32,16")


def trial(number: int, *, topology: str = TOPOLOGIES[0], rate: float = 0.004, schedule: str = "cosine") -> TrialRecord:
    metrics = {"val_accuracy": 0.9916, "val_loss": 0.049351, "parameters": 331882.0, "wall_time_s": 10.148}
    point = {"topology": topology, "recipe.learning_rate": rate, "recipe.schedule": schedule}
    return make_trial(number, metrics=metrics).model_copy(update={"point": point})


def printed(*trials: TrialRecord, champion: int | None = None) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_table(Comparison(STUDY, make_stage(), list(trials), champion), ACCURACY), crop=False)
    return console.export_text().splitlines()


def test_the_table_shows_what_differs_in_80_columns() -> None:
    lines = printed(trial(5), trial(9, rate=0.00258935, topology=TOPOLOGIES[1]), champion=5)
    assert max(len(line) for line in lines) <= 80
    text = "\n".join(lines)
    assert lines[1].split() == ["trial", "5", "★", "9"]
    assert "val. accuracy" in text
    assert "99.2 %" in text
    assert [line.split() for line in lines if line.startswith("learning rate")] == [
        ["learning", "rate", "0.004", "0.002589"]
    ]
    assert "schedule" not in text
    assert [line.split() for line in lines if line.startswith("topology")] == [["topology", "A", "B"]]
    assert f"B = {TOPOLOGIES[1]}" in text


def test_more_than_four_trials_take_several_tables() -> None:
    lines = printed(*(trial(number, schedule="linear" if number else "cosine") for number in range(9)))
    heads = [line.split()[1:] for line in lines if line.startswith("trial")]
    assert heads == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8"]]
    assert max(len(line) for line in lines[1:]) <= 80


def test_a_failed_trial_shows_its_state() -> None:
    failed = trial(1, rate=0.1).model_copy(update={"state": "failed", "metrics": {}})
    assert any(line.split()[-1] == "failed" for line in printed(trial(0), failed) if line.startswith("val."))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def make_study(settings: Settings) -> None:
    store = Store.open(settings.database_url)
    study = store.create_study(
        "digits",
        spec={"seed": 0},
        digest="d",
        data_digest="d",
        stage_names=[("train", "train"), ("promote", "promote")],
    )
    execution = store.begin_execution(study.id)
    (stage, _) = store.stages(study.id)
    for number in range(6):
        store.begin_trial(stage, execution, number=number, point={"x": number}, sampler_state={}, seed=0)
    board = [{"trial": number} for number in (5, 3, 1, 0, 2)]
    store.end_stage(stage, "complete", result={"leaderboard": board})
    store.close()


def test_the_best_four_trials_are_compared_unless_others_are_named(settings: Settings) -> None:
    make_study(settings)
    assert [one.number for one in compare_trials("digits", (), settings).trials] == [5, 3, 1, 0]
    found = compare_trials("digits", (2, 4, 2), settings)
    assert [one.number for one in found.trials] == [2, 4]
    assert found.differing == ["x"]
    assert found.as_json()["trials"][1]["point"] == {"x": 4}


def test_an_unknown_trial_is_an_error_that_says_which_there_are(settings: Settings) -> None:
    make_study(settings)
    with pytest.raises(NoTrialsError, match="numbered from 0 to 5, but got 7"):
        compare_trials("digits", (7,), settings)


def test_a_port_in_use_is_an_error_unless_its_server_shows_the_study(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(serving, "_shows", lambda *_: False)
        with pytest.raises(SystemExit):
            find_server(settings, port, STUDY)
        assert f"port {port} must be free, but it is in use" in capsys.readouterr().err
        monkeypatch.setattr(serving, "_shows", lambda *_: True)
        assert find_server(settings, port, STUDY).command is None
    assert find_server(settings, port, STUDY).command is not None


def test_a_server_of_the_settings_is_used(settings: Settings) -> None:
    remote = settings.model_copy(update={"tracking_uri": "http://mlflow.example:5000"})
    assert find_server(remote, 5000, STUDY) == ("http://mlflow.example:5000", None)
