"""The quickstart, shortened, ends with the same champion on engine `ray` as in one process."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.engine import ray_is_installed
from tests.tiny import read_rows, run_here, start

QUICKSTART = Path(__file__).resolve().parents[2] / "studies" / "quickstart.yaml"
SHORTER = {
    "image_size: 32": "image_size: 32\n  max_images: 160\n  max_test_images: 60",
    "num_trials: 64": "num_trials: 10",
    "num_trials: 10\n    epochs: 36": "num_trials: 8\n    epochs: 8",
    "num_trials: 16": "num_trials: 8",
    "resamples: 1000": "resamples: 100",
}


def write_short(folder: Path) -> Path:
    """The shortened quickstart, in a new folder."""
    folder.mkdir()
    text = QUICKSTART.read_text(encoding="utf-8")
    for old, new in SHORTER.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "quickstart.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def champion(home: Path) -> dict[str, Any]:
    """What `promote` found, with the champion's whole configuration."""
    result = read_rows(home, "digits-quickstart").stages["promote"].result
    assert result is not None
    return {name: value for name, value in result.items() if name != "folder"}


@pytest.mark.slow
@pytest.mark.skipif(not ray_is_installed(), reason="Ray is not installed (pip install 'ray[tune]')")
def test_the_quickstart_has_the_same_champion_on_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = write_short(tmp_path / "inline")
    file.write_text(f"{file.read_text(encoding='utf-8')}\nengine: optuna\npool: inline\n", encoding="utf-8")
    assert run_here(file, tmp_path / "inline" / "home").state == "complete"
    file = write_short(tmp_path / "ray")
    process = start("run", file.name, "--quiet", "--engine", "ray", home=tmp_path / "ray" / "home", cwd=file.parent)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "Champion" in out
    found, expected = champion(tmp_path / "ray" / "home"), champion(tmp_path / "inline" / "home")
    assert found == expected
    assert {"test_accuracy", "configuration"} <= found.keys()
