"""The quickstart, shortened, ends with the same champion on engine `ray` as in one process."""

import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.spec.engine import ray_is_installed
from tests.tiny import read_rows, start

QUICKSTART = Path(__file__).resolve().parents[2] / "studies" / "quickstart.yaml"
SHORTER = {
    "image_size: 32": "image_size: 32\n  max_images: 300\n  max_test_images: 100",
    "num_trials: 64": "num_trials: 10",
    "num_trials: 10\n    epochs: 36": "num_trials: 8\n    epochs: 8",
    "num_trials: 16": "num_trials: 8",
    "resamples: 1000": "resamples: 100",
}


def champion(folder: Path, *arguments: str) -> tuple[dict[str, object], object]:
    """What `promote` found, and the champion's whole configuration."""
    folder.mkdir()
    text = QUICKSTART.read_text(encoding="utf-8")
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "quickstart.yaml").write_text(text, encoding="utf-8")
    home = folder / "home"
    told = finish(start("run", "quickstart.yaml", "--quiet", *arguments, home=home, cwd=folder))
    assert "Champion" in told
    result = read_rows(home, "digits-quickstart").stages["promote"].result
    assert result is not None
    best = finish(start("best", "digits-quickstart", home=home, cwd=folder))
    return {name: value for name, value in result.items() if name != "folder"}, yaml.safe_load(best)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
@pytest.mark.skipif(not ray_is_installed(), reason="Ray is not installed (pip install 'ray[tune]')")
def test_the_quickstart_has_the_same_champion_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    inline = champion(tmp_path / "inline", "--engine", "optuna")
    on_ray = champion(tmp_path / "ray", "--engine", "ray")
    assert on_ray == inline
    assert "test_accuracy" in inline[0]
