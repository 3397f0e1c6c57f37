"""A finished or interrupted study grows: what is done is kept, what is new is added, later stages run again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitsearch
from orchestrator.settings import load_settings
from orchestrator.study.access import find_champion, find_summary
from orchestrator.study.driver import SpecChangedError
from tests.fakes import RecordingProgress, Switch, Told
from tests.places import Place, assert_rows_are_true
from tests.tiny import FinishedStudy, Rows, differences, read_rows, run_here, write_tiny
from trainers import worker
from trainers.config import TaskOutcome, TrainTask

SMALL = """\
study: tiny
seed: 3
pool: inline
data: {source: digits, image_size: 32, max_images: 80, max_test_images: 40}
stages:
  - stage: train
    topologies: ["as-vit:4,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|16,4"]
    sampler: random
    num_trials: 2
    epochs: 2
    recipe: {batch_size: 32, schedule: constant, learning_rate: {low: 1e-3, high: 4e-3}}
"""


@pytest.fixture
def grown_home(tiny: FinishedStudy, tmp_path: Path) -> Path:
    """A copy of the home with the finished tiny study."""
    return Path(shutil.copytree(tiny.home, tmp_path / "home"))


def small(
    folder: Path, home: Path, *, progress: RecordingProgress | None = None, tracking: bool = False, **changed: object
) -> Rows:
    """Run the small study with changed fields of its train stage, and further `stages`."""
    raw = yaml.safe_load(SMALL)
    raw["stages"] += changed.pop("stages", [])
    raw["stages"][0] |= changed
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert run_here(file, home, progress=progress, tracking=tracking).state == "complete"
    return read_rows(home)


def notes(progress: RecordingProgress) -> str:
    return "\n".join(str(told.value) for told in progress.of("note"))


def number_of_attempts(home: Path, stage: str = "train") -> list[int]:
    statement = (
        "SELECT count(*) FROM attempts a JOIN trials t ON a.trial_id = t.id JOIN stages s ON t.stage_id = s.id "
        f"WHERE s.name = '{stage}' GROUP BY t.number ORDER BY t.number"
    )
    return [count for (count,) in place_of_home(home).query(statement)]


def place_of_home(home: Path) -> Place:

    return Place(home, f"sqlite:///{home}/vitsearch.db")


# --- more trials ---


def test_a_study_that_grows_by_two_trials_equals_one_that_had_them_from_the_start(tmp_path: Path) -> None:
    stages = [
        {"stage": "averaging", "num_trials": 3, "methods": ["last", {"name": "lawa", "window": [1, 2]}]},
        {"stage": "promote"},
    ]
    tpe = {"name": "tpe", "num_startup_trials": 3}
    small(tmp_path, tmp_path / "home", stages=stages, sampler=tpe, num_trials=4)
    grown = small(tmp_path, tmp_path / "home", stages=stages, sampler=tpe, num_trials=6)
    fresh = small(tmp_path, tmp_path / "fresh", stages=stages, sampler=tpe, num_trials=6)
    assert [line for line in differences(grown, fresh) if "/kept/" not in line] == []


def test_finished_trials_are_kept_and_later_stages_run_again(
    tiny: FinishedStudy, grown_home: Path, tmp_path: Path
) -> None:
    file = write_tiny(tmp_path, **{"num_trials: 9": "num_trials: 11"})
    progress = RecordingProgress()
    assert run_here(file, grown_home, progress=progress).state == "complete"
    grown = read_rows(grown_home)
    assert "stages[2].num_trials: 9 -> 11" in notes(progress)
    assert "'stopping', 'averaging', 'correlate', 'promote' will run again" in notes(progress)
    assert grown.trials["train"][:9] == tiny.rows.trials["train"]
    assert grown.trials["screen"] == tiny.rows.trials["screen"]
    assert number_of_attempts(grown_home) == [1] * 11
    assert_rows_are_true(place_of_home(grown_home))
    again = RecordingProgress()
    assert run_here(file, grown_home, progress=again).state == "complete"
    assert again.told == []


def test_what_is_fewer_than_done_is_refused_with_the_reason(grown_home: Path, tmp_path: Path) -> None:
    for old, new, words in (
        ("num_trials: 9", "num_trials: 8", "9 -> 8 (9 trials have begun)"),
        ("epochs: 4", "epochs: 3", "4 -> 3 (9 trials have begun with 4 epochs)"),
        ("high: 8e-3", "high: 7e-3", "must contain the earlier range"),
        ("augmentation: [shift, none]", "augmentation: [none, affine]", "no longer has the option 'shift'"),
        ("seed: 7", "seed: 8", "seed: 7 -> 8"),
        ("max_images: 120", "max_images: 110", "data.max_images: 120 -> 110"),
        ("batch_size: 4\n    proxies", "batch_size: 8\n    proxies", "stages[0].batch_size: 4 -> 8"),
        ("  - stage: promote\n", "", "'promote' has begun"),
    ):
        with pytest.raises(SpecChangedError) as caught:
            run_here(write_tiny(tmp_path, **{old: new}), grown_home)
        assert words in str(caught.value)


# --- more epochs ---


def test_trainings_at_a_constant_rate_continue_for_more_epochs(tmp_path: Path) -> None:
    home, progress = tmp_path / "home", RecordingProgress()
    before = small(tmp_path, home)
    after = small(tmp_path, home, epochs=4, progress=progress)
    assert "2 trainings of stage 'train' continue from their last checkpoints" in notes(progress)
    epochs = [one.value for one in progress.of("epoch") if one.value[0] == 0]
    assert epochs == [(0, 1), (0, 2), (0, 3), (0, 4)]  # the first two are reported from the checkpoint
    for old, new in zip(before.curves["train"], after.curves["train"], strict=True):
        assert new[:2] == old
        assert [report.epoch for report in new] == [1, 2, 3, 4]
    assert [trial.metrics["epochs"] for trial in after.trials["train"]] == [4.0, 4.0]
    assert number_of_attempts(home) == [2, 2]


def test_trainings_whose_rate_has_decayed_begin_again(tmp_path: Path) -> None:
    home, progress, recipe = tmp_path / "home", RecordingProgress(), {"batch_size": 32}
    small(tmp_path, home, recipe=recipe, num_trials=1)
    grown = small(tmp_path, home, recipe=recipe, num_trials=1, epochs=3, progress=progress)
    assert "1 training of stage 'train' begins again" in notes(progress)
    assert "because schedule `cosine` depends on the number of epochs" in notes(progress)
    fresh = small(tmp_path, tmp_path / "fresh", recipe=recipe, num_trials=1, epochs=3)
    assert differences(grown, fresh) == []


def test_a_longer_training_that_was_killed_continues_where_it_was(tmp_path: Path) -> None:
    home, switch = tmp_path / "home", Switch()
    small(tmp_path, home)

    def stop(told: Told) -> None:
        switch.on |= told == Told("epoch", "train", (1, 3))

    file = tmp_path / "small.yaml"
    file.write_text(SMALL.replace("epochs: 2", "epochs: 5"), encoding="utf-8")
    study = run_here(file, home, progress=RecordingProgress(stop), control=switch)
    assert study.state == "interrupted"
    interrupted = read_rows(home)
    assert [trial.state for trial in interrupted.trials["train"]] == ["complete", "waiting"]
    assert run_here(file, home).state == "complete"
    fresh_progress = RecordingProgress()
    whole = tmp_path / "whole"
    small(tmp_path, whole)
    expected = small(tmp_path, whole, epochs=5, progress=fresh_progress)
    assert differences(read_rows(home), expected) == []


# --- wider searches, further stages ---


def test_a_wider_range_and_a_further_option_keep_the_trials_and_are_sampled(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = small(tmp_path, home, sampler="tpe", num_trials=3)
    recipe = {
        "batch_size": [32, 16],
        "schedule": ["constant", "linear"],
        "learning_rate": {"low": 1e-4, "high": 8e-3},
        "augmentation": ["none", "shift"],
    }
    after = small(tmp_path, home, sampler="tpe", num_trials=12, recipe=recipe)
    for old, new in zip(before.trials["train"], after.trials["train"], strict=False):
        assert new.metrics == old.metrics
        assert new.point == {
            **old.point,
            "recipe.batch_size": 32,
            "recipe.schedule": "constant",
            "recipe.augmentation": "none",
        }
    added = [trial.point for trial in after.trials["train"][3:]]
    assert {point["recipe.batch_size"] for point in added} == {16, 32}
    assert any(not 1e-3 <= float(str(point["recipe.learning_rate"])) <= 4e-3 for point in added)
    assert number_of_attempts(home) == [1] * 12
    assert [one["has_base_recipe"] for one in after.stages["train"].result["trials"]] == [True] + [False] * 11


def test_a_further_topology_is_trained_once_with_the_base_recipe_of_the_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before = small(tmp_path, home)
    topologies = [yaml.safe_load(SMALL)["stages"][0]["topologies"][0], "as-vit:5,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|16,4"]
    recipe = {"batch_size": 32, "schedule": "constant", "learning_rate": {"low": 5e-4, "high": 9e-3}}
    after = small(tmp_path, home, topologies=topologies, recipe=recipe)
    assert len(after.trials["train"]) == 3
    assert after.trials["train"][2].point == {**before.trials["train"][0].point, "topology": topologies[1]}
    assert [one["has_base_recipe"] for one in after.stages["train"].result["trials"]] == [True, False, True]


def test_further_stages_run_after_those_that_are_done(tmp_path: Path) -> None:
    home, progress = tmp_path / "home", RecordingProgress()
    before = small(tmp_path, home)
    stages = [{"stage": "averaging", "num_trials": 2, "methods": ["last", {"name": "lawa", "window": 2}]}]
    after = small(tmp_path, home, stages=[*stages, {"stage": "promote"}], progress=progress)
    assert "stages[1]: further stage 'averaging'" in notes(progress)
    assert after.trials["train"] == before.trials["train"]
    assert [stage.state for stage in after.stages.values()] == ["complete"] * 3
    between = {"stage": "stopping", "num_trials": 2, "criteria": ["patience"]}
    last = small(tmp_path, home, stages=[between, *stages, {"stage": "promote"}])
    assert list(last.stages) == ["train", "stopping", "averaging", "promote"]
    assert [stage.position for stage in last.stages.values()] == [0, 1, 2, 3]
    assert last.trials["train"] == before.trials["train"]


def test_a_stage_that_has_not_begun_may_change_in_every_field(tmp_path: Path, tiny: FinishedStudy) -> None:
    home, switch = tmp_path / "home", Switch()

    def stop_after_the_screen(told: Told) -> None:
        switch.on = told.what == "stage ended"

    run_here(write_tiny(tmp_path), home, progress=RecordingProgress(stop_after_the_screen), control=switch)
    screened = read_rows(home).trials["screen"]
    changed = {"sampler: {name: tpe, num_startup_trials: 7}": "sampler: random", "epochs: 4": "epochs: 3"}
    run_here(write_tiny(tmp_path, **changed), home, progress=RecordingProgress(stop_after_the_screen), control=switch)
    rows = read_rows(home)
    assert rows.study.spec["stages"][2]["epochs"] == 3
    assert rows.trials["screen"] == screened
    assert [trial.point for trial in screened] == [trial.point for trial in tiny.rows.trials["screen"]]


# --- MLflow ---


def test_mlflow_shows_one_experiment_with_the_earlier_and_the_new_runs(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    home, promote = tmp_path / "home", [{"stage": "promote", "seeds": 1}]
    small(tmp_path, home, stages=promote, tracking=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db", registry_uri=f"sqlite:///{home}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    before = {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    grown = small(tmp_path, home, stages=promote, tracking=True, num_trials=3, epochs=3)
    assert [one.name for one in client.search_experiments() if one.lifecycle_stage == "active"].count("tiny") == 1
    runs = client.search_runs([experiment.experiment_id])
    assert before <= {run.info.run_id for run in runs}
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_level: dict[str, int] = {}
    for run in runs:
        by_level[run.data.tags["vitsearch.level"]] = by_level.get(run.data.tags["vitsearch.level"], 0) + 1
    # 2 trainings and a finalist, then 2 that go on, a new one and a finalist.
    assert by_level == {"execution": 2, "stage": 4, "trial": 4, "earlier trial": 3}
    epochs = {(run.data.tags["vitsearch.level"], run.data.params.get("epochs")) for run in runs}
    assert {("trial", "3"), ("earlier trial", "2")} <= epochs
    assert not {("trial", "2"), ("earlier trial", "3")} & epochs
    assert len(client.search_model_versions("name = 'tiny'")) == 2
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert client.get_run(champion.run_id).info.run_id not in before
    settings = load_settings(home=home)
    tracking_state = find_summary("tiny", settings)["tracking"]
    assert (tracking_state["owed"], tracking_state["rejected"]) == (0, 0)
    assert len(grown.trials["promote"]) == 1


def test_a_study_that_grows_keeps_its_champion_until_it_has_a_new_one(tmp_path: Path) -> None:
    home, switch = tmp_path / "home", Switch()
    small(tmp_path, home, stages=[{"stage": "promote"}])
    settings = load_settings(home=home, tracking=False)
    before = find_champion("tiny", settings)
    file = tmp_path / "small.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("num_trials: 2", "num_trials: 4"), encoding="utf-8")
    progress = RecordingProgress(lambda told: setattr(switch, "on", told.what == "trial ended"))
    assert run_here(file, home, progress=progress, control=switch).state == "interrupted"
    assert find_champion("tiny", settings) == before
    assert (Path(before["folder"]) / "model.safetensors").is_file()
    assert vitsearch.load_run("tiny", home=home).champion.trial == before["trial"]
    switch.on = False
    assert run_here(file, home).state == "complete"
    assert find_champion("tiny", settings)["trial"] in range(4)


# --- failed trials ---


def test_failed_trials_run_once_more_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    with monkeypatch.context() as patched:
        patched.setattr(worker, "train", _failing_for(worker.train, number=1))
        failed = small(tmp_path, home, stages=[{"stage": "promote"}], num_trials=3)
    assert [trial.state for trial in failed.trials["train"]] == ["complete", "failed", "complete"]
    assert small(tmp_path, home, stages=[{"stage": "promote"}], num_trials=3).trials == failed.trials
    progress, file = RecordingProgress(), tmp_path / "small.yaml"
    assert run_here(file, home, progress=progress, retry_failed=True).state == "complete"
    assert "1 failed trial of stage 'train' runs again; stage 'promote' will run again" in notes(progress)
    rows = read_rows(home)
    assert [trial.state for trial in rows.trials["train"]] == ["complete"] * 3
    assert number_of_attempts(home) == [1, 2, 1]
    assert rows.trials["train"][1].reason is None
    again = RecordingProgress()
    run_here(file, home, progress=again, retry_failed=True)
    assert again.told == []


def test_a_champion_of_older_weights_is_told_of(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "small.yaml"
    before = small(tmp_path, home)
    best = before.stages["train"].result["best"]["trial"]
    kept = before.checkpoints["train"][best]
    assert len(kept) > 1
    shutil.rmtree(kept[-1].path)
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**raw, "stages": [*raw["stages"], {"stage": "promote"}]}), encoding="utf-8")
    progress = RecordingProgress()
    assert run_here(file, home, progress=progress).state == "complete"
    used = ", ".join(str(record.epoch) for record in kept[:-1])
    said = f"checkpoints of trial {best} are gone (epoch {kept[-1].epoch}): the weights of epoch {used} are used"
    assert notes(progress).count(said) == 1


def test_the_best_trial_is_trained_again_if_its_weights_are_gone(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "small.yaml"
    before = small(tmp_path, home)
    best = before.stages["train"].result["best"]["trial"]
    for kept in before.checkpoints["train"]:
        shutil.rmtree(kept[0].path.parent)
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**raw, "stages": [*raw["stages"], {"stage": "promote"}]}), encoding="utf-8")
    failed = run_here(file, home)
    assert failed.state == "failed"
    assert f"trial {best} must have a checkpoint, but none is left" in (failed.reason or "")
    assert "train the trial again: run or resume the study with --retry-failed" in (failed.reason or "")
    progress = RecordingProgress()
    assert run_here(file, home, progress=progress, retry_failed=True).state == "complete"
    said = "1 training of stage 'train' begins again, because its weights are no longer on disk"
    assert f"{said}; stage 'promote' will run again" in notes(progress)
    after = read_rows(home)
    assert number_of_attempts(home) == [1 + (number == best) for number in range(2)]
    names = ("val_accuracy", "val_loss", "train_loss", "epochs")
    for old, new in zip(before.trials["train"], after.trials["train"], strict=True):
        assert {name: new.metrics[name] for name in names} == {name: old.metrics[name] for name in names}
    again = RecordingProgress()
    run_here(file, home, progress=again, retry_failed=True)
    assert again.told == []


def _failing_for(train: Any, *, number: int) -> Any:
    """The training function, which fails for the trial with a number."""

    def train_or_fail(task: TrainTask, *arguments: Any) -> TaskOutcome:
        if task.folder.name == f"trial-{number:04d}":
            raise ValueError("the disk caught fire")
        outcome: TaskOutcome = train(task, *arguments)
        return outcome

    return train_or_fail
