"""The As-ViT study files: they are valid and follow the paper."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.spec.study_file import load_spec
from orchestrator.stages.grow import GrowStage
from orchestrator.stages.screen import ScreenStage

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight small photographs."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(("file", "size", "target"), [("as-vit", 224, 80_000_000), ("as-vit-small", 32, 10_000_000)])
def test_the_search_and_the_growth_are_the_papers(file: str, size: int, target: int, images: Path) -> None:
    spec = load_spec(STUDIES / f"{file}.yaml", overrides={"data.source": str(images)})
    assert spec.data.image_size == size
    screen, grow = spec.stages[:2]
    assert isinstance(screen, ScreenStage)
    assert isinstance(grow, GrowStage)
    assert (screen.sampler.name, screen.num_trials, screen.batch_size) == ("reinforce", 500, 16)
    assert screen.ranking == ("length-distortion", "ntk-condition")
    assert all(proxy.settings["repeats"] == 5 for proxy in screen.proxies[:2])
    assert screen.search_space.width == 32
    assert (grow.start, grow.target_params, grow.reduction, grow.repeats) == ("final-choice", target, 4, 5)
    assert grow.width_ratios == (0.05, 0.10, 0.15, 0.20)
