"""Every stopping criterion decides in training as it does in a replay of the whole curve."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from plugins.protocols import CurvePoint, Signal, Stopper
from plugins.registry import available, create
from search_spaces.recipes import PluginChoice
from tests.contracts.test_optimizers_in_training import TOPOLOGIES
from tests.unit.test_loop import InterruptedInside
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import Configuration, TrainTask
from trainers.tasks.replay import replay_curve
from trainers.training.loop import train

EPOCHS = 7
QUICK: dict[str, dict[str, Any]] = {
    "patience": {"epochs": 1},
    "plateau": {"signal": "gradient_norm", "patience": 1},
    "progress-quotient": {"strip": 2, "threshold": 0.05},
    "neural-persistence": {"patience": 1, "min_delta": 0.1},
    "evidence": {"window": 1},
    "gradient-disparity": {"increases": 1},
    "label-wave": {"window": 1},
    "memorization-onset": {"threshold": 0.3, "share": 0.1},
    "curve-extrapolation": {"min_epochs": 3, "chance": 0.9},
    "generalization-loss": {"threshold": 1e-3},
    "successive-rises": {"rises": 1},
    "successive-halving": {"first_epochs": 3},
    "median": {"warmup_epochs": 1},
}
"""Settings with which a criterion can stop a short training."""

EARLIER = ((0.0, 0.0, *(1.0,) * (EPOCHS - 2)),) * 3
"""Scores of three earlier trials, which know nothing for two epochs and everything afterwards."""


def config_of(space: str = "as-vit", **fields: Any) -> Configuration:
    recipe = {"batch_size": 30, "learning_rate": 0.04, "warmup": 0.0, "schedule": "constant"}
    made = configuration(epochs=EPOCHS, recipe=recipe, **fields)
    return made.model_copy(update={"topology": TOPOLOGIES[space]})


_wholes: dict[str, list[CurvePoint]] = {}


def whole_curve(space: str, folder: Path) -> list[CurvePoint]:
    """The curve of a training without early stopping, with every signal; computed once for each space."""
    if space not in _wholes:
        recorder = Recorder()
        with patch("trainers.training.gradient_signals.NUM_PRODUCTS", 2):  # no criterion depends on more of them
            run(config_of(space), folder, recorder, signals=tuple(Signal))
        _wholes[space] = [report.point for report in recorder.reports]
    return _wholes[space]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[CurvePoint]:
    return whole_curve("as-vit", tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("space", list(TOPOLOGIES))
@pytest.mark.parametrize("name", list(available("stopping")))
def test_a_live_criterion_equals_its_replay_also_after_an_interruption(name: str, space: str, tmp_path: Path) -> None:
    whole = whole_curve(space, tmp_path / "whole")
    choice = PluginChoice(name=name, settings=QUICK.get(name, {}))
    stopper: Stopper = create("stopping", name, choice.settings)
    replayed, recorder = replay_curve(stopper, whole, earlier=EARLIER), Recorder()
    config = config_of(space, stopping=choice)
    interrupted = run(config, tmp_path / "live", InterruptedInside(2), earlier_scores=EARLIER)
    assert interrupted.state == "interrupted"
    outcome = run(config, tmp_path / "live", recorder, earlier_scores=EARLIER)
    assert len(recorder.reports) == (replayed.stopped_after or EPOCHS)
    assert outcome.state == ("complete" if replayed.stopped_after is None else "stopped")
    losses = [report.val_loss for report in recorder.reports]
    assert losses == [point.val_loss for point in whole[: len(losses)]]  # measuring changes no bit


def test_most_criteria_stop_in_this_test(whole: list[CurvePoint]) -> None:
    stopped = [
        name
        for name, settings in QUICK.items()
        if replay_curve(create("stopping", name, settings), whole, earlier=EARLIER).stopped_after is not None
    ]
    assert len(stopped) >= len(QUICK) - 3, stopped


def test_a_training_sees_the_best_result_of_the_study(whole: list[CurvePoint], tmp_path: Path) -> None:
    choice = PluginChoice(name="curve-extrapolation", settings={"min_epochs": 3})
    stopper: Stopper = create("stopping", choice.name, choice.settings)
    ends = []
    for best in (-1.0, 2.0):
        recorder, folder = Recorder(), tmp_path / str(best)
        task = TrainTask(configuration=config_of(stopping=choice), folder=folder, best_score=best)
        outcome = train(task, digits(), recorder, CPU)
        ends.append(replay_curve(stopper, whole, best=best).stopped_after)
        assert len(recorder.reports) == (ends[-1] or EPOCHS)
        assert outcome.state == ("stopped" if ends[-1] else "complete")
    assert ends[0] is None
    assert ends[1] is not None
