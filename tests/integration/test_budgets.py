"""A study keeps its budget: trainings end with what they have, and later stages still run."""

from pathlib import Path
from unittest.mock import patch

import pytest

from orchestrator.stages.budget import StageBudget
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import Rows, read_rows, run_here

STUDY = """\
study: tiny
pool: inline
seed: 3
data: {source: digits, image_size: 32, max_images: 80, max_test_images: 40}
stages:
  - stage: train
    topologies: ["as-vit:4,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|16,4"]
    sampler: random
    num_trials: 4
    epochs: 4
    recipe: {batch_size: 32, learning_rate: {low: 1e-3, high: 4e-3}}
  - stage: averaging
    num_trials: 3
    methods: [last, {name: lawa, window: [1, 2]}]
  - stage: promote
"""


class Clock:
    """A clock that is set by hand, for all budgets of a study."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    make = StageBudget.__init__

    def make_with_clock(self: StageBudget, **given: object) -> None:
        make(self, **{"clock": clock, **given})

    monkeypatch.setattr(StageBudget, "__init__", make_with_clock)
    return clock


def run(
    folder: Path, *, progress: RecordingProgress | None = None, switch: Switch | None = None, **changed: str
) -> Rows:
    """Run the study with texts replaced; `budget` is that of the study."""
    text = STUDY
    if "budget" in changed:
        text = text.replace("seed: 3", f"seed: 3\nbudget: {changed.pop('budget')}")
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "study.yaml"
    file.write_text(text, encoding="utf-8")
    run_here(file, folder / "home", progress=progress, control=switch)
    return read_rows(folder / "home")


def states(rows: Rows) -> list[str]:
    return [trial.state for trial in rows.trials["train"]]


def notes(progress: RecordingProgress) -> str:
    return "\n".join(str(told.value) for told in progress.of("note"))


def test_a_training_ends_with_its_last_epoch_and_later_stages_run(tmp_path: Path, clock: Clock) -> None:
    def react(told: Told) -> None:
        if told == Told("epoch", "train", (1, 2)):
            clock.now += 3000

    progress = RecordingProgress(react)
    rows = run(tmp_path, budget="50m", progress=progress)
    assert rows.study.state == "complete"
    assert states(rows) == ["complete", "stopped"]
    cut = rows.trials["train"][1]
    assert cut.reason == "the budget of 50m ended it after epoch 2 of 4"
    assert cut.metrics["epochs"] == 2.0
    assert cut.metrics["val_accuracy"] == rows.curves["train"][1][-1].val_accuracy
    assert "stage 'train' is complete with 2 of 4 trials: the budget of 50m is used up" in notes(progress)
    assert len(rows.trials["averaging"]) >= 1
    assert rows.stages["promote"].state == "complete"


def test_a_larger_budget_continues_what_it_ended(tmp_path: Path, clock: Clock) -> None:
    def react(told: Told) -> None:
        if told == Told("epoch", "train", (1, 2)):
            clock.now += 3000

    run(tmp_path, budget="50m", progress=RecordingProgress(react))
    progress = RecordingProgress()
    rows = run(tmp_path, budget="3h", progress=progress)
    assert "1 training of stage 'train' continues that a budget had ended" in notes(progress)
    assert states(rows) == ["complete"] * 4
    assert rows.trials["train"][1].metrics["epochs"] == 4.0
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = run(whole)
    assert [trial.metrics["val_loss"] for trial in rows.trials["train"]] == [
        trial.metrics["val_loss"] for trial in expected.trials["train"]
    ]


def test_a_training_that_waits_when_the_budget_ends_keeps_what_it_has(tmp_path: Path, clock: Clock) -> None:
    switch = Switch()

    def stop(told: Told) -> None:
        switch.on |= told == Told("epoch", "train", (1, 2))

    run(tmp_path, budget="50m", progress=RecordingProgress(stop), switch=switch)
    with patch("orchestrator.store.repository.Store.spent_s", lambda *_, **__: 3000.0):  # of earlier executions
        rows = run(tmp_path, budget="50m")
    assert rows.study.state == "complete"
    assert states(rows) == ["complete", "stopped"]
    assert rows.trials["train"][1].metrics["epochs"] == 2.0


def test_a_budget_that_ends_before_any_result_interrupts_and_says_so(tmp_path: Path) -> None:
    rows = run(tmp_path, budget="0.001s")
    assert (rows.study.state, rows.stages["train"].state) == ("interrupted", "interrupted")
    assert rows.study.reason == "its budget of 0.001s ended before any trial had a result. Raise it"


def test_multiply_accumulates_and_trials_are_counted(tmp_path: Path) -> None:
    progress = RecordingProgress()
    rows = run(tmp_path, budget="{trials: 2}", progress=progress)
    assert states(rows) == ["complete"] * 2
    assert "complete with 2 of 4 trials: the budget of 2 trials is used up" in notes(progress)
    epoch = rows.curves["train"][0][0].training_macs
    (tmp_path / "macs").mkdir()
    rows = run(tmp_path / "macs", **{"num_trials: 4": f"num_trials: 4\n    budget: {{macs: {6.5 * epoch:.6g}}}"})
    assert states(rows) == ["complete", "stopped"]
    assert sum(len(curve) for curve in rows.curves["train"]) == 6


def test_a_search_that_no_longer_improves_ends_and_says_so(tmp_path: Path) -> None:
    progress = RecordingProgress()
    limit = {"num_trials: 4": "num_trials: 9\n    no_improvement: 2", "epochs: 4": "epochs: 2"}
    rows = run(tmp_path, progress=progress, **limit)
    accuracies = [trial.metrics["val_accuracy"] for trial in rows.trials["train"]]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 3 < 9
    assert "have brought no improvement" in notes(progress)


def test_fewer_points_than_trials_are_said_with_the_reason(tmp_path: Path) -> None:
    progress = RecordingProgress()
    averaging = {"num_trials: 3\n": "num_trials: 9\n", "epochs: 4": "epochs: 1", "window: [1, 2]": "window: 1"}
    run(tmp_path, progress=progress, **{**averaging, "num_trials: 4": "num_trials: 1"})
    assert "stage 'averaging' is complete with 2 of 9 trials: " in notes(progress)
