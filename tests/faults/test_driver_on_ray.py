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
pytestmark = pytest.mark.slow

STORE = "orchestrator.store.repository:Store"
ON_WORKERS = [
    Kill(f"{STORE}.begin_trial", "after", "screen", 3),
    Kill(f"{STORE}.add_report", "after", "train", 4),
    Kill(f"{STORE}.begin_trial", "before", "averaging", 2),
]
"""In each stage with another kind of task for Ray's workers."""


class Killed:
    """The drivers that were killed; their Ray must end soon, and the next one must clear away what it left."""

    def __init__(self) -> None:
        self._processes: list[int] = []

    def __call__(self, driver: Driver) -> None:
        self._processes.append(driver.process.pid)
        rays = started_in(folders_of(driver.process.pid))
        assert are_gone(rays), [described(process) for process in rays]

    def assert_nothing_is_left(self) -> None:
        assert self._processes
        assert [folder for process in self._processes for folder in folders_of(process)] == []


@pytest.mark.parametrize(("way", "database_url"), [("pool", "sqlite")], indirect=["database_url"])
def test_a_driver_on_ray_killed_in_stages_with_workers_ends_the_same_study(
    way: str, whole: FinishedStudy, place: Place
) -> None:
    killed, file = Killed(), write_study(place, on_ray(WHOLE, way))
    executions = kill_and_resume(whole, place, ON_WORKERS, file=file, killed=killed, VITSEARCH_TRACKING="on")
    killed.assert_nothing_is_left()
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_run_tree(place.home, whole, num_executions=len(executions))


@pytest.mark.parametrize(("way", "database_url"), [("engine", "postgresql")], indirect=["database_url"])
def test_a_driver_on_ray_killed_at_random_moments_ends_the_same_study(
    way: str, short: FinishedStudy, place: Place
) -> None:
    with place_of(short).watch() as query:
        moments = moments_over(query.steps(), count=2, seed=23)
    killed, file = Killed(), write_study(place, on_ray(SHORT, way))
    kill_and_resume(short, place, moments, file=file, killed=killed)
    killed.assert_nothing_is_left()
