"""If the driver is killed while a study grows, the same command completes the same study."""

import signal
from pathlib import Path

from tests.faults.driver import Kill, run, start
from tests.places import Place
from tests.tiny import differences, run_here

STORE = "orchestrator.store.repository:Store"
SMALL = """\
study: tiny
pool: inline
seed: 3
data: {source: digits, image_size: 32, max_images: 80, max_test_images: 40}
stages:
  - stage: train
    topologies: ["as-vit:4,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|16,4"]
    sampler: {name: tpe, num_startup_trials: 2}
    num_trials: 3
    epochs: 2
    recipe: {batch_size: 32, schedule: [constant, linear], learning_rate: {low: 1e-3, high: 4e-3}}
  - stage: averaging
    num_trials: 2
    methods: [last, {name: lawa, window: 2}]
  - stage: promote
"""
GROWN = SMALL.replace("num_trials: 3", "num_trials: 4").replace("epochs: 2", "epochs: 4")


def place_in(folder: Path) -> Place:
    folder.mkdir()
    return Place(folder / "home", f"sqlite:///{folder}/home/vitsearch.db")


def grow(folder: Path, kills: list[Kill]) -> Place:
    """A finished study that grows, with its driver killed at each moment."""
    place = place_in(folder)
    file = folder / "study.yaml"
    file.write_text(SMALL, encoding="utf-8")
    assert run_here(file, place.home).state == "complete"
    file.write_text(GROWN, encoding="utf-8")
    for kill in kills:
        driver = start(place, "run", file, "--quiet", kills=[kill])
        assert driver.wait() == -signal.SIGKILL, f"{kill}: {driver.err[-2000:]}"
    driver = run(place, "run", file, "--quiet")
    assert driver.process.exitcode == 0, driver.err
    return place


def test_a_driver_killed_while_a_study_grows_ends_the_same_study(tmp_path: Path) -> None:
    kills = [
        Kill(f"{STORE}.begin_execution", "before"),
        Kill(f"{STORE}.begin_execution", "after"),
        Kill("trainers.training.checkpoints:write_folder", "after", "train", 1),
        Kill(f"{STORE}.end_trial", "before", "train"),
        Kill(f"{STORE}.begin_trial", "before", "train"),
        Kill(f"{STORE}.end_stage", "before", "train"),
        Kill(f"{STORE}.begin_stage", "after", "averaging"),
    ]
    killed, whole = grow(tmp_path / "killed", kills), grow(tmp_path / "whole", [])
    assert differences(killed.rows(), whole.rows()) == []
    assert killed.rows().study.state == "complete"
    for table in ("executions", "stages", "trials", "attempts"):
        assert killed.query(f"SELECT count(*) FROM {table} WHERE state = 'running'") == [(0,)]
    since_growth = (
        "SELECT count(*) FROM trials t JOIN attempts a ON a.trial_id = t.id AND a.started_at >= t.started_at "
    )
    assert killed.query(f"{since_growth} WHERE a.state = 'complete' GROUP BY t.id HAVING count(*) > 1") == []
