"""A deadline completes a stage with the trials that it has; a stop request interrupts it."""

from pathlib import Path

from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import read_rows, run_here

STUDY = """\
study: tiny
seed: 3
data: {source: digits, image_size: 32, max_images: 80, max_test_images: 40}
stages:
  - stage: screen
    space: {name: as-vit, width: 8, depths: [1, 1, 1, 1]}
    num_trials: 4
    batch_size: 4
    proxies: [params, flops]
    limits: {max_params: 150_000}
  - stage: train
    candidates: {best: 1, spread: 1}
    sampler: random
    num_trials: 4
    epochs: 3
    stopping: null
    recipe: {batch_size: 32}
  - stage: promote
"""


def study_file(folder: Path) -> Path:
    file = folder / "study.yaml"
    file.write_text(STUDY, encoding="utf-8")
    return file


def test_a_deadline_completes_a_stage_with_the_trials_it_has(tmp_path: Path) -> None:
    late: set[str] = set()

    def react(told: Told) -> None:
        if told.what == "epoch" and told.value == (1, 1):  # in the middle of the second training
            late.add(told.stage)

    progress = RecordingProgress(react)
    study = run_here(study_file(tmp_path), tmp_path / "home", progress=progress, deadline=late.__contains__)
    rows = read_rows(tmp_path / "home")
    assert study.state == "complete"
    assert {name: stage.state for name, stage in rows.stages.items()} == {
        "screen": "complete",
        "train": "complete",
        "promote": "complete",
    }
    assert [trial.state for trial in rows.trials["train"]] == ["complete", "waiting"]
    assert [trial["trial"] for trial in rows.stages["train"].result["trials"]] == [0]
    assert rows.stages["train"].result["num_failed"] == 0
    assert any("complete with 1 of 4 trials" in str(told.value) for told in progress.of("note"))
    assert run_here(study_file(tmp_path), tmp_path / "home").state == "complete"
    assert len(read_rows(tmp_path / "home").trials["train"]) == 2


def test_a_deadline_before_any_result_interrupts_the_study(tmp_path: Path) -> None:
    study = run_here(study_file(tmp_path), tmp_path / "home", deadline=lambda stage: stage == "train")
    assert study.state == "interrupted"
    assert study.reason == "its deadline passed before any trial had a result"
    assert run_here(study_file(tmp_path), tmp_path / "home").state == "complete"


def test_a_stop_request_interrupts_a_stage_that_has_results(tmp_path: Path) -> None:
    switch = Switch()

    def react(told: Told) -> None:
        switch.on |= told.what == "epoch" and told.value == (1, 1)

    study = run_here(study_file(tmp_path), tmp_path / "home", progress=RecordingProgress(react), control=switch)
    rows = read_rows(tmp_path / "home")
    assert (study.state, study.reason) == ("interrupted", "a stop was requested")
    assert rows.stages["train"].state == "interrupted"
    assert [trial.state for trial in rows.trials["train"]] == ["complete", "waiting"]
