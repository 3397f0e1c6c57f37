"""A task that runs step by step, and the end of its process if it hangs."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

HANGS = """
import ctypes, os, sys, time
from pathlib import Path
from orchestrator.engines.ray import trainable as ray_trainable
from orchestrator.engines.ray.trainable import SteppedTask
from tests.ray_tasks import report
from trainers.config import TaskOutcome

ray_trainable._RENEW_S, ray_trainable._GRACE_S = 0.1, 0.4

def task(_, reporter):
    reporter.report(report(1, 0.5))
    HOW
    return TaskOutcome(state="complete")

stepped = SteppedTask(task, None, skip=0, stop_file=Path("stop"), silent_minutes=0.01)
print(stepped.advance().epoch, flush=True)
END
print(stepped.hangs, flush=True)
"""
KEEPS_OTHERS_OUT = "ctypes.PyDLL(None).sleep(1000)"  # with Python's lock


@pytest.mark.parametrize(
    ("how", "end", "status", "told"),
    [
        ("time.sleep(1000)", "print(stepped.advance().error)", 0, "1\nsilent\nTrue\n"),
        ("time.sleep(1000)", "stepped.end()", 0, "1\nTrue\n"),
        ("time.sleep(0.1)", "stepped.end(); time.sleep(2)", 0, "1\nFalse\n"),
        (KEEPS_OTHERS_OUT, "stepped.advance()", 1, "1\n"),
    ],
    ids=["in a step", "at the end", "not at all", "as a whole"],
)
def test_a_task_that_hangs_is_given_up_and_a_process_that_hangs_as_a_whole_ends(
    how: str, end: str, status: int, told: str
) -> None:
    code = HANGS.replace("HOW", how).replace("END", end)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == (told, status), done.stderr
