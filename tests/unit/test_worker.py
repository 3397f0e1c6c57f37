"""The trial worker: every kind of task, and failing tasks."""

from pathlib import Path

import pytest
import torch

from search_spaces.recipes import PluginChoice
from tests.unit.training import DIGITS, TOPOLOGY, Recorder, configuration
from trainers import worker
from trainers.config import AverageTask, ScoreTask, TrainTask
from trainers.worker import run_task


def train_task(folder: Path, **fields: object) -> TrainTask:
    return TrainTask(configuration=configuration(epochs=1, **fields), folder=folder)


def test_it_trains_and_reports(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run_task(train_task(tmp_path), recorder)
    assert outcome.state == "complete"
    assert len(recorder.reports) == 1


def test_it_averages(tmp_path: Path) -> None:
    trained = run_task(train_task(tmp_path), Recorder())
    task = AverageTask(
        configuration=configuration(epochs=1),
        checkpoints=tuple(record.path for record in trained.checkpoints),
        averaging=PluginChoice(name="last"),
    )
    outcome = run_task(task, Recorder())
    assert outcome.state == "complete"
    assert outcome.metrics["val_loss"] == trained.metrics["val_loss"]


def test_it_scores_every_topology_on_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    score = worker.score_topology

    def spy(task: ScoreTask, images: torch.Tensor, *rest: object) -> object:
        seen.append(images)
        return score(task, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "score_topology", spy)
    for seed, topology in enumerate([TOPOLOGY, TOPOLOGY.replace("16,4", "16,8")]):
        task = ScoreTask(
            data=DIGITS, topology=topology, proxies=(PluginChoice(name="params"),), batch_size=12, seed=seed
        )
        outcome = run_task(task, Recorder())
        assert outcome.state == "complete"
        assert outcome.metrics["params"] > 0
    assert seen[0].shape == (12, 1, 32, 32)
    assert torch.equal(seen[0], seen[1])
    assert seen[0].mean().abs() < 0.2  # normalised


def test_a_task_that_raises_is_failed_with_its_reason(tmp_path: Path) -> None:
    task = train_task(tmp_path, averaging=PluginChoice(name="last"))
    broken = task.model_copy(
        update={"configuration": task.configuration.model_copy(update={"topology": "as-vit:nonsense"})}
    )
    outcome = run_task(broken, Recorder())
    assert (outcome.state, outcome.error) == ("failed", "exception")
    assert outcome.reason is not None
    assert "nonsense" in outcome.reason
    assert "as_vit.py, line" in outcome.reason
    assert any("Error" in line for line in outcome.details["traceback"])
    assert outcome.model_dump_json()  # plain data, whatever was raised


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_running_out_of_memory_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def train(*args: object) -> None:
        raise error

    monkeypatch.setattr(worker, "train", train)
    outcome = run_task(train_task(tmp_path), Recorder())
    assert (outcome.state, outcome.error) == ("failed", "out-of-memory")
    assert outcome.reason is not None
    assert "batch_size" in outcome.reason
    assert "\n" not in outcome.reason


def test_ctrl_c_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run_task(train_task(tmp_path), Recorder())
