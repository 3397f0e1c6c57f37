"""Searches that a scheduler must leave alone, and trainings whose validation figures mean nothing."""

from pathlib import Path
from typing import Any, cast

from orchestrator.engines.interfaces import Objective, Search
from orchestrator.engines.ray.engine import RayEngine
from orchestrator.engines.ray.pool import RayPool
from orchestrator.spec.engine import Asha
from orchestrator.stages.finalists import FixedPoints
from orchestrator.tracking.events import LogMetrics, event_from_json
from tests.fakes import make_stage, make_trial
from tests.unit.test_run_tree import TREE
from tests.unit.training import configuration
from trainers.config import EpochReport, TrainTask


def search(**fields: Any) -> Search:
    task = TrainTask(configuration=configuration(), folder=Path("trial"))
    return Search(
        num_trials=2,
        suggester=FixedPoints([{"finalist": 3, "repeat": 0}, {"finalist": 3, "repeat": 1}]),
        make_task=lambda _: task,
        objectives=(Objective("val_accuracy", "maximize"),),
        **fields,
    )


def test_a_scheduler_cuts_only_the_searches_that_allow_it(tmp_path: Path) -> None:
    scheduler = Asha()
    engine = RayEngine(cast("RayPool", None), scratch=tmp_path, scheduler=scheduler)
    assert engine._scheduler_of(search()) == scheduler
    assert engine._scheduler_of(search(may_be_cut=False)) is None


def test_fixed_points_are_suggested_in_their_order() -> None:
    suggester = search().suggester
    suggester.expect(make_trial(0))
    suggester.tell(make_trial(0))
    found = [suggester.ask(number) for number in range(3)]
    assert [None if one is None else one.point for one in found] == [
        {"finalist": 3, "repeat": 0},
        {"finalist": 3, "repeat": 1},
        None,
    ]


def test_an_epoch_without_validation_images_is_logged_without_their_figures() -> None:
    report = EpochReport(
        epoch=1,
        train_loss=1.5,
        val_loss=0.5,
        val_accuracy=0.9,
        metrics={"val_macro_f1": 0.8},
        learning_rate=0.1,
        num_images=10,
        wall_time_s=1.0,
        signals={"gradient_norm": 2.0},
    )
    logged = []
    for validates in (True, False):
        (row,) = TREE.epoch(make_stage(), make_trial(0), report, 5.0, validates=validates)
        event = event_from_json(row)
        assert isinstance(event, LogMetrics)
        logged.append({point.name: point.value for point in event.points})
    assert logged[1] == {"train_loss": 1.5, "learning_rate": 0.1, "gradient_norm": 2.0}
    assert logged[0].keys() - logged[1].keys() == {"val_loss", "val_accuracy", "val_macro_f1"}
