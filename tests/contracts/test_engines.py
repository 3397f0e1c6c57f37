"""Every engine and pool: the same study file and seed, with the random sampler, give the same study."""

from pathlib import Path

import pytest

from tests.tiny import Rows, differences, read_rows, run_here

STUDY = """\
study: same
seed: 7
HOW
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: screen
    space: {name: as-vit, width: 8, depths: [1, 1, 1, 1]}
    num_trials: 6
    batch_size: 4
    proxies: [length-distortion, params]
    limits: {max_params: 150_000}
  - stage: train
    candidates: {best: 2, spread: 1}
    sampler: random
    num_trials: 3
    epochs: 2
    keep_checkpoints: 2
    recipe:
      batch_size: 32
      learning_rate: {low: 5e-4, high: 8e-3, log: true}
      curriculum: [none, cyclical]
  - stage: averaging
    num_trials: 2
    sampler: random
    methods: [last, {name: lawa, window: 2, spacing: 1}]
"""
INLINE = "engine: optuna\npool: inline"
ON_RAY = {"optuna on the Ray pool": "engine: optuna\npool: ray", "ray": "engine: ray"}


def run(folder: Path, how: str) -> Path:
    file = folder / "same.yaml"
    file.write_text(STUDY.replace("HOW", how))
    study = run_here(file, folder / "home")
    assert (study.state, study.reason) == ("complete", None)
    return folder / "home"


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return read_rows(run(tmp_path_factory.mktemp("inline"), INLINE), "same")


@pytest.mark.parametrize("name", ON_RAY)
def test_each_way_to_run_a_study_gives_the_same_trials_metrics_and_curves(
    name: str, inline: Rows, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    home = run(tmp_path, ON_RAY[name])
    rows = read_rows(home, "same")
    assert differences(rows, inline) == []
    assert list((tmp_path / "cwd").iterdir()) == []
    assert not list(home.rglob("ray"))
    (setup,) = rows.setups
    assert (setup["engine"], setup["pool"], setup["ray_address"]) == (name.partition(" ")[0], "ray", address)
    assert "RAY_ADDRESS" not in setup["reason"]  # the file asked for it


@pytest.mark.slow
def test_a_study_may_change_its_engine_half_way(
    inline: Rows, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes import RecordingProgress, Switch, Told

    control = Switch()

    def stop(told: Told) -> None:
        control.on = control.on or (told.what, told.stage) == ("trial ended", "train")

    file = tmp_path / "same.yaml"
    file.write_text(STUDY.replace("HOW", INLINE))
    half = run_here(file, tmp_path / "home", progress=RecordingProgress(stop), control=control)
    assert half.state == "interrupted"
    monkeypatch.setenv("RAY_ADDRESS", address)
    home = run(tmp_path, "engine: {name: ray}\nresources: {max_concurrent: 1}")
    rows = read_rows(home, "same")
    assert differences(rows, inline) == []
    assert [setup["engine"] for setup in rows.setups] == ["optuna", "ray"]
