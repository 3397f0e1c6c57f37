"""If the driver that started Ray is killed, Ray ends too, and the same command completes the same study."""

import pytest

from tests.faults.driver import Driver, Kill
from tests.faults.killing import kill_and_resume, moments_over
from tests.faults.on_ray import SHORT, WHOLE, on_ray, write_study
from tests.faults.ray_processes import are_gone, described, folders_of, started_in
from tests.places import Place, place_of
from tests.run_tree import assert_run_tree
from tests.tiny import FinishedStudy

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STORE = "orchestrator.store.repository:Store"
IN_EVERY_STAGE = [
    Kill(f"{STORE}.begin_trial", "after", "screen", 3),
    Kill(f"{STORE}.end_stage", "before", "grow"),
    Kill(f"{STORE}.add_report", "after", "train", 4),
    Kill(f"{STORE}.begin_trial", "after", "stopping", 2),
    Kill(f"{STORE}.begin_trial", "before", "averaging", 2),
    Kill(f"{STORE}.begin_stage", "after", "correlate"),
    Kill(f"{STORE}.end_stage", "before", "promote"),
]


class Killed:
    """The drivers that were killed; their Ray must end soon, and the next one must clear away what it left."""

    def __init__(self) -> None:
        self._processes: list[int] = []

    def __call__(self, driver: Driver) -> None:
        self._processes.append(driver.process.pid)
        rays = started_in(folders_of(driver.process.pid))
        assert are_gone(rays, within_s=60.0), [described(process) for process in rays]

    def assert_nothing_is_left(self) -> None:
        assert self._processes
        assert [folder for process in self._processes for folder in folders_of(process)] == []


@pytest.mark.parametrize(("way", "database_url"), [("pool", "sqlite")], indirect=["database_url"])
def test_a_driver_on_ray_killed_in_every_stage_ends_the_same_study(
    way: str, whole: FinishedStudy, place: Place
) -> None:
    killed, file = Killed(), write_study(place, on_ray(WHOLE, way))
    executions = kill_and_resume(whole, place, IN_EVERY_STAGE, file=file, killed=killed, VITSEARCH_TRACKING="on")
    killed.assert_nothing_is_left()
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_run_tree(place.home, whole, num_executions=len(executions))


@pytest.mark.parametrize(("way", "database_url"), [("engine", "postgresql")], indirect=["database_url"])
def test_a_driver_on_ray_killed_at_random_moments_ends_the_same_study(
    way: str, short: FinishedStudy, place: Place
) -> None:
    with place_of(short).watch() as query:
        moments = moments_over(query.steps(), count=3, seed=23)
    killed, file = Killed(), write_study(place, on_ray(SHORT, way))
    kill_and_resume(short, place, moments, file=file, killed=killed)
    killed.assert_nothing_is_left()
