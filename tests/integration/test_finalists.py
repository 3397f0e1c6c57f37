"""Stage `promote` with finalists, other seeds and a last training on all images."""

import signal
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.cli.tables import champion_lines
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_configuration, load_spec
from orchestrator.stages.promote import PromoteResult
from orchestrator.store.repository import Store
from orchestrator.study.access import find_champion
from tests.fakes import RecordingProgress
from tests.tiny import CommandLine, Rows, read_rows, run_here, start
from tests.unit.training import CPU, configuration
from trainers import champion
from trainers.champion import load_model
from trainers.config import Configuration
from trainers.data.images import load_test_images
from trainers.yaml_source import SpecError

TOPOLOGY = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
STUDY: dict[str, Any] = {
    "study": "finals",
    "data": {"source": "digits", "max_images": 120, "max_test_images": 60},
    "stages": [
        {
            "stage": "train",
            "topologies": [TOPOLOGY],
            "num_trials": 4,
            "epochs": 3,
            "keep_checkpoints": 2,
            "recipe": {"batch_size": 32, "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
        },
        {"stage": "averaging", "num_trials": 2, "methods": ["last", {"name": "lawa", "window": 2, "spacing": 1}]},
        {"stage": "promote", "finalists": 2, "seeds": 2, "refit": True},
    ],
}


def write(folder: Path, **promote: Any) -> Path:
    """The study, with other settings of the promote stage."""
    *stages, last = STUDY["stages"]
    file = folder / "finals.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "stages": [*stages, {**last, **promote}]}))
    return file


class Finals:
    """A finished study."""

    def __init__(self, home: Path, progress: RecordingProgress, num_tests: int) -> None:
        self.num_tests = num_tests
        self.home = home
        self.begun = [told.value for told in progress.of("stage began") if told.stage == "promote"]
        self.notes = [str(told.value) for told in progress.of("note")]
        self.rows: Rows = read_rows(home, "finals")
        self.result = PromoteResult.model_validate(self.rows.stages["promote"].result)
        self.champion = find_champion("finals", load_settings(home=home))


@pytest.fixture(scope="module")
def finals(tmp_path_factory: pytest.TempPathFactory) -> Finals:
    folder = tmp_path_factory.mktemp("finals")
    progress = RecordingProgress()
    with patch.object(champion, "load_test_images", side_effect=load_test_images) as read:
        assert run_here(write(folder), folder / "home", progress=progress, tracking=True).state == "complete"
    return Finals(folder / "home", progress, read.call_count)


def test_the_best_trials_are_trained_again_with_other_seeds(finals: Finals) -> None:
    searched, retrained = finals.rows.trials["train"], finals.rows.trials["promote"]
    best = sorted(searched, key=lambda trial: (-trial.metrics["val_accuracy"], trial.metrics["val_loss"]))[:2]
    assert [trial.point["finalist"] for trial in retrained[:4]] == [trial.number for trial in best] * 2
    assert [trial.point["repeat"] for trial in retrained[:4]] == [0, 0, 1, 1]
    seeds = {trial.seed for trial in (*searched, *retrained)}
    assert len(seeds) == len(searched) + len(retrained)
    for trial in retrained[:4]:
        source = searched[int(str(trial.point["finalist"]))]
        assert {name: trial.point[name] for name in source.point} == source.point
        assert trial.metrics["epochs"] == 3


def test_the_finalist_with_the_best_mean_wins(finals: Finals) -> None:
    trials = finals.rows.trials["promote"]
    for one in finals.result.finalists:
        values = [trial.metrics["val_accuracy"] for trial in trials[:4] if trial.point["finalist"] == one.trial]
        assert one.values == tuple(values)
        assert one.mean == statistics.fmean(values)
        assert one.spread == statistics.stdev(values)
    means = [one.mean for one in finals.result.finalists]
    assert means == sorted(means, reverse=True)
    assert finals.result.trial == finals.result.finalists[0].trial
    assert any("mean validation accuracy with new seeds" in note for note in finals.notes)


def test_the_champion_was_trained_on_both_parts_and_has_no_validation_figure(finals: Finals) -> None:
    result, last = finals.result, finals.rows.trials["promote"][-1]
    assert (result.refit, result.retrained) == (True, last.number)
    assert (result.val_accuracy, result.val_loss) == (None, None)
    assert not any(name.startswith("val_") for name in last.metrics)
    assert {"train_loss", "epochs", "parameters"} <= last.metrics.keys()
    final = result.configuration
    assert (final.train_on, final.stopping, final.seed) == ("train+validation", None, last.seed)
    assert [report.num_images for report in finals.rows.curves["promote"][-1]] == [120] * 3
    assert [report.num_images for report in finals.rows.curves["train"][0]] == [90] * 3
    card = load_model(Path(finals.champion["folder"]), device=CPU).card
    assert not any(name.startswith("val_") for name in card.metrics)
    assert card.temperature != 1.0
    assert "no validation figure" in champion_lines(finals.champion).plain
    assert any("no validation figure is left" in note for note in finals.notes)


def test_the_display_shows_the_stage_once_with_all_its_trainings(finals: Finals) -> None:
    assert finals.begun == [(0, 5)]


def test_the_test_part_is_read_once(finals: Finals) -> None:
    assert finals.num_tests == 1


def test_its_configuration_trains_the_champion_again(finals: Finals, command_line: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    file.write_text(command_line("best", "finals", home=finals.home).out)
    assert Configuration.model_validate(yaml.safe_load(file.read_text())) == finals.result.configuration
    done = command_line("train", file, "--out", tmp_path / "again")
    assert done.status == 0, done.err
    assert f"{100 * finals.result.test_accuracy:.1f} %" in done.out
    assert "no validation figure" in done.out
    assert "validation accuracy" not in done.err
    found, again = (load_model(folder, device=CPU) for folder in (Path(finals.champion["folder"]), tmp_path / "again"))
    for (name, first), second in zip(found.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert first.equal(second), name


def test_the_validation_part_counts_as_training_images_in_an_evaluation(finals: Finals) -> None:
    model = load_model(Path(finals.champion["folder"]), device=CPU)
    assert "figures are too good" in model.evaluate_on(part="validation").notes[0]
    assert model.evaluate_on().notes == ()


def test_weights_that_only_losers_need_are_deleted(finals: Finals) -> None:
    folder = Path(finals.champion["folder"]).parent
    kept = {place.name: len(list(place.glob("epoch-*"))) for place in folder.glob("trial-*")}
    assert sorted(kept.values()) == [1, 1, 1, 2, 2]  # the best training of the winner and the last one keep all
    assert not list(folder.glob("trial-*/epoch-*/optimizer*"))


def test_mlflow_shows_the_new_trainings_below_the_promote_stage(finals: Finals) -> None:
    client = MlflowClient(f"sqlite:///{finals.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("finals").experiment_id])
    stage = next(
        run for run in runs if run.data.tags.get("vitsearch.stage") == "promote" and "trial" not in run_level(run)
    )
    mine = {
        int(run.data.tags["vitsearch.trial"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == stage.info.run_id
    }
    assert sorted(mine) == [0, 1, 2, 3, 4]
    assert all("vitsearch.retrained_from" in mine[number].data.tags for number in range(4))
    assert all("val_accuracy" in mine[number].data.metrics for number in range(4))
    assert "vitsearch.refit_of" in mine[4].data.tags
    assert mine[4].data.params["train_on"] == "train+validation"
    assert not any(name.startswith("val_") for name in mine[4].data.metrics)
    assert {run.info.status for run in mine.values()} == {"FINISHED"}
    assert client.get_model_version_by_alias("finals", "champion").tags["averaged_from"].endswith("promote/trial/4")


def run_level(run: Any) -> str:
    return str(run.data.tags["vitsearch.level"])


# --- killed in the middle ---


@pytest.mark.parametrize("epochs_before", [pytest.param(2, marks=pytest.mark.slow), 13])
def test_a_process_that_is_killed_leaves_a_promotion_that_ends_in_the_same_way(
    finals: Finals, tmp_path: Path, epochs_before: int
) -> None:
    home, file = tmp_path / "home", write(tmp_path)
    process = start("run", file, "--quiet", home=home, cwd=tmp_path)
    until = time.monotonic() + 900
    while num_epochs(home) < epochs_before and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_rows(home, "finals").stages["promote"].state == "running"
    assert run_here(file, home).state == "complete"
    rows = read_rows(home, "finals")
    again = PromoteResult.model_validate(rows.stages["promote"].result)
    assert again.finalists == finals.result.finalists
    assert again.test == finals.result.test
    assert again.configuration == finals.result.configuration
    assert [one.point for one in rows.trials["promote"]] == [one.point for one in finals.rows.trials["promote"]]


def num_epochs(home: Path) -> int:
    """Number of epochs that trainings of the promote stage have finished."""
    store = Store.find(f"sqlite:///{home}/vitsearch.db")
    if store is None:
        return 0
    try:
        study = store.find_study("finals")
        stages = [] if study is None else [one for one in store.stages(study.id) if one.name == "promote"]
        return sum(len(store.reports(trial.id)) for one in stages for trial in store.trials(one.id))
    finally:
        store.close()


# --- other settings ---


def test_seeds_alone_train_the_best_trial_again(tmp_path: Path) -> None:
    assert run_here(write(tmp_path, finalists=1, refit=False), tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home", "finals")
    result = PromoteResult.model_validate(rows.stages["promote"].result)
    (finalist,) = result.finalists
    assert finalist.trial == result.trial == rows.stages["train"].result["best"]["trial"]
    best = max(rows.trials["promote"], key=lambda one: (one.metrics["val_accuracy"], -one.metrics["val_loss"]))
    assert result.retrained == best.number
    assert result.configuration.seed == best.seed
    assert result.val_accuracy is not None


def test_refit_alone_trains_the_best_trial_on_all_images(tmp_path: Path) -> None:
    assert run_here(write(tmp_path, finalists=1, seeds=0), tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home", "finals")
    result = PromoteResult.model_validate(rows.stages["promote"].result)
    assert (result.finalists, result.refit, result.retrained) == ((), True, 0)
    assert len(rows.trials["promote"]) == 1


def test_a_study_that_grows_trains_its_new_finalists_from_the_beginning(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run_here(write(tmp_path, refit=False), home).state == "complete"
    before = read_rows(home, "finals")
    text = (tmp_path / "finals.yaml").read_text()
    (tmp_path / "finals.yaml").write_text(text.replace("num_trials: 4", "num_trials: 6"))
    assert run_here(tmp_path / "finals.yaml", home).state == "complete"
    after = read_rows(home, "finals")
    assert len(after.trials["train"]) == 6
    ended = max(trial.ended_at or 0.0 for trial in before.trials["promote"])
    assert all(trial.started_at > ended for trial in after.trials["promote"])
    result = PromoteResult.model_validate(after.stages["promote"].result)
    searched = sorted(after.trials["train"], key=lambda one: (-one.metrics["val_accuracy"], one.metrics["val_loss"]))
    assert {one.trial for one in result.finalists} == {trial.number for trial in searched[:2]}
    assert [trial.metrics["epochs"] for trial in after.trials["promote"]] == [3] * 4


def test_with_a_cost_the_trial_that_was_chosen_from_the_front_is_trained_again(tmp_path: Path) -> None:
    *stages, last = STUDY["stages"]
    file = tmp_path / "finals.yaml"
    promote = {**last, "finalists": 1, "seeds": 1, "refit": False}
    file.write_text(yaml.safe_dump({**STUDY, "metric": ["accuracy", "parameters"], "stages": [stages[0], promote]}))
    assert run_here(file, tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home", "finals")
    result = PromoteResult.model_validate(rows.stages["promote"].result)
    assert [one.trial for one in result.finalists] == [rows.stages["train"].result["best"]["trial"]] == [result.trial]
    assert rows.stages["train"].result["certainty"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, r"finalists.* must be 1 unless `seeds`.* is 2 with `seeds: 0`. Set `seeds`"),
        ({"finalists": 5}, r"finalists.* must be at most the 4 trials of stage 'train', but is 5. Lower it"),
        ({"finalists": 0}, "finalists.* greater than or equal to 1|finalists.* at least 1"),
        ({"seeds": -1}, "seeds"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(write(tmp_path, **settings))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stopping": "patience"}, "`stopping` must be null with `train_on: train.validation`"),
        (
            {"averaging": "greedy-soup"},
            "averaging.* must not choose by validation images .* greedy-soup does",
        ),
        ({"averaging": "best"}, "averaging.* must not choose by validation images .* best does. Use another method"),
    ],
)
def test_a_configuration_without_validation_images_must_not_choose_by_them(
    fields: dict[str, str], message: str, tmp_path: Path
) -> None:
    found = {**configuration().model_dump(mode="json"), "train_on": "train+validation", **fields}
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(SpecError, match=message):
        load_configuration(tmp_path / "best.yaml")
