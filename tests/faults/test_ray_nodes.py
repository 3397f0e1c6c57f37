"""A study on a cluster whose nodes die and join, whose head dies, and whose driver dies."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.faults.driver import run
from tests.faults.killing import assert_epochs_are_kept
from tests.faults.on_ray import EACH, SHORT, on_ray, stage_folder, start_on_ray, wait_for_epochs, write_study
from tests.faults.ray_processes import WORKER, are_gone, comes_true, kill, named, started_by
from tests.faults.ray_troubles import witnessed
from tests.places import Place, assert_is_the_same_study, assert_rows_are_true, finished_epochs
from tests.ray_local import add_node, attached_to, ray_cluster
from tests.tiny import FinishedStudy

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")
pytestmark = pytest.mark.slow
NEW_NODE_S = 600.0
"""So long it may take until one works."""


@pytest.fixture(scope="module")
def cluster() -> Iterator["Cluster"]:
    """Its first node has no cores, so that trials run on others."""
    with ray_cluster(0) as cluster:
        yield cluster


def raylets(place: Place) -> set[int]:
    """Those whose workers have trained."""
    return {row["parent"] for row in witnessed(stage_folder(place, "train"))}


@pytest.mark.parametrize(("way", "database_url"), EACH, indirect=["database_url"])
def test_a_node_that_comes_gets_trials_and_those_of_one_that_dies_go_on_there(
    way: str, cluster: "Cluster", short: FinishedStudy, place: Place
) -> None:
    old = add_node(cluster, 1)
    driver = start_on_ray(place, write_study(place, on_ray(SHORT, way)), "use_slower", **attached_to(cluster))
    wait_for_epochs(place, 1, driver)
    new = add_node(cluster, 1)
    assert comes_true(lambda: new in raylets(place) or not driver.is_alive(), NEW_NODE_S), driver.err
    assert driver.is_alive(), driver.err
    before = finished_epochs(place)
    kill([*started_by(old), old])
    (stage_folder(place, "train") / "hurry").touch()
    assert driver.wait() == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, short)
    assert place.query("SELECT count(*) FROM attempts WHERE state = 'lost'")[0][0] >= 1
    assert raylets(place) == {old, new}
    assert place.rows().executions == ["complete"]
    kill([*started_by(new), new])


@pytest.mark.parametrize(("way", "database_url"), [("engine", "postgresql")], indirect=["database_url"])
def test_a_driver_killed_on_a_cluster_takes_its_workers_along_and_the_next_one_goes_on(
    way: str, cluster: "Cluster", short: FinishedStudy, place: Place
) -> None:
    raylet = add_node(cluster, 2)
    file = write_study(place, on_ray(SHORT, way))
    driver = start_on_ray(place, file, "use_slow", **attached_to(cluster))
    wait_for_epochs(place, 3, driver)
    workers = [*named(raylet, f"{WORKER}Task"), *named(raylet, f"{WORKER}Trial")]
    assert workers
    driver.kill()
    driver.wait()
    assert are_gone(workers)
    before = finished_epochs(place)
    driver = run(place, "run", file, "--quiet", **attached_to(cluster))
    assert driver.process.exitcode == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, short)
    assert place.rows().executions == ["lost", "complete"]
    kill([*started_by(raylet), raylet])


@pytest.mark.parametrize(("way", "database_url"), [("pool", "sqlite")], indirect=["database_url"])
def test_a_study_whose_cluster_loses_its_head_says_so_and_goes_on_elsewhere(
    way: str, short: FinishedStudy, place: Place
) -> None:
    file = write_study(place, on_ray(SHORT, way))
    with ray_cluster(2) as cluster:
        address = cluster.address
        driver = start_on_ray(place, file, "use_slow_impatiently", **attached_to(cluster))
        wait_for_epochs(place, 3, driver)
        (head,) = cluster.head_node.all_processes["gcs_server"]
        kill([head.process.pid])
        assert driver.wait() == 1, driver.err
        assert f"the head (GCS) of the Ray cluster {address}" in driver.err
        assert "Traceback" not in driver.err
        assert_rows_are_true(place)
        study = place.rows().study
        assert (study.state, "unset RAY_ADDRESS" in (study.reason or "")) == ("interrupted", True)
        refused = run(place, "run", file, "--quiet", RAY_ADDRESS=address)
        assert refused.process.exitcode == 1
        assert "does not answer" in refused.err
        before = finished_epochs(place)
        driver = run(place, "run", write_study(place, SHORT), "--quiet")
        assert driver.process.exitcode == 0, driver.err
    assert_epochs_are_kept(place, before)
    assert_rows_are_true(place)
    assert_is_the_same_study(place, short)
    assert place.rows().executions == ["interrupted", "interrupted", "complete"]
