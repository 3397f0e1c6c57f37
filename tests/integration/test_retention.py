"""Files and MLflow runs that a finished study leaves."""

from pathlib import Path

from tests.tiny import FinishedStudy, read_rows, run_here, write_tiny

KEPT = {"model.safetensors", "manifest.json"}


def test_of_each_training_the_newest_weights_stay_and_of_the_best_those_to_average(tiny: FinishedStudy) -> None:
    best = tiny.rows.stages["train"].result["best"]["trial"]
    folders = sorted((tiny.home / "artifacts").rglob("train/trial-*"))
    assert len(folders) == 9
    for number, (folder, records) in enumerate(zip(folders, tiny.rows.checkpoints["train"], strict=True)):
        epochs = sorted(path for path in folder.iterdir() if path.name != "attempt")
        assert [path.name for path in epochs] == [f"epoch-{record.epoch:04d}" for record in records]
        assert [record.epoch for record in records] == ([2, 3, 4] if number == best else [4])
        assert all({file.name for file in epoch.iterdir()} == KEPT for epoch in epochs)


def test_mlflow_gets_the_report_and_weights_without_the_state_of_the_optimizer(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run_here(write_tiny(tmp_path), home, tracking=True).state == "complete"
    kept = sorted((home / "artifacts" / "mlflow").rglob("checkpoint"))
    assert len(kept) == len(read_rows(home).trials["train"])
    assert all({file.name for file in folder.iterdir()} == KEPT for folder in kept)
    (report,) = (home / "artifacts" / "mlflow").rglob("report.html")
    assert "The champion has" in report.read_text(encoding="utf-8")
