"""MLflow's files are found again in a home that was moved or copied, and weights are kept once."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.study.sizes import human_size, size_of
from orchestrator.tracking.events import (
    EndRun,
    EnsureExperiment,
    Event,
    LogArtifact,
    RegisterModel,
    StartRun,
)
from orchestrator.tracking.local_files import link_tree, local_path
from orchestrator.tracking.mlflow_client import Tracker
from orchestrator.tracking.relocation import relocate, relocate_home

KEY = "abc/stage/promote"
WEIGHTS = b"weights" * 100


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{home}/mlflow.db")


def deliver(home: Path, *events: Event) -> None:
    Tracker(f"sqlite:///{home}/mlflow.db", home / "artifacts" / "mlflow").deliver(events)


def weights_of(home: Path) -> Path:
    """A checkpoint's file in the folder of the study."""
    return home / "artifacts" / "studies" / "my digits-abc" / "train" / "model.safetensors"


def study(home: Path) -> list[Event]:
    file = weights_of(home)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(WEIGHTS)
    return [
        EnsureExperiment(name="my digits", tags={"vitsearch.study": "my digits"}),
        StartRun(key=KEY, name="promote", experiment="my digits", start_time_ms=1),
        LogArtifact(key=KEY, path=str(file), artifact_path="champion"),
        RegisterModel(key=KEY, name="my digits", artifact_path="champion", alias="champion"),
        EndRun(key=KEY, status="FINISHED", end_time_ms=2),
    ]


def registered_file(home: Path) -> Path:
    """The file that the alias `champion` leads to."""
    version = client(home).get_model_version_by_alias("my digits", "champion")
    folder = local_path(version.source)
    assert folder is not None
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one study, and a run of someone else; tests copy it."""
    home = tmp_path_factory.mktemp("made") / "home"
    home.mkdir()
    deliver(home, *study(home))
    other = client(home).create_experiment("theirs", artifact_location=f"file://{home}/elsewhere/mlflow/theirs")
    client(home).create_run(other)
    return home


def test_weights_are_kept_once(made: Path) -> None:
    file = registered_file(made)
    assert file.samefile(weights_of(made))
    assert size_of([made / "artifacts"]) == len(WEIGHTS)


@pytest.mark.parametrize("is_moved", [True, False])
def test_files_are_found_in_a_moved_or_copied_home(made: Path, tmp_path: Path, is_moved: bool) -> None:
    first = tmp_path / "first place"
    shutil.copytree(made, first)
    assert relocate(first / "mlflow.db", first / "artifacts" / "mlflow") == 1
    assert registered_file(first).read_bytes() == WEIGHTS
    second = tmp_path / "zweiter Ort é"
    (shutil.move if is_moved else shutil.copytree)(first, second)
    assert relocate_home(f"sqlite:///{second}/mlflow.db", second / "artifacts" / "mlflow") is None
    assert registered_file(second).is_relative_to(second)
    assert registered_file(second).read_bytes() == WEIGHTS
    assert relocate(second / "mlflow.db", second / "artifacts" / "mlflow") == 0
    (second / "more.txt").write_text("more")
    deliver(second, LogArtifact(key=KEY, path=str(second / "more.txt"), artifact_path="more"))  # a study goes on
    assert len(list(second.glob("artifacts/**/more.txt"))) == 1
    theirs = client(second).get_experiment_by_name("theirs")
    assert theirs.artifact_location == f"file://{made}/elsewhere/mlflow/theirs"
    if not is_moved:
        assert registered_file(first).is_relative_to(first)


def test_a_new_artifact_root_leaves_earlier_files_where_they_are(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    relocate(home / "mlflow.db", home / "artifacts" / "mlflow")
    assert relocate(home / "mlflow.db", tmp_path / "another" / "mlflow") == 0
    assert registered_file(home).is_relative_to(home)


def test_an_event_written_before_a_move_is_delivered_afterwards(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    events = study(first)
    shutil.move(first, second)
    deliver(second, *events)
    assert registered_file(second).samefile(weights_of(second))


def test_a_database_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    problem = relocate_home(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    assert problem is not None
    assert "not a database" in problem
    assert relocate_home(f"sqlite:///{tmp_path}/none.db", tmp_path) is None
    assert relocate_home("http://mlflow.example:5000", tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


def test_weights_are_copied_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(WEIGHTS)
    (source / "model.yaml").write_text("a: 1")
    for _ in range(2):
        link_tree(source, tmp_path / "target")
    assert (tmp_path / "target" / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["model.safetensors", "model.yaml"]


def test_only_weights_are_linked(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("model.safetensors", "plot.png"):
        (source / name).write_bytes(WEIGHTS)
    link_tree(source, tmp_path / "target")
    assert (tmp_path / "target" / "model.safetensors").samefile(source / "model.safetensors")
    assert not (tmp_path / "target" / "plot.png").samefile(source / "plot.png")
    (source / "model.safetensors").unlink()
    assert (tmp_path / "target" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (3_456_000, "3.46 MB"),
        (999_600, "1 MB"),
        (2_000_000_000_000, "2 TB"),
    ],
)
def test_sizes_have_three_digits(num_bytes: int, text: str) -> None:
    assert human_size(num_bytes) == text
