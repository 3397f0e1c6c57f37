"""Progress of a study: plain lines in a log, live bars in a terminal, with the same content."""

import io

import pytest
from rich.console import Console

from orchestrator.cli.progress import LiveProgress, PlainProgress, RemainingTime, StageLine, short_time
from orchestrator.stages.progress import ShowsTimeLeft, as_percent
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
            progress.epoch(trained(number, 0.5), REPORT, value="50.0 %")
            progress.trial_ended(trained(number, 0.5 + number / 10), best="70.0 % (trial 2)")
        progress.stage_ended(make_stage("train", state="complete"), "3 trials; best 70.0 %")

    text = shown(display, terminal=terminal, tell=tell)
    assert "train" in text
    assert "3 trials; best 70.0 %" in text
    assert terminal or "3 of 3" in text


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
        progress.epoch(trained(2, 0.5), REPORT, value="50.0 %")
        progress.trial_ended(trained(2, 0.5), best=None)

    lines = shown(PlainProgress, terminal=False, tell=tell).splitlines()
    assert lines[0] == "train: resumed at 2 of 4"
    assert lines[1].startswith("train: 3 of 4, trial 2 complete, 50.0 %")
    assert lines[1].endswith("left")


def test_the_last_trial_of_a_stage_tells_no_time_left() -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("train"), total=1, done=0)
        progress.epoch(trained(0, 0.5), REPORT, value="50.0 %")
        progress.trial_ended(trained(0, 0.5), best=None)

    assert shown(PlainProgress, terminal=False, tell=tell).splitlines()[1].endswith("trial 0 complete, 50.0 %")


def test_quick_trials_do_not_fill_a_log() -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("screen"), total=500, done=0)
        for number in range(500):
            progress.trial_ended(make_trial(number, metrics={"params": 1.0}), best=None)

    assert len(shown(PlainProgress, terminal=False, tell=tell).splitlines()) == 1


def test_fractions_are_shown_as_percent() -> None:
    assert as_percent(0.97777) == "97.8 %"


class Clock:
    """A clock that only a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_pause_is_part_of_no_time() -> None:
    def tell(progress) -> None:
        progress.stage_began(make_stage("train"), total=4, done=2)
        paused = trained(2, 0.5, started_at=0.0, ended_at=86_400.0)
        paused.metrics["wall_time_s"] = 12.34
        progress.epoch(paused, REPORT, value="50.0 %")
        progress.trial_ended(paused, best=None)

    assert "trial 2 complete in 12.3 s, 50.0 %" in shown(PlainProgress, terminal=False, tell=tell)


def test_the_time_left_counts_only_trials_that_ended_here() -> None:
    clock = Clock()
    left = RemainingTime(total=10, done=6, clock=clock)
    clock.now += 30
    assert left.left_s is None
    left.trial_ended(trained(6, 0.5))
    assert (left.done, left.left_s) == (7, 90)
    clock.now += 30
    left.trial_ended(trained(7, 0.5))
    assert left.left_s == 60
    left.trial_ended(trained(8, 0.5))
    left.trial_ended(trained(9, 0.5))
    assert left.left_s == 0


def test_the_time_left_counts_the_epochs_of_trials_that_run() -> None:
    clock = Clock()
    left = RemainingTime(total=4, done=0, clock=clock)
    clock.now += 30
    left.epoch_ended(trained(1, 0.5), REPORT.model_copy(update={"epoch": 2}))
    assert left.left_s is None
    left.trial_ended(trained(0, 0.5))  # after 4 epochs, so half of the other is done
    assert left.left_s == pytest.approx(30 / 1.5 * 2.5)
    left.trial_ended(trained(1, 0.5))
    assert left.left_s == pytest.approx(30)


def test_an_estimate_by_the_stage_has_priority_and_runs_down() -> None:
    clock = Clock()
    left = RemainingTime(total=4, done=0, clock=clock)
    left.expect(100.0)
    clock.now += 30
    assert left.left_s == pytest.approx(70.0)
    left.trial_ended(trained(0, 0.5))
    assert left.left_s == pytest.approx(70.0)
    clock.now += 90
    assert left.left_s == 0.0


@DISPLAYS
def test_a_display_shows_the_estimate_of_the_stage(display: type, terminal: bool) -> None:
    def tell(progress) -> None:
        assert isinstance(progress, ShowsTimeLeft)
        progress.stage_began(make_stage("train"), total=3, done=0)
        progress.time_left(600.0)
        progress.epoch(trained(0, 0.5), REPORT, value="50.0 %")
        if not terminal:
            progress.trial_ended(trained(0, 0.5), best=None)

    assert "10 min left" in shown(display, terminal=terminal, tell=tell)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_live_line_keeps_what_matters_in_a_narrow_terminal(width: int) -> None:
    clock = Clock()
    line = StageLine("train", RemainingTime(total=120, done=40, clock=clock))
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True, color_system=None)
    clock.now += 600
    console.print(line)
    line.latest = "(trial 41, epoch 12: 95.1 %)"
    console.print(line)
    for number in range(40, 50):
        line.time.trial_ended(trained(number, 0.5))
    line.best = "97.8 % (trial 44)"
    console.print(line)
    first, second, third = console.export_text().splitlines()
    assert max(map(len, (first, second, third))) <= width - len("^C")  # which a terminal adds
    assert first.split()[0] == "train"
    assert "━━──" in first
    assert "40/120" in first
    assert "10 min so far" in first
    assert "(trial 41, epoch 12: 95.1 %)" in second
    assert "50/120" in third
    assert "70 min left" in third
    assert "best 97.8 % (trial 44)" in third
    assert ("(trial 41, epoch 12: 95.1 %)" in third) == (width > 80)


def test_a_finished_stage_leaves_one_aligned_line() -> None:
    def tell(progress) -> None:
        for name in ("screen", "train"):
            progress.stage_began(make_stage(name), total=1, done=0)
            progress.trial_ended(trained(0, 0.5), best="50.0 % (trial 0)")
            progress.stage_ended(make_stage(name, state="complete"), f"summary of {name}")
        progress.stage_ended(make_stage("promote", state="complete"), "summary of promote")

    lines = [line for line in shown(LiveProgress, terminal=True, tell=tell).splitlines() if "summary" in line]
    assert len(lines) == 3
    assert len({line.index("summary") for line in lines if "\x1b" not in line}) <= 1


def test_a_short_time_has_one_unit_or_hours_and_minutes() -> None:
    shown_times = [short_time(seconds) for seconds in (0.4, 45, 99, 100, 5900, 6000, 12_000)]
    assert shown_times == ["0 s", "45 s", "99 s", "2 min", "98 min", "1 h 40", "3 h 20"]
