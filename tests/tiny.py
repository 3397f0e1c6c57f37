"""A study of all stages that takes seconds, comparisons of its rows, and the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from orchestrator.cli import console
from orchestrator.cli.main import main
from orchestrator.engines.interfaces import Control
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.stages.control import Deadline, no_deadline
from orchestrator.stages.progress import Progress
from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import study_folder
from orchestrator.study.driver import run_study
from tests.blank_figures import figures_as_usual
from tests.fakes import RecordingProgress, Switch
from trainers import champion
from trainers.config import CheckpointRecord, EpochReport

TINY = """\
study: tiny
seed: 7
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: screen
    space: {name: as-vit, width: 8, depths: [1, 1, 1, 1]}
    sampler: {name: tpe, num_startup_trials: 3}
    num_trials: 7
    batch_size: 4
    proxies: [length-distortion, ntk-condition, params, flops]
    limits: {max_params: 150_000}
  - stage: grow
    target_params: 200_000
    width_ratios: [0.25]
    max_steps: 3
    repeats: 1
    reduction: 1
    batch_size: 4
  - stage: train
    candidates: {best: 2, spread: 3}
    sampler: {name: tpe, num_startup_trials: 7}
    num_trials: 9
    epochs: 4
    keep_checkpoints: 3
    recipe:
      batch_size: 32
      learning_rate: {low: 5e-4, high: 8e-3, log: true}
      augmentation: [shift, none]
      curriculum: [none, cyclical, paced]
  - stage: stopping
    sampler: {name: nsga2, population_size: 4}
    num_trials: 14
    criteria:
      - {name: patience, epochs: {low: 1, high: 2}, min_delta: {low: 0.01, high: 1.0, log: true}}
      - {name: generalization-loss, threshold: {low: 0.5, high: 20.0, log: true}}
  - stage: averaging
    num_trials: 4
    methods: [last, {name: lawa, window: {low: 2, high: 3}, spacing: 1}]
  - stage: correlate
    resamples: 100
  - stage: promote
"""
"""A study with every stage. Its samplers run past their random start, so that their learned state matters."""

_MAY_DIFFER = frozenset({"wall_time_s", "throughput_images_per_s", "time_error", "folder"})
"""Results that do not depend on the seed alone, and the champion's folder."""


def write_tiny(folder: Path, **replaced: str) -> Path:
    """Write the study file with some texts replaced: `write_tiny(folder, **{"seed: 7": "seed: 8"})`."""
    text = TINY
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run_here(
    file: Path,
    home: Path,
    *,
    progress: Progress | None = None,
    control: Control | None = None,
    deadline: Deadline = no_deadline,
    retry_failed: bool = False,
    stops_decoding: bool = False,
    **settings: Any,
) -> StudyRecord:
    """Run a study in this process, without MLflow unless `settings` enable it."""
    found = load_settings(home=home, **{"tracking": False, **settings})
    text = file.read_text(encoding="utf-8")
    return run_study(
        load_spec(file),
        text,
        found,
        progress=progress or RecordingProgress(),
        control=control or Switch(),
        deadline=deadline,
        retry_failed=retry_failed,
        stops_decoding=stops_decoding,
    )


@dataclass(frozen=True)
class Rows:
    """The rows of a study at one time."""

    study: StudyRecord
    stages: dict[str, StageRecord]
    trials: dict[str, list[TrialRecord]]
    curves: dict[str, list[list[EpochReport]]]
    checkpoints: dict[str, list[list[CheckpointRecord]]]
    executions: list[str]
    """States of the executions, oldest first."""
    setups: list[dict[str, Any]]
    """Engine, pool and reason of each execution, oldest first."""

    def expected(self) -> dict[str, Any]:
        """All values that the study file and its seed determine, as a flat dictionary."""
        facts = {
            name: {
                "state": stage.state,
                "result": stage.result,
                "trials": [
                    trial.model_dump(include={"number", "state", "point", "seed", "metrics", "reason", "error"})
                    for trial in self.trials[name]
                ],
                "curves": [[report.model_dump() for report in curve] for curve in self.curves[name]],
                "kept": [[record.epoch for record in kept] for kept in self.checkpoints[name]],
            }
            for name, stage in self.stages.items()
        }
        return dict(_leaves(facts, "")) | {"spec": self.study.spec_digest}


