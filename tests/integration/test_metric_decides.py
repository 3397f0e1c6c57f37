"""A whole study that decides by another metric than accuracy."""

from pathlib import Path

import pytest

from orchestrator.cli.tables import leaderboard
from orchestrator.reports.summary import study_summary
from orchestrator.settings import load_settings
from orchestrator.store.repository import Store
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice
from tests.fakes import RecordingProgress
from tests.tiny import read_rows, run_here

FILE = """\
study: tiny
seed: 3
metric: {metric}
data: {{source: digits, image_size: 32, max_images: 150, max_test_images: 60}}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4", "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|32,4",
      "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,4,1|16,4"]
    sampler: random
    num_trials: 6
    epochs: 4
    keep_checkpoints: 3
    recipe: {{batch_size: 32, learning_rate: {{low: 5e-4, high: 8e-3, log: true}}}}
  - stage: stopping
    num_trials: 3
    max_accuracy_lost: 0.05
    criteria: [{{name: patience, epochs: [1, 2, 3]}}]
  - stage: averaging
    num_trials: 3
    methods: [last, {{name: lawa, window: [2, 3], spacing: 1}}]
  - {{stage: correlate, proxies: [params], baselines: [flops], resamples: 100}}
  - stage: promote
"""


@pytest.mark.parametrize("name", ["loss", "macro-f1"])
def test_the_metric_orders_trials_and_averages_and_is_the_target_of_taus(name: str, tmp_path: Path) -> None:
    metric = DecidingMetric.of(PluginChoice(name=name))
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE.format(metric=name))
    home = tmp_path / "home"
    assert run_here(file, home).state == "complete"
    rows = read_rows(home)
    train, averaging, stopping, promote = (
        rows.stages[stage].result for stage in ("train", "averaging", "stopping", "promote")
    )
    values = [row[metric.key] for row in train["leaderboard"]]
    assert values == sorted(values, reverse=metric.direction == "maximize")
    assert train["best"]["trial"] == train["leaderboard"][0]["trial"]
    assert train["metric"]["choice"] == name
    assert averaging["value"] == max(
        (trial.metrics[metric.key] for trial in rows.trials["averaging"]), key=metric.score
    )
    assert averaging["gain"] == pytest.approx(metric.score(averaging["value"]) - metric.score(values[0]))
    curves = [[metric.score(report.value(metric)) for report in curve] for curve in rows.curves["train"]]
    last = next(trial for trial in rows.trials["stopping"] if trial.point["stopping.criterion.patience.epochs"] == 1)
    stops = [stop or len(curve) for stop, curve in zip(last.details["stopped_after"], curves, strict=True)]
    lost = [max(curve) - max(curve[:stop]) for stop, curve in zip(stops, curves, strict=True)]
    assert last.metrics["accuracy_lost"] == pytest.approx(sum(lost) / len(lost))
    assert stopping["metric"]["choice"] == name
    target = rows.stages["correlate"].result["truth"]["target"]
    assert target == ("val_macro_f1" if name == "macro-f1" else "-val_loss")
    assert promote["configuration"]["metric"] == name
    store = Store.open(load_settings(home=home).database_url, artifact_root=load_settings(home=home).artifact_root)
    try:
        summary = study_summary(store, rows.study)
    finally:
        store.close()
    assert summary["metric"]["choice"] == name


WORSENING = """\
study: tiny
seed: 3
data: {source: digits, image_size: 32, max_images: 150, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"]
    sampler: random
    rank_by: best
    num_trials: 3
    epochs: 6
    keep_checkpoints: 2
    recipe:
      batch_size: 16
      schedule: constant
      label_smoothing: [0.0, 0.1, 0.2]
      learning_rate: {from: 3e-3, to: 3.0, shape: step, until: 0.4}
  - stage: promote
"""


def test_trials_ranked_by_their_best_epoch_promote_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(WORSENING)
    assert run_here(file, tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home")
    train, promote = rows.stages["train"].result, rows.stages["promote"].result
    assert train["ranked_by"] == "val_accuracy_best"
    peaks = [max(report.val_accuracy for report in curve) for curve in rows.curves["train"]]
    assert train["best"]["val_accuracy_best"] == max(peaks)
    assert promote["configuration"]["averaging"] == "best"
    assert promote["val_accuracy"] == pytest.approx(max(peaks))
    assert promote["val_accuracy"] > rows.trials["train"][train["best"]["trial"]].metrics["val_accuracy"]
    shown = str(leaderboard(train["leaderboard"], ACCURACY, ranked_by=train["ranked_by"]))
    assert "best val. accuracy (%)" in shown
    assert f"{100 * max(peaks):.2f}" in shown


def test_a_peak_that_the_ranking_by_the_last_epoch_misses_is_told(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(WORSENING.replace("rank_by: best", "rank_by: last"))
    progress = RecordingProgress()
    assert run_here(file, tmp_path / "home", progress=progress).state == "complete"
    ended = [str(told) for told in progress.of("stage ended")]
    assert any("`rank_by: best` ranks by the best epoch" in text for text in ended)
