"""What earlier growths of a study mean for its runs in MLflow and for its trainings."""

from orchestrator.store.past_growths import KEY, Growths, PastGrowth
from orchestrator.store.records import ExecutionRecord
from tests.fakes import make_stage
from tests.unit.test_run_tree import STUDY, RunTree

FIRST = PastGrowth(stages=("train", "promote"), repeated=("promote",), rerun={"train": (0, 1)}, longer={"train": 2})
SECOND = PastGrowth(stages=("train",), longer={"train": 4})


def test_stages_and_trials_that_ran_again_have_the_number_of_the_growth() -> None:
    growths = Growths([FIRST, SECOND])
    assert [growths.latest_of_stage(name) for name in ("train", "promote", "screen")] == [2, 1, 0]
    assert [growths.latest_of_trial("train", number) for number in (0, 1, 2)] == [1, 1, 0]
    assert growths.latest_of_trial("promote", 5) == 1
    assert growths.earlier_epochs("train") == (2, 4)
    assert growths.earlier_epochs("promote") == ()


def test_runs_before_and_after_a_growth_have_different_keys() -> None:
    before, after = RunTree(STUDY, ""), RunTree(STUDY, "", growths=Growths().followed_by(FIRST))
    train = make_stage("train")
    assert after.stage_key(train) == f"{before.stage_key(train)}@1"
    assert after.trial_key(train, 1) == f"{before.trial_key(train, 1)}@1"
    assert after.trial_key(train, 7) == before.trial_key(train, 7)


def test_growths_are_read_from_the_executions() -> None:
    setups = [None, {"engine": "optuna"}, {KEY: {**FIRST.model_dump(mode="json"), "of a later version": 1}}]
    executions = [
        ExecutionRecord(
            id=number,
            study_id=1,
            number=number,
            state="complete",
            reason=None,
            host="h",
            pid=1,
            code_version="1",
            setup=setup,
            started_at=0.0,
            ended_at=1.0,
        )
        for number, setup in enumerate(setups)
    ]
    assert Growths.of(executions).latest_of_stage("train") == 1
