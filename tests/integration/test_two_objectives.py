"""A study that weighs its metric against a cost, from the search to the champion."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.console import out
from orchestrator.cli.tables import study_report
from orchestrator.reports.summary import study_summary
from orchestrator.settings import load_settings
from orchestrator.store.repository import Store
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import read_rows, run_here

FILE = """\
study: tiny
seed: 3
metric: [accuracy, COST]
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4", "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,4,1|16,8",
      "as-vit:4,4,2,1|2,4,2,1|2,2,4,2|2,1,4,1|16,8"]
    sampler: {name: SAMPLER, SETTING}
    num_trials: 7
    epochs: 2
    keep_checkpoints: 2
    recipe: {batch_size: 32, learning_rate: {low: 5e-4, high: 8e-3, log: true}}
  - {stage: averaging, num_trials: 2, methods: [last, best]}
  - stage: promote
"""
SAMPLERS = {"nsga2": "population_size: 3", "tpe": "num_startup_trials: 3"}


def write(folder: Path, *, cost: str, sampler: str, promote: str = "  - stage: promote\n") -> Path:
    text = FILE.replace("COST", cost).replace("SAMPLER", sampler).replace("SETTING", SAMPLERS[sampler])
    file = folder / "tiny.yaml"
    file.write_text(text.replace("  - stage: promote\n", promote))
    return file


def summary_of(home: Path) -> dict[str, Any]:
    settings = load_settings(home=home)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    try:
        study = store.find_study("tiny")
        assert study is not None
        return study_summary(store, study)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("cost", "key", "sampler"), [("parameters", "parameters", "nsga2"), ("latency", "latency_ms", "tpe")]
)
def test_the_knee_of_the_front_becomes_the_champion(
    cost: str, key: str, sampler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, progress = tmp_path / "home", RecordingProgress()
    assert run_here(write(tmp_path, cost=cost, sampler=sampler), home, progress=progress).state == "complete"
    rows = read_rows(home)
    train, promote = rows.stages["train"].result, rows.stages["promote"].result
    trials = rows.trials["train"]
    assert len(trials) == 7
    points = {trial.number: (trial.metrics["val_accuracy"], -trial.metrics[key]) for trial in trials}
    for number in (row["trial"] for row in train["front"]):
        own = points[number]
        assert not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in points.values())
    values = [(row[key], row["val_accuracy"]) for row in train["front"]]
    assert values == sorted(values)
    assert train["best"]["trial"] in [row["trial"] for row in train["front"]]
    assert promote["trial"] == train["best"]["trial"] == rows.stages["averaging"].result["averaged_from"]
    assert promote["chosen"] == train["chosen"]
    assert "front" in train["chosen"]
    for topology in {trial.point["topology"] for trial in trials}:
        assert len({trial.metrics[key] for trial in trials if trial.point["topology"] == topology}) == 1
    out(study_report(summary_of(home)))
    shown = capsys.readouterr().out
    assert "Pareto front" in shown
    assert f"* chosen: {train['chosen']}" in " ".join(shown.split())
    front = shown.partition("Pareto front")[2].partition("Champion")[0]
    assert max(map(len, front.splitlines())) <= 80


def test_the_best_trial_within_the_limit_becomes_the_champion(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = write(
        tmp_path,
        cost="parameters",
        sampler="nsga2",
        promote="  - {stage: promote, limit: {parameters: 20}}\n",
    )
    assert run_here(file, home).state == "complete"
    rows = read_rows(home)
    cheapest = min(trial.metrics["parameters"] for trial in rows.trials["train"])
    promote = rows.stages["promote"].result
    assert promote["parameters"] == cheapest
    assert "NOT within the limit" in promote["chosen"]


def test_a_resumed_study_measures_no_latency_again(tmp_path: Path) -> None:
    file, home, control = write(tmp_path, cost="latency", sampler="tpe"), tmp_path / "home", Switch()

    def stop(told: Told) -> None:
        control.on = control.on or told.what == "trial ended"

    assert run_here(file, home, progress=RecordingProgress(stop), control=control).state == "interrupted"
    first = read_rows(home).trials["train"][0].metrics["latency_ms"]
    assert run_here(file, home).state == "complete"
    trials = read_rows(home).trials["train"]
    topology = trials[0].point["topology"]
    assert {trial.metrics["latency_ms"] for trial in trials if trial.point["topology"] == topology} == {first}
