"""Image sets with troubles that users of comparable tools have reported: `vitsearch data` says what is right."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CommandLine

REPORTED = Path(__file__).resolve().parents[3] / "shared" / "data" / "reported"
EXPECTED: dict[str, dict[str, Any]] = {}
if REPORTED.is_dir():
    EXPECTED = {
        name: case
        for name, case in json.loads((REPORTED / "expected.json").read_text()).items()
        if isinstance(case, dict)
    }
MEAN_TOLERANCE = 0.04

pytestmark = pytest.mark.skipif(not EXPECTED, reason="the reported image sets are not at hand (../shared/data)")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    subprocess.run([sys.executable, REPORTED / "make_cases.py", folder], check=True, capture_output=True)
    return folder


def describe(command_line: CommandLine, folder: Path, *options: str) -> dict[str, Any]:
    done = command_line("data", str(folder), "--image-size", "32", "--format", "json", *options)
    assert done.status == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def totals(report: dict[str, Any]) -> dict[str, int]:
    return {name: sum(part["per_class"][name] for part in report["parts"].values()) for name in report["classes"]}


def num_skipped(report: dict[str, Any]) -> int:
    return sum(one["count"] for one in report["skipped"])


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_right_is_said(name: str, sets: Path, command_line: CommandLine) -> None:
    expected, folder = EXPECTED[name], sets / name
    if "refused" in expected:
        refused = command_line("data", str(folder), "--image-size", "32", "--format", "json")
        assert refused.status == 2
        assert refused.out == ""
        assert all(word in refused.err for word in expected["refused"])
        assert "Traceback" not in refused.err
        if "with_skip_broken" not in expected:
            return
        expected = expected["with_skip_broken"]
        report = describe(command_line, folder, "--skip-broken")
    else:
        report = describe(command_line, folder)
    if "totals" in expected:
        assert totals(report) == expected["totals"]
    for part, count in expected.get("parts", {}).items():
        assert report["parts"][part]["num_images"] == count
    if "mean" in expected:
        means = expected["mean"] * (report["channels"] // len(expected["mean"]))
        assert report["mean"] == pytest.approx(means, abs=MEAN_TOLERANCE)
    if "channels" in expected:
        assert report["channels"] in expected["channels"]
    assert max(report["std"]) >= expected.get("std_at_least", 0.0)
    if "skipped" in expected:
        assert num_skipped(report) == expected["skipped"]
    told = [f"{warning['kind']} {warning['message']}" for warning in report["warnings"]]
    for word in expected.get("warnings", ()):
        assert any(word in one for one in told), told


def test_every_row_of_a_shard_with_another_order_of_classes_keeps_its_class(sets: Path) -> None:
    """A disc has ink at its centre of mass, a ring has none."""
    from trainers.config import DataConfig
    from trainers.data.images import load_images

    data = load_images(DataConfig(source=str(sets / "swapped-shard"), image_size=40))
    images = data.train.images[:, 0].float()
    ink = (images < 128).float()
    places = ink.flatten(1)
    index = ink.new_tensor(range(40))
    y = (ink.sum(2) @ index / places.sum(1)).round().long()
    x = (ink.sum(1) @ index / places.sum(1)).round().long()
    at_centre = ink[range(len(ink)), y, x]
    assert [data.class_names[label] for label in data.train.labels] == [
        "disc" if is_inked else "ring" for is_inked in at_centre.bool().tolist()
    ]
