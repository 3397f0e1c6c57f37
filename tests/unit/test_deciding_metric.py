"""The metric by which a study decides, wherever models are compared."""

import math
from pathlib import Path

import pytest
import torch

from orchestrator.spec.study_file import make_spec
from plugins.averaging.greedy_soup import greedy_soup
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.protocols import CurvePoint, Evaluated, StateDict
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from tests.unit.training import TOPOLOGY, Recorder, configuration, digits, run
from trainers.config import TrainTask
from trainers.tasks.averaging import ValidationJudge
from trainers.tasks.replay import replay_curve
from trainers.training.checkpoints import accepted_digests, configuration_digest
from trainers.training.evaluation import judge
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed
from trainers.yaml_source import SpecError

LOSS, F1 = (DecidingMetric.of(PluginChoice(name=name)) for name in ("loss", "macro-f1"))
CPU = torch.device("cpu")


def test_values_are_compared_in_the_metrics_direction() -> None:
    assert F1.score(0.8) > F1.score(0.7)
    assert LOSS.score(0.2) > LOSS.score(0.3)
    assert LOSS.score(math.nan) == F1.score(math.nan) == -math.inf


def test_values_are_shown_in_percent_if_they_are_fractions() -> None:
    assert (F1.text(0.94249), LOSS.text(0.22312)) == ("94.2 %", "0.2231")
    assert (F1.difference(0.91, 0.9), LOSS.difference(0.2, 0.3)) == ("+1.00 points", "+0.1000")
    assert (F1.amount(0.003), LOSS.amount(0.01)) == ("0.30 points of macro F1", "0.0100 of loss")
    assert (ACCURACY.key, F1.key) == ("val_accuracy", "val_macro_f1")


def test_the_metric_of_results_without_one_is_the_plug_in_accuracy() -> None:
    assert DecidingMetric.of(PluginChoice(name="accuracy")) == ACCURACY


