"""Assertions about the runs that MLflow shows after the tiny study has ended."""

from pathlib import Path

import pytest

from tests.tiny import FinishedStudy


def assert_run_tree(home: Path, tiny: FinishedStudy, *, num_executions: int = 1) -> None:
    """Assert that MLflow shows executions with their stages, and the trials of the train stage with their curves."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], max_results=1000)
    by_level: dict[str, dict] = {"execution": {}, "stage": {}, "trial": {}}
    for run in runs:
        tags = run.data.tags
        by_level[tags["vitsearch.level"]][tags.get("vitsearch.trial", run.info.run_name)] = run
    assert len(runs) == sum(len(named) for named in by_level.values())
    executions = [by_level["execution"][name] for name in sorted(by_level["execution"])]
    assert [run.info.status for run in executions] == [*["KILLED"] * (num_executions - 1), "FINISHED"]
    assert {run.info.status for level in ("stage", "trial") for run in by_level[level].values()} == {"FINISHED"}
    for execution in executions:
        assert {one.dataset.name for one in execution.inputs.dataset_inputs} == {"digits"}
    assert set(by_level["stage"]) == set(tiny.rows.stages)
    parents = {run.data.tags["mlflow.parentRunId"] for run in by_level["stage"].values()}
    assert parents == {executions[-1].info.run_id}
    assert not any(
        "vitsearch.reason" in run.data.tags for level in ("stage", "trial") for run in by_level[level].values()
    )
    assert len(by_level["trial"]) == len(tiny.rows.trials["train"])
    train = by_level["stage"]["train"].info.run_id
    for run, trial, curve in zip(
        (by_level["trial"][name] for name in sorted(by_level["trial"], key=int)),
        tiny.rows.trials["train"],
        tiny.rows.curves["train"],
        strict=True,
    ):
        assert run.data.tags["mlflow.parentRunId"] == train
        assert run.data.params["topology"] == trial.point["topology"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
            [report.val_accuracy for report in curve], rel=1e-3
        )
    trials = sorted(by_level["trial"].values(), key=lambda run: run.data.metrics["rank"])
    assert [run.data.metrics["rank"] for run in trials] == list(range(1, len(trials) + 1))
    order = [(-run.data.metrics["val_accuracy"], run.data.metrics["val_loss"]) for run in trials]
    assert order == sorted(order)
    assert [run for run in trials if run.info.run_name.startswith("★")] == [
        by_level["trial"][str(tiny.champion["trial"])]
    ]
    assert all(
        run.info.run_name.lstrip("★ ").startswith(f"{int(name):02d} · ") for name, run in by_level["trial"].items()
    )
    assert ("vitsearch.grown_from" in by_level["trial"]["0"].data.tags) == ("grow" in tiny.rows.stages)
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.run_id == by_level["stage"]["promote"].info.run_id
    assert float(champion.tags["test_accuracy"]) == pytest.approx(tiny.champion["test_accuracy"], abs=1e-4)
