"""Kills the driver of a study at given moments, once at each, and then lets the study end."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.faults.driver import TIMEOUT_S, Driver, Kill, run, start
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, finished_epochs
from tests.tiny import FinishedStudy, write_tiny


class Moment(NamedTuple):
    """When a process is killed from outside: after the study came so far, and so long after that."""

    steps: int
    seconds: float


def moments_over(num_steps: int, *, count: int, seed: int) -> list[Moment]:
    """Moments in equal parts of the work, each at a random place in its part."""
    rng = random.Random(seed)
    part = (num_steps - 1) / count
    return [Moment(1 + int(part * (index + rng.random())), rng.uniform(0, 0.1)) for index in range(count)]


def wait_for(place: Place, moment: Moment, driver: Driver) -> None:
    """Until the study has come so far, or its driver has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    with place.watch() as query:
        while query.steps() < moment.steps and driver.is_alive():
            assert time.monotonic() < deadline, f"the study does not come forward: {driver.err[-2000:]}"
            time.sleep(0.002)
    time.sleep(moment.seconds)


def kill_and_resume(
    tiny: FinishedStudy,
    place: Place,
    moments: Sequence[Moment | Kill],
    *,
    file: Path | None = None,
    killed: Callable[[Driver], None] = lambda _: None,
    **environment: str,
) -> Sequence[str]:
    """Kill a study at each moment, resume it to its end, and compare it with the undisturbed one.

    Args:
        tiny: The undisturbed study.
        place: Where to run it.
        moments: At which its driver is killed.
        file: Of the study, where it is not the tiny one.
        killed: Called with each driver after its death.
        environment: Of the drivers.

    Returns:
        The states of its executions, oldest first.
    """
    file = file or write_study(place)
    for moment in moments:
        before = finished_epochs(place)
        kills = [moment] if isinstance(moment, Kill) else []
        driver = start(place, "run", file, "--quiet", kills=kills, **environment)
        if isinstance(moment, Moment):
            wait_for(place, moment, driver)
            driver.kill()
        assert driver.wait() == -signal.SIGKILL, f"{moment}: {driver.err[-2000:]}"
        assert_epochs_are_kept(place, before)
        killed(driver)
    before = finished_epochs(place)
    driver = run(place, "run", file, "--quiet", **environment)
    assert driver.process.exitcode == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, tiny)
    executions = place.rows().executions
    assert Counter(executions)["lost"] <= len(moments)
    assert executions[-1] == "complete"
    return executions


def assert_epochs_are_kept(place: Place, before: dict[tuple[int, int], str]) -> None:
    """An epoch that was reported is not trained again."""
    kept = finished_epochs(place)
    assert {key: kept[key] for key in before} == before


def write_study(place: Place, **replaced: str) -> Path:
    """The tiny study's file beside the home."""
    place.home.parent.mkdir(exist_ok=True)
    return write_tiny(place.home.parent, **replaced)
