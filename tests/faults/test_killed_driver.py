"""If the driver is killed with SIGKILL at any moment, the same command completes the same study."""

import pytest

from tests.faults.driver import Kill
from tests.faults.killing import kill_and_resume, moments_over
from tests.places import Place, place_of
from tests.run_tree import assert_run_tree
from tests.tiny import FinishedStudy

pytestmark = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)

STORE = "orchestrator.store.repository:Store"
TELL = "orchestrator.engines.suggester:OptunaSuggester.tell"
STAGES = ("screen", "grow", "train", "stopping", "averaging", "correlate", "promote")
SEARCHES = ("screen", "train", "stopping", "averaging")


def in_every_stage() -> list[Kill]:
    """Between any two things that are written down."""
    found = [Kill(f"{STORE}.begin_execution", "before"), Kill(f"{STORE}.begin_execution", "after")]
    for stage in STAGES:
        found.append(Kill(f"{STORE}.begin_stage", "after", stage))
        if stage == "train":
            found += [
                # A checkpoint of an unreported epoch.
                Kill("trainers.training.checkpoints:write_folder", "after", stage, 2),
                Kill("trainers.training.checkpoints:prune", "before", stage, 3),
            ]
        if stage in SEARCHES:
            found += [
                Kill(f"{STORE}.begin_trial", "before", stage),  # asked for, not written
                Kill(f"{STORE}.begin_trial", "after", stage),  # written, not done
                Kill(TELL, "before", stage),  # done, neither written nor told to the sampler
                Kill(f"{STORE}.begin_trial", "before", stage, 2),  # told, not written
                Kill(f"{STORE}.begin_trial", "after", stage),  # written, together with the next one
                Kill(f"{STORE}.end_trial", "before", stage),  # the last one is done, not written
                Kill(f"{STORE}.end_trial", "after", stage),
            ]
        if stage == "train":
            # The checkpoints of some trials are dropped.
            found.append(Kill("trainers.training.checkpoints:retire", "after", stage, 3))
        if stage == "promote":
            found.append(Kill("trainers.champion:save_model", "after", stage))
        found += [Kill(f"{STORE}.end_stage", "before", stage), Kill(f"{STORE}.end_stage", "after", stage)]
    return [*found, Kill(f"{STORE}.end_execution", "before")]


def test_a_driver_killed_between_two_writes_ends_the_same_study(tiny: FinishedStudy, place: Place) -> None:
    kill_and_resume(
        tiny,
        place,
        [
            Kill(f"{STORE}.begin_execution", "after"),
            Kill(f"{STORE}.begin_trial", "before", "screen", 5),
            Kill(f"{STORE}.begin_trial", "before", "train", 3),
            Kill("trainers.training.checkpoints:write_folder", "after", "train", 2),
            Kill(f"{STORE}.end_stage", "before", "promote"),
        ],
    )


@pytest.mark.slow
def test_a_driver_killed_in_every_stage_ends_the_same_study(tiny: FinishedStudy, place: Place) -> None:
    moments = in_every_stage()
    # Where transactions begin and end does not depend on the database: every fifth moment is enough for PostgreSQL.
    kill_and_resume(tiny, place, moments[::5] if place.is_postgres else moments)


@pytest.mark.slow
def test_a_driver_killed_at_random_moments_ends_the_same_study(tiny: FinishedStudy, place: Place) -> None:
    with place_of(tiny).watch() as query:
        steps = query.steps()
    kill_and_resume(tiny, place, moments_over(steps, count=5 if place.is_postgres else 10, seed=11))


@pytest.mark.slow
def test_mlflow_is_told_one_tree_of_a_study_that_was_killed(tiny: FinishedStudy, place: Place) -> None:
    moments = [
        Kill(f"{STORE}.begin_execution", "after"),
        Kill(f"{STORE}.begin_stage", "after", "screen"),
        Kill(f"{STORE}.begin_trial", "after", "train", 2),
        Kill(TELL, "before", "train", 2),
        Kill(f"{STORE}.end_stage", "before", "averaging"),
    ]
    executions = kill_and_resume(tiny, place, moments, VITSEARCH_TRACKING="on")
    assert place.query("SELECT count(*) FROM outbox WHERE rejected = 1 OR delivered_at IS NULL") == [(0,)]
    assert_run_tree(place.home, tiny, num_executions=len(executions))
