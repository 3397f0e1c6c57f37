"""The time left in a search, as a study tells it to its display, and its error in the result."""

from pathlib import Path
from typing import Any

import yaml

from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import read_rows, run_here

TOPOLOGIES = ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4", "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,8"]
STUDY: dict[str, Any] = {
    "study": "timed",
    "data": {"source": "digits", "max_images": 120, "max_test_images": 60},
    "pool": "inline",
    "stages": [
        {
            "stage": "train",
            "topologies": TOPOLOGIES,
            "num_trials": 4,
            "epochs": 2,
            "recipe": {"batch_size": 32, "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
        }
    ],
}


class TimedProgress(RecordingProgress):
    """A display that shows the time left."""

    def time_left(self, seconds: float) -> None:
        assert seconds >= 0
        self._tell("time left", seconds)


def test_the_time_left_is_told_from_the_first_epoch_on_and_after_a_resume_at_once(tmp_path: Path) -> None:
    file, home = tmp_path / "timed.yaml", tmp_path / "home"
    file.write_text(yaml.safe_dump(STUDY))
    switch = Switch()

    def stop_in_second_trial(told: Told) -> None:
        switch.on = switch.on or (told.what == "epoch" and told.value == (1, 1))

    first = TimedProgress(stop_in_second_trial)
    assert run_here(file, home, progress=first, control=switch).state == "interrupted"
    what = [told.what for told in first.told if told.what in ("epoch", "time left")]
    assert what[:2] == ["epoch", "time left"]

    second = TimedProgress()
    assert run_here(file, home, progress=second).state == "complete"
    what = [told.what for told in second.told if told.what in ("epoch", "time left")]
    assert what[0] == "time left"  # known from the first trial
    assert second.of("time left")[-1].value == 0.0

    error = read_rows(home, "timed").stages["train"].result["time_error"]
    assert error["num_trainings"] == 3
    assert error["median_error"] >= 0