def test_reports_hold_every_recorded_metric(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run(configuration(), tmp_path, recorder)
    last = recorder.reports[-1]
    assert set(last.metrics) == {"val_balanced_accuracy", "val_macro_f1"}
    assert outcome.metrics["val_macro_f1"] == last.value(F1)
    assert (last.value(ACCURACY), last.value(LOSS)) == (last.val_accuracy, last.val_loss)
    assert last.as_result()["val_macro_f1"] == last.metrics["val_macro_f1"]


def test_a_live_criterion_sees_the_metric_that_decides(tmp_path: Path) -> None:
    stopping = PluginChoice(name="plateau", settings={"signal": "metric", "patience": 1, "min_delta": 10.0})
    for name in ("loss", "macro-f1"):
        recorder = Recorder()
        config = configuration(epochs=5, stopping=stopping, metric=PluginChoice(name=name))
        assert run(config, tmp_path / name, recorder).state == "stopped"
        assert len(recorder.reports) == 2


def test_a_plateau_of_the_metric_rises_even_if_less_of_the_metric_is_better() -> None:
    criterion = create("stopping", "plateau", {"signal": "metric", "patience": 2})
    curve = [CurvePoint(epoch, 1.0, 1.0, 0.5, score=-loss) for epoch, loss in enumerate([3.0, 2.0, 1.0, 0.5], 1)]
    assert criterion.reason_to_stop(curve) is None
    curve += [CurvePoint(epoch, 1.0, 1.0, 0.5, score=-0.6) for epoch in (5, 6)]
    assert "study's metric" in (criterion.reason_to_stop(curve) or "")


def test_a_plateau_needs_the_recorded_metric_that_it_watches() -> None:
    criterion = create("stopping", "plateau", {"signal": "val_macro_f1", "patience": 1})
    curve = [CurvePoint(epoch, 1.0, 1.0, 0.5, metrics={"val_macro_f1": 0.7}) for epoch in (1, 2)]
    assert "macro F1" in (criterion.reason_to_stop(curve) or "")
    with pytest.raises(ValueError, match="must contain the metric val_macro_f1, but epoch 1 contains no metrics"):
        criterion.reason_to_stop([CurvePoint(1, 1.0, 1.0, 0.5)])


def test_what_a_stop_loses_is_measured_by_the_metric() -> None:
    criterion = create("stopping", "patience", {"epochs": 1})
    scores = [0.3, 0.5, 0.4, 0.9]
    losses = [1.0, 0.5, 0.6, 0.4]
    curve = [
        CurvePoint(epoch, 1.0, loss, 0.5, score=score)
        for epoch, (loss, score) in enumerate(zip(losses, scores, strict=True), 1)
    ]
    assert replay_curve(criterion, curve).accuracy_lost == pytest.approx(0.4)
    assert replay_curve(criterion, [point._replace(score=None) for point in curve]).accuracy_lost == 0


def test_a_greedy_soup_follows_the_score_instead_of_the_accuracy() -> None:
    def evaluate(weights: StateDict) -> Evaluated:
        value = float(weights["w"][0])
        return Evaluated(loss=1.0, accuracy=value, score=-abs(value - 2))

    checkpoints = [{"w": torch.tensor([value])} for value in (9.0, 2.0, 5.0)]
    assert greedy_soup(checkpoints, evaluate)[1] == [1]


@pytest.mark.parametrize("name", ["loss", "macro-f1"])
def test_averages_are_compared_by_the_metric_of_the_configuration(name: str, tmp_path: Path) -> None:
    metric = DecidingMetric.of(PluginChoice(name=name))
    config = configuration(metric=metric.choice)
    run(config, tmp_path)
    from trainers.training.checkpoints import load_weights

    found = ValidationJudge(config, digits(), CPU)(load_weights(tmp_path / "epoch-0003"))
    assert found.score == metric.score(found.metrics[name])


def test_the_default_metric_leaves_the_digest_of_a_configuration_alone() -> None:
    plain, other = configuration(), configuration(metric=PluginChoice(name="macro-f1"))
    assert configuration_digest(plain) == configuration_digest(configuration(metric=PluginChoice(name="accuracy")))
    assert len(accepted_digests(plain)) == 2
    assert configuration_digest(other) not in accepted_digests(plain)


def test_a_metric_that_is_not_finite_fails_the_training_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plugins.metrics.macro_f1 import MacroF1

    monkeypatch.setattr(MacroF1, "measure", lambda *_: math.nan)
    outcome = run(configuration(), tmp_path)
    assert (outcome.state, outcome.error) == ("failed", "not-finite")
    assert "metric macro-f1 must be finite" in (outcome.reason or "")


def test_a_further_metric_is_measured_once_and_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    monkeypatch.setattr("trainers.training.evaluation.create", lambda *_: Tenth())
    assert judge(logits, labels, metric=PluginChoice(name="tenth")).metrics["tenth"] == 0.1
    assert "tenth" not in judge(logits, labels).metrics


class Tenth:
    """A user's metric."""

    direction = "maximize"
    is_fraction = True

    def measure(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        return 0.1


def test_trainings_of_different_metrics_do_not_share_a_pack(tmp_path: Path) -> None:
    tasks = [
        TrainTask(configuration=configuration(metric=PluginChoice(name=name)), folder=tmp_path / name)
        for name in ("accuracy", "macro-f1")
    ]
    assert "their metrics differ" in (can_be_packed(*tasks) or "")


def test_a_pack_records_the_metrics_of_trainings_alone(tmp_path: Path) -> None:
    configs = [configuration(recipe={"learning_rate": rate}) for rate in (1e-3, 3e-3)]
    alone = [Recorder(), Recorder()]
    for number, config in enumerate(configs):
        run(config, tmp_path / f"alone-{number}", alone[number])
    together = [Recorder(), Recorder()]
    tasks = [
        TrainTask(configuration=config, folder=tmp_path / f"pack-{number}") for number, config in enumerate(configs)
    ]
    assert len(list(train_packed(tasks, digits(), together, CPU))) == 2
    for one, other in zip(alone, together, strict=True):
        assert other.reports[-1].metrics == pytest.approx(one.reports[-1].metrics, abs=2 / 30)


def study(**fields: object) -> dict[str, object]:
    stages = [{"stage": "train", "topologies": [TOPOLOGY], "num_trials": 1, "epochs": 1}]
    return {"study": "one", "data": {"source": "digits"}, "stages": stages, **fields}


def test_a_study_decides_by_accuracy_unless_it_names_another_metric() -> None:
    assert [choice.name for choice in make_spec(study()).metric] == ["accuracy"]
    assert [choice.name for choice in make_spec(study(metric="macro-f1")).metric] == ["macro-f1"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("macro-f2", r"must be an installed plug-in of the kind metrics .* Did you mean 'macro-f1'"),
        ({"name": "accuracy", "k": 5}, r"has the settings \(none\), but got 'k'"),
        (3, "metric"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused(metric: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_spec(study(metric=metric))
