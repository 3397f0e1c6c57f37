"""PostgreSQL as the database of the store: the same studies, every command, and clear connection errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

from orchestrator.settings import SettingsError
from orchestrator.store.database import find_database, open_database
from orchestrator.store.records import EndedTrial, ScoreKey, ScoreRecord
from orchestrator.store.repository import Store
from tests.integration.test_growing import SMALL
from tests.integration.test_mlflow_server import free_port
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true
from tests.postgres import PostgresServer
from tests.tiny import CommandLine, FinishedStudy, run_here, write_tiny
from trainers.config import TaskOutcome


@pytest.fixture
def place(tmp_path: Path, postgres: PostgresServer) -> Place:
    return Place(tmp_path / "home", postgres.new_database())


def test_a_study_is_the_same_as_on_sqlite_and_every_command_finds_it(
    tiny: FinishedStudy, place: Place, tmp_path: Path, command_line: CommandLine
) -> None:
    url = {"VITSEARCH_DATABASE_URL": place.database_url.replace("postgresql+psycopg://", "postgresql://")}
    assert "No studies yet" in command_line("list", **url).out
    assert find_database(place.database_url) is None  # reading creates nothing
    run_here(write_tiny(tmp_path), place.home, database_url=url["VITSEARCH_DATABASE_URL"])
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
    assert not (place.home / "vitsearch.db").exists()
    (listed,) = command_line("list", "--format", "json", **url).json()
    assert (listed["study"], listed["state"]) == ("tiny", "complete")
    status = command_line("status", "tiny", "--format", "json", **url).json()
    assert status["champion"]["test_accuracy"] == pytest.approx(tiny.champion["test_accuracy"], abs=1e-6)
    assert "topology: as-vit:" in command_line("best", "tiny", **url).out
    assert command_line("delete", "tiny", "--yes", **url).status == 0
    assert command_line("list", "--format", "json", **url).json() == []
    for table in ("stages", "trials", "attempts", "reports", "checkpoints", "executions"):
        assert place.query(f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_study_grows(place: Place, tmp_path: Path) -> None:
    def run(**changed: int) -> None:
        raw = yaml.safe_load(SMALL)
        raw["stages"][0] |= changed
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        assert run_here(file, place.home, database_url=place.database_url).state == "complete"
        assert place.query("SELECT DISTINCT state FROM trials") == [("complete",)]

    run()
    run(num_trials=3)
    assert_rows_are_true(place)
    run(num_trials=3, epochs=3)
    longest = "SELECT number, max(epoch), count(*) FROM reports JOIN trials ON trial_id = id GROUP BY number ORDER BY 1"
    assert place.query(longest) == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]


def test_what_json_and_text_cannot_hold_in_postgresql_is_kept_all_the_same(place: Place) -> None:
    store = Store.open(place.database_url)
    study = store.create_study(
        "s", spec={"x": float("inf")}, digest="d", data_digest="d", stage_names=[("a", "screen")]
    )
    execution = store.begin_execution(study.id)
    stage = store.begin_stage(store.stages(study.id)[0])
    trial, attempt = store.begin_trial(
        stage, execution, number=0, point={"x": 0.1}, sampler_state={}, seed=(1 << 63) - 1
    )
    outcome = TaskOutcome(
        state="failed",
        metrics={"a": float("nan"), "b": float("-inf"), "c": 0.1 + 0.2},
        details={"curve": [1.0, float("nan")], "text": "a\x00b"},
        reason="bytes \x00 and \udcff",
        error="exception",
    )
    store.end_trial(EndedTrial.of(trial, attempt, outcome), study_id=study.id)
    (found,) = store.trials(stage.id)
    assert (found.seed, found.point) == ((1 << 63) - 1, {"x": 0.1})
    assert str(found.metrics) == "{'a': nan, 'b': -inf, 'c': 0.30000000000000004}"
    assert found.details == {"curve": [1.0, "nan"], "text": "a\x00b"}
    assert found.reason == "bytes \\x00 and \\udcff"
    key, score = ScoreKey("p", "s", "c"), ScoreRecord(value=1e-300, spread=None, reason=None, wall_time_s=0.5)
    for _ in range(2):
        store.scores().add("t", "d", 1, [(key, score)])
    assert store.scores().find("t", "d", 1) == {key: score}
    store.close()


def test_a_server_that_is_down_is_named_without_the_password(tmp_path: Path, command_line: CommandLine) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/vitsearch"
    for command in (["list"], ["run", write_tiny(tmp_path)]):
        done = command_line(*command, VITSEARCH_DATABASE_URL=url)
        assert done.status == 2
        assert "Connection refused" in done.err
        assert "VITSEARCH_DATABASE_URL: the database postgresql+psycopg://***@127.0.0.1" in done.err
        assert "secret" not in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_a_database_that_is_not_there_is_named(place: Place) -> None:
    url = make_url(place.database_url).set(database="nowhere")
    with pytest.raises(SettingsError, match='database "nowhere" does not exist'):
        open_database(url.render_as_string(hide_password=False))


def test_a_missing_driver_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None; from orchestrator.store.database import open_database\n"
        "try: open_database('postgresql://me@here/db')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'psycopg[binary]'" in done.stdout


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(SettingsError, match="must name an SQLite or PostgreSQL database"):
        open_database("mysql://me@here/db")
