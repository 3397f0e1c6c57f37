"""A report names the machine or the cluster of a study in words for readers who did not run it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.study.report_sections import machine_text


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("RAY_ADDRESS names the cluster 10.0.0.1:6379", "Ray cluster 10.0.0.1:6379"),
        (
            "2 CPU cores, no GPU: running up to 2 trials at a time",
            "2 CPU cores, no GPU: running up to 2 trials at a time",
        ),
    ],
)
def test_the_machine_of_a_study_is_named(recorded: str, shown: str) -> None:
    reported = cast("Any", SimpleNamespace(executions=[SimpleNamespace(setup={"reason": recorded})]))
    assert machine_text(reported) == shown
