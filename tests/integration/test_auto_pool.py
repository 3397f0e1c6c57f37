"""Pool `auto` with real workers: a study whose trainings move to Ray has the same results as in one process."""

from pathlib import Path

import pytest

from orchestrator.engines import choice
from orchestrator.engines.pools import adaptive
from tests.fakes import RecordingProgress
from tests.tiny import differences, read_rows, run_here

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

STUDY = """\
study: short
data: {source: digits, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"]
    sampler: random
    num_trials: 3
    epochs: 2
    recipe: {batch_size: 32, learning_rate: {low: 0.001, high: 0.004}}
  - {stage: averaging, num_trials: 2, methods: [last, {name: ema, decay: 0.5}]}
"""


def test_trainings_that_move_to_ray_have_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(choice, "available_cores", lambda: 2)
    monkeypatch.setattr(choice, "available_memory_gib", lambda: 8.0)
    monkeypatch.setattr(adaptive, "START_S", 0.0)
    file = tmp_path / "short.yaml"
    file.write_text(STUDY)
    progress = RecordingProgress()
    assert run_here(file, tmp_path / "auto", progress=progress).state == "complete"
    file.write_text(f"{STUDY}pool: inline\n")
    assert run_here(file, tmp_path / "inline").state == "complete"
    auto, inline = read_rows(tmp_path / "auto", "short"), read_rows(tmp_path / "inline", "short")
    assert [setup["pool"] for setup in (*auto.setups, *inline.setups)] == ["auto", "inline"]
    assert differences(auto, inline) == []
    moved = [told for told in progress.of("note") if "running up to 2 trials at a time" in told.value]
    assert next(told.stage for told in moved if "of work" in told.value) == "train"