def read_rows(home: Path, name: str = "tiny", *, settings: Settings | None = None) -> Rows:
    """Read the rows of a study through the store, by default from the database in the home."""
    settings = settings or load_settings(home=home)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    try:
        study = store.find_study(name)
        assert study is not None
        stages = {stage.name: stage for stage in store.stages(study.id)}
        trials = {stage: store.trials(record.id) for stage, record in stages.items()}
        executions = store.executions(study.id)
        return Rows(
            study=study,
            stages=stages,
            trials=trials,
            curves={stage: [store.reports(trial.id) for trial in found] for stage, found in trials.items()},
            checkpoints={stage: [store.checkpoints(trial.id) for trial in found] for stage, found in trials.items()},
            executions=[execution.state for execution in executions],
            setups=[execution.setup or {} for execution in executions],
        )
    finally:
        store.close()


def differences(found: Rows, expected: Rows, *, tolerance: float = 1e-6) -> list[str]:
    """Differences between two runs of one study file, one line each.

    Args:
        found: Rows of one run.
        expected: Rows of the other run.
        tolerance: Allowed difference of numbers, absolute or as a fraction of the expected number.
    """
    ours, theirs = found.expected(), expected.expected()
    lines = [f"only in one of them: {key}" for key in sorted(ours.keys() ^ theirs.keys())]
    for key in ours.keys() & theirs.keys():
        mine, other = ours[key], theirs[key]
        numbers = isinstance(mine, float) and isinstance(other, float)
        near = numbers and mine == pytest.approx(other, abs=tolerance, rel=tolerance)
        if mine != other and not near:
            lines.append(f"{key}: {mine} instead of {other}")
    return lines


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in _MAY_DIFFER:
                yield from _leaves(inner, f"{path}/{key}")
    else:
        yield path, value


@dataclass(frozen=True)
class FinishedStudy:
    """The finished tiny study."""

    home: Path
    file: Path
    rows: Rows
    progress: RecordingProgress
    wall_time_s: float

    @property
    def settings(self) -> Settings:
        return load_settings(home=self.home, tracking=False)

    @property
    def champion(self) -> dict[str, Any]:
        """Result of the promote stage, with an absolute folder."""
        result = self.rows.stages["promote"].result
        folder = study_folder(self.settings, self.rows.study) / result["folder"]
        return {**result, "folder": str(folder)}


def finish_tiny_study(folder: Path) -> FinishedStudy:
    """Run the tiny study; its progress also records each time the test part is read, as `test images`."""
    home, file, progress = folder / "home", write_tiny(folder), RecordingProgress()
    load_test_images = champion.load_test_images

    def watched(*arguments: Any) -> Any:
        progress.told.append(progress.told[-1]._replace(what="test images", value=None))
        return load_test_images(*arguments)

    started = time.perf_counter()
    with patch.object(champion, "load_test_images", watched), figures_as_usual():
        run_here(file, home, progress=progress)
    return FinishedStudy(home, file, read_rows(home), progress, time.perf_counter() - started)


# --- the command line ---


@dataclass(frozen=True)
class Finished:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """Runs `vitsearch` in this process like the console script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, home: Path) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.home = home

    def __call__(self, *arguments: str | Path, home: Path | None = None, **environment: str) -> Finished:
        given = {"VITSEARCH_HOME": str(home or self.home), "VITSEARCH_TRACKING": "off", "COLUMNS": "200"}
        with self._monkeypatch.context() as patched:
            for name, value in (given | environment).items():
                patched.setenv(name, value)
            # The console was created by an earlier test and keeps the width of that time.
            patched.setattr(console.stdout, "width", int((given | environment)["COLUMNS"]))
            patched.setattr(sys, "argv", ["vitsearch", *map(str, arguments)])
            self._capsys.readouterr()
            try:
                main()
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 0
        captured = self._capsys.readouterr()
        return Finished(status, captured.out, captured.err)


def start(*arguments: str | Path, home: Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `vitsearch` in a separate process, without MLflow and with one torch thread."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VITSEARCH_", "MLFLOW_"))}
    given = {"VITSEARCH_HOME": str(home), "VITSEARCH_TRACKING": "off", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=clean | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*arguments: str | Path) -> Sequence[str]:
    """Command line of the installed console script with arguments."""
    return [str(Path(sys.executable).with_name("vitsearch")), *map(str, arguments)]
