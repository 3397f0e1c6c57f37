"""Studies with packed trainings: the same trials as without packs, each with its own curve and end."""

from pathlib import Path

import pytest

from tests.fakes import RecordingProgress, Switch, Told
from tests.packs import ALONE, ON_RAY, PACKED, ROUNDING, pack_sizes, write_packs
from tests.tiny import Rows, differences, read_rows, run_here


def run(folder: Path, how: str) -> Rows:
    study = run_here(write_packs(folder, how), folder / "home")
    assert (study.state, study.reason) == ("complete", None)
    return read_rows(folder / "home", "packs")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    rows = run(tmp_path_factory.mktemp("alone"), ALONE)
    assert {trial.state for trial in rows.trials["train"]} == {"complete", "stopped"}  # some leave their packs
    return rows


def test_packed_trials_are_those_that_they_are_alone_and_are_shown_apart(alone: Rows, tmp_path: Path) -> None:
    progress = RecordingProgress()
    assert (
        run_here(write_packs(tmp_path, PACKED), tmp_path / "home", progress=progress, tracking=True).state == "complete"
    )
    rows = read_rows(tmp_path / "home", "packs")
    assert differences(rows, alone, tolerance=ROUNDING) == []
    assert set(pack_sizes(alone)) == {1}
    assert pack_sizes(rows).count(4) >= 4
    assert max(pack_sizes(rows)) == 4
    assert_each_has_its_curve(tmp_path / "home", rows)
    assert_ends_are_told_at_once(rows, progress)


def assert_each_has_its_curve(home: Path, rows: Rows) -> None:
    """In MLflow, a run of each trial."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("packs").experiment_id], max_results=1000)
    runs = {int(run.data.tags["vitsearch.trial"]): run for run in found if run.data.tags["vitsearch.level"] == "trial"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for trial, curve in zip(rows.trials["train"], rows.curves["train"], strict=True):
        run = runs.pop(trial.number)
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
            [report.val_loss for report in curve],
            rel=1e-3,  # MLflow gets four significant digits
        )
        rate = trial.point["recipe.learning_rate"]
        assert float(run.data.params["recipe.learning_rate"]) == pytest.approx(rate, rel=1e-3)
    assert runs == {}


def assert_ends_are_told_at_once(rows: Rows, progress: RecordingProgress) -> None:
    """A trial that stops early is told of while others of its pack are still trained."""
    told = [(one.what, one.value[0]) for one in progress.told if one.what in ("epoch", "trial ended")]
    early = [
        trial.number for trial in rows.trials["train"] if trial.state == "stopped" and "pack_size" in trial.details
    ]
    assert any("epoch" in {what for what, _ in told[told.index(("trial ended", number)) :]} for number in early)


@pytest.mark.slow
def test_packs_on_the_ray_pool_are_the_same_trials(
    alone: Rows, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    rows = run(tmp_path, ON_RAY)
    assert differences(rows, alone, tolerance=ROUNDING) == []
    assert pack_sizes(rows).count(4) >= 4
    assert pack_sizes(rows).count(1) <= 1


def test_a_packed_study_that_is_interrupted_goes_on_packed(alone: Rows, tmp_path: Path) -> None:
    control = Switch()

    def stop(told: Told) -> None:
        control.on = control.on or told.what == "trial ended"

    half = run_here(write_packs(tmp_path, PACKED), tmp_path / "home", progress=RecordingProgress(stop), control=control)
    assert half.state == "interrupted"
    states = [trial.state for trial in read_rows(tmp_path / "home", "packs").trials["train"]]
    assert "waiting" in states
    assert len(set(states) & {"complete", "stopped"}) == 1
    rows = run(tmp_path, PACKED)
    assert differences(rows, alone, tolerance=ROUNDING) == []
    assert pack_sizes(rows).count(1) < 4


def test_a_study_may_begin_packed_and_go_on_without(alone: Rows, tmp_path: Path) -> None:
    control = Switch()

    def stop(told: Told) -> None:
        control.on = control.on or told.what == "epoch"

    run_here(write_packs(tmp_path, PACKED), tmp_path / "home", progress=RecordingProgress(stop), control=control)
    rows = run(tmp_path, ALONE)
    assert differences(rows, alone, tolerance=ROUNDING) == []
    assert [setup["pool"] for setup in rows.setups] == ["inline", "inline"]
    assert set(pack_sizes(rows)) == {1}


def test_the_same_seed_gives_the_same_packed_study_with_a_sampler_that_learns(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = write_packs(folder, PACKED, sampler="{name: tpe, num_startup_trials: 4}")
        assert run_here(file, folder / "home").state == "complete"
        found.append(read_rows(folder / "home", "packs"))
    assert differences(*found) == []
    assert pack_sizes(found[0]) == pack_sizes(found[1])
    assert max(pack_sizes(found[0])) == 4
