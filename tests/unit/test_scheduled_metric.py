"""Ray's schedulers compare the study's metric, in its direction, as the epochs report it."""

from typing import Any

import pytest

from orchestrator.engines.interfaces import Objective, Search
from plugins.metrics.deciding import DecidingMetric
from search_spaces.recipes import PluginChoice
from trainers.config import EpochReport

pytest.importorskip("ray", reason="Ray is not installed")


class NoPoints:
    """A suggester that is never asked."""

    def ask(self, number: int) -> Any: ...
    def expect(self, trial: Any) -> None: ...
    def tell(self, trial: Any) -> None: ...


@pytest.mark.parametrize(("name", "mode"), [("macro-f1", "max"), ("loss", "min"), ("accuracy", "max")])
def test_a_scheduler_compares_what_epochs_report_of_the_metric(name: str, mode: str) -> None:
    from orchestrator.engines.ray.schedulers import make_scheduler
    from orchestrator.spec.engine import Asha

    metric = DecidingMetric.of(PluginChoice(name=name))
    search = Search(
        num_trials=2,
        suggester=NoPoints(),
        make_task=lambda _: None,  # type: ignore[arg-type, return-value]
        objectives=(Objective(f"{metric.key}_best", metric.direction),),
        reported=Objective.of(metric),
        epochs=9,
    )
    scheduler: Any = make_scheduler(Asha(), search, lambda *_: "")
    assert (scheduler._metric, scheduler._mode) == (metric.key, mode)
    report = EpochReport(
        epoch=1,
        train_loss=1.0,
        val_loss=0.7,
        val_accuracy=0.5,
        metrics={"val_macro_f1": 0.4},
        learning_rate=0.1,
        num_images=1,
        wall_time_s=1.0,
    )
    assert report.as_result()[scheduler._metric] == report.value(metric)
