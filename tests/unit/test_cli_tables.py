"""Tables of the command line fit 80 columns and keep the names that other commands need."""

import io
from typing import Any

from rich.console import Console, RenderableType

from orchestrator.cli.list_tables import study_table
from orchestrator.cli.tables import status_report, study_report, time_error_lines


def printed(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, color_system=None)
    console.print(renderable, crop=False)
    return console.export_text()


def test_the_list_of_studies_shows_whole_names_in_80_columns() -> None:
    row: dict[str, Any] = {
        "study": "digits-quickstart",
        "state": "interrupted",
        "stages_done": 5,
        "stages": 6,
        "test_accuracy": 0.9889,
        "num_bytes": 174_000_000,
        "updated": "2026-11-27 01:14",
    }
    lines = printed(study_table([row])).splitlines()
    assert len(lines) == 2
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[1].split()[:4] == ["digits-quickstart", "interrupted", "5/6", "98.89"]
    assert "2026-11-27 01:14" in lines[1]


def test_the_status_shows_a_whole_topology_in_80_columns() -> None:
    topology = "as-vit:5,8,6,1|4,1,4,1|4,1,2,1|3,1,4,1|32,16"
    stage = {"name": "grow", "state": "failed", "trials": {"complete": 64}, "wall_time_s": 137.5, "reason": topology}
    summary = {
        "study": "photos",
        "state": "running",
        "reason": None,
        "stages": [stage],
        "data": None,
        "leaderboard": [],
        "champion": None,
        "tracking": {"owed": 0, "rejected": 0},
    }
    lines = printed(status_report(summary)).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    column = lines[1].index("result")
    shown = [line[column:].strip() for line in lines[2:]]
    assert "".join(shown) == topology
    assert all(part.endswith("|") for part in shown[:-1])  # it is cut between its parts


def test_the_status_wraps_sentences_between_words() -> None:
    sentence = "every node of the cluster must be able to run trials, but gpu-1 did not answer for 5 minutes"
    stage = {"name": "screen", "state": "interrupted", "trials": {}, "wall_time_s": None, "reason": sentence}
    summary = {
        "study": "photos",
        "state": "interrupted",
        "reason": None,
        "stages": [stage],
        "data": None,
        "leaderboard": [],
        "champion": None,
        "tracking": {"owed": 0, "rejected": 0},
    }
    lines = printed(status_report(summary)).splitlines()
    column = lines[1].index("result")
    assert " ".join(line[column:].strip() for line in lines[2:]) == sentence
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_the_next_commands_of_a_services_study_work_there() -> None:
    summary = {
        "study": "ann~photos",
        "leaderboard": [],
        "front": [],
        "correlation": None,
        "champion": None,
    }
    here, there = printed(study_report(summary)), printed(study_report(summary, is_remote=True))
    assert "vitsearch ui ann~photos" in here
    assert "vitsearch ui" not in there
    assert "vitsearch compare ann~photos" in there


def test_the_status_tells_how_well_the_time_of_trainings_was_predicted() -> None:
    (line,) = time_error_lines({"time_error": {"num_trainings": 9, "median_error": 0.123}})
    assert "median error 12 % (9 trainings)" in line.plain
    assert len(line.plain) <= 80
    on_gpu = time_error_lines({"time_error": {"num_trainings": 1, "median_error": 0.1, "memory_error": 0.04}})
    assert [line.plain.rpartition("median error ")[2] for line in on_gpu] == ["10 % (1 training)", "4 %"]
    assert time_error_lines({"time_error": None}) == []


def test_the_status_ranks_by_the_metric_of_the_study_as_the_report_of_a_run_does() -> None:
    row = {
        "trial": 2,
        "val_accuracy": 0.7887,
        "val_loss": 0.5445,
        "val_balanced_accuracy": 0.6948,
        "parameters": 276_995,
    }
    summary: dict[str, Any] = {
        "study": "photos-of-flowers-from-the-botanical-garden-by-season",
        "state": "complete",
        "reason": None,
        "stages": [],
        "data": None,
        "leaderboard": [row | {"wall_time_s": 36.2, "topology": "as-vit:5,4,5,1|3,1,6,1|4,1,2,1|2,1,2,1|64,16"}],
        "metric": {"choice": {"name": "balanced-accuracy"}, "direction": "maximize", "is_fraction": True},
        "ranked_by": "val_balanced_accuracy",
        "baseline": {"val_balanced_accuracy": 1 / 3},
        "certainty": None,
        "time_error": None,
        "front": [],
        "correlation": None,
        "champion": None,
        "tracking": {"owed": 0, "rejected": 0},
    }
    for text in (printed(status_report(summary)), printed(study_report(summary))):
        assert "val. balanced accuracy (%)" in text
        assert "69.48" in text
        assert "val. loss" not in text
    assert max(map(len, text.splitlines())) <= 80
