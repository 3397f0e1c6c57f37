"""Progress of a study: plain lines in a log, live bars in a terminal, with the same content."""

import io

import pytest
from rich.console import Console

from orchestrator.cli.progress import LiveProgress, PlainProgress
from orchestrator.stages.progress import as_percent
from tests.fakes import make_stage, make_trial
from trainers.config import EpochReport

REPORT = EpochReport(
    epoch=3, train_loss=1.0, val_loss=1.0, val_accuracy=0.5, learning_rate=0.1, num_images=9, wall_time_s=0.1
)
DISPLAYS = pytest.mark.parametrize(("display", "terminal"), [(PlainProgress, False), (LiveProgress, True)])


def trained(number: int, accuracy: float, **fields):
    return make_trial(number, metrics={"val_accuracy": accuracy, "epochs": 4.0}, **fields)


def shown(display: type, *, terminal: bool, tell) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=160, color_system=None, highlight=False)
    with display(console) as progress:
        tell(progress)
    return buffer.getvalue()


@DISPLAYS
def test_a_stage_is_told_with_trials_done_best_and_summary(display: type, terminal: bool) -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("train"), total=3, done=0)
        for number in range(3):
            progress.epoch(trained(number, 0.5), REPORT)
            progress.trial_ended(trained(number, 0.5 + number / 10), best="val_accuracy 70.0 % (trial 2)")
        progress.stage_ended(make_stage("train", state="complete"), "3 trials; best 70.0 %")

    text = shown(display, terminal=terminal, tell=tell)
    assert "train" in text
    assert "3 trials; best 70.0 %" in text
    assert ("3/3" if terminal else "3 of 3") in text


@DISPLAYS
def test_failures_and_notes_are_shown_as_they_are(display: type, terminal: bool) -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("train"), total=3, done=1)
        progress.trial_ended(make_trial(1, state="failed", reason="out of memory: [12 GiB]"), best=None)
        progress.stage_ended(make_stage("train", state="failed"), "all trials failed")
        progress.note("MLflow [away]")

    text = shown(display, terminal=terminal, tell=tell)
    assert "trial 1 failed: out of memory: [12 GiB]" in text
    assert "MLflow [away]" in text
    assert "failed: all trials failed" in text


@DISPLAYS
def test_stages_without_trials_and_several_stages_are_told(display: type, terminal: bool) -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("screen"), total=1, done=0)
        progress.trial_ended(make_trial(0, metrics={"params": 3.0}), best=None)
        progress.stage_ended(make_stage("screen", state="complete"), "1 topology")
        progress.stage_ended(make_stage("promote", state="interrupted"), "a stop was requested")

    text = shown(display, terminal=terminal, tell=tell)
    assert "1 topology" in text
    assert "promote" in text
    assert "interrupted: a stop was requested" in text


def test_plain_lines_say_where_a_stage_goes_on_and_how_long_it_takes() -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("train"), total=4, done=2)
        progress.trial_ended(trained(2, 0.5), best=None)

    lines = shown(PlainProgress, terminal=False, tell=tell).splitlines()
    assert lines[0] == "train: resumed at 2 of 4"
    assert lines[1].startswith("train: 3 of 4, trial 2 complete in 1.0 s, 50.0 %")
    assert lines[1].endswith("left")


def test_quick_trials_do_not_fill_a_log() -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("screen"), total=500, done=0)
        for number in range(500):
            progress.trial_ended(make_trial(number, metrics={"params": 1.0}), best=None)

    assert len(shown(PlainProgress, terminal=False, tell=tell).splitlines()) == 1


def test_fractions_are_shown_as_percent() -> None:
    assert as_percent(0.97777) == "97.8 %"
