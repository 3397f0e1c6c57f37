"""Declarations of all stages, and stage results of older versions."""

import json
import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrator.spec.stage_registry import STAGES
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.kind import stage_kind
from orchestrator.stages.screen import SCREEN, RankedTopology
from orchestrator.store.records import StageRecord
from orchestrator.store.repository import Store
from tests.fakes import make_stage

HOME = Path(__file__).parents[1] / "golden" / "homes" / "0.1.0" / "home"
"""A home of version 0.1.0, whose results have neither a ranking nor trained trials."""


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_registered_under_its_own_word(name: str) -> None:
    kind = stage_kind(name)
    assert get_args(kind.model.model_fields["stage"].annotation) == (name,)
    assert kind.model.model_fields["name"].default == name
    assert set(kind.model.model_construct(stage=name, name=name, truth=None).requires) <= STAGES.keys()


def old_results() -> dict[str, dict[str, Any]]:
    """Results in the rows of 0.1.0, by kind of stage."""
    with closing(sqlite3.connect(f"file:{HOME / 'vitsearch.db'}?mode=ro&immutable=1", uri=True)) as database:
        rows = database.execute("SELECT kind, result FROM stages WHERE state = 'complete'").fetchall()
    return {kind: json.loads(result) for kind, result in rows}


@pytest.mark.parametrize("name", sorted(old_results()))
def test_a_result_of_0_1_0_is_read_and_keeps_every_key(name: str) -> None:
    old = old_results()[name]
    kind = stage_kind(name)
    result = kind.result.model_validate(old | {"key_of_a_newer_version": 1})
    assert contains(result.model_dump(mode="json"), old)
    assert kind.line(result)


def contains(new: Any, old: Any) -> bool:
    """Whether JSON data has everything that older data has."""
    if isinstance(old, Mapping):
        return isinstance(new, Mapping) and all(key in new and contains(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return len(new) == len(old) and all(contains(*pair) for pair in zip(new, old, strict=True))
    return bool(new == old)


def test_what_0_1_0_did_not_store_is_added_from_the_trials(tmp_path: Path) -> None:
    (tmp_path / "vitsearch.db").write_bytes((HOME / "vitsearch.db").read_bytes())
    store = Store.open(f"sqlite:///{tmp_path}/vitsearch.db")
    study = store.find_study("finished")
    assert study is not None
    spec = StudySpec.model_validate(study.spec)
    stages = {stage.kind: stage for stage in store.stages(study.id)}

    def read(kind: str) -> Any:
        stage = stages[kind]
        return stage_kind(kind).read(stage, spec.stages[stage.position], lambda: store.trials(stage.id))

    screen, train = read("screen"), read("train")
    store.close()
    assert len(screen.ranking) == screen.num_topologies
    assert [row.topology for row in screen.ranking] == [row.topology for row in screen.top]
    assert screen.ranking[0].scores == screen.best.scores
    assert [trial.trial for trial in train.trials] == list(range(4))
    assert [trial.topology for trial in train.trials if trial.has_base_recipe] == list(train.candidates)
    assert train.trials[train.best.trial].val_accuracy == train.best.val_accuracy


def test_a_stored_ranking_is_read_as_it_is() -> None:
    row = {"topology": "a:b", "trial": 0, "rank_sum": 0, "scores": {"params": 1.0}}
    raw = {
        "num_topologies": 1,
        "num_failed": 0,
        "rank_by": {"params": "maximize"},
        "best": {**row, "parameters": 1, "macs": 1},
        "top": [],
        "ranking": [row],
    }
    stage: StageRecord = make_stage("screen", result=raw)
    spec = SCREEN.model.model_validate({"stage": "screen", "num_trials": 1})

    def no_trials() -> list[Any]:
        raise AssertionError("the trials must not be read")

    assert SCREEN.read(stage, spec, no_trials).ranking == (RankedTopology.model_validate(row),)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_survives_in_a_row(score: float) -> None:
    row = RankedTopology(topology="a:b", trial=0, rank_sum=0, scores={"meco": score})
    stored = json.loads(json.dumps(row.model_dump(mode="json")))
    assert repr(RankedTopology.model_validate(stored).scores["meco"]) == repr(score)
    as_postgres_keeps_it = {**stored, "scores": {"meco": str(score)}}
    assert repr(RankedTopology.model_validate(as_postgres_keeps_it).scores["meco"]) == repr(score)
