"""Tables of published accuracies: what is read, and messages about unusable tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evaluation.ground_truth import GroundTruth, load_table_truth
from orchestrator.evaluation.repeated_truths import accuracies_digest
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import read_truth_table
from orchestrator.stages.truths import load_truth, truth_fingerprint
from plugins.proxies.travelled_1 import FITTED_TO
from plugins.registry import load, parse_topology
from search_spaces.base import ImageTask
from trainers.config import DataConfig

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "vit-bench-101"
NOISE = DataConfig(source="noise", image_size=32, num_classes=5)
TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
TEXTS = (
    "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8",
    "4,8,2,1|2,2,6,1|3,2,3,1|2,1,4,1|16,8",
    "6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,8",
)


def rows() -> list[dict[str, Any]]:
    """Three As-ViT topologies; the first as its fields, the others as text."""
    topologies = [parse_topology(f"as-vit:{text}") for text in TEXTS]
    costs = [load("spaces", "as-vit").costs(topology, TASK) for topology in topologies]
    archs = [topologies[0].model_dump(mode="json"), TEXTS[1], f"as-vit:{TEXTS[2]}"]
    return [
        {"arch": arch, "acc": 50.0 + place, "params": cost.parameters, "macs": cost.macs}
        for place, (arch, cost) in enumerate(zip(archs, costs, strict=True))
    ]


def write(folder: Path, content: Any) -> Path:
    file = folder / "table.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def truth_of(file: Path, *, data: DataConfig = NOISE, **fields: Any) -> GroundTruth:
    given = {"table": str(file), "space": "as-vit", "target": "acc", **fields}
    return load_table_truth(TruthSource.model_validate(given), data=data)


def test_a_table_gives_topologies_and_accuracies_in_its_own_unit(tmp_path: Path) -> None:
    truth = truth_of(write(tmp_path, rows()))
    assert truth.topologies == tuple(f"as-vit:{text}" for text in TEXTS)
    assert truth.accuracies == (50.0, 51.0, 52.0)
    assert (truth.unit, truth.target, truth.name, truth.kind) == ("table", "acc", "table", "table")
    assert (truth.task, truth.data, truth.curves) == (TASK, NOISE, ())


def test_networks_may_have_more_classes_than_the_images(tmp_path: Path) -> None:
    given = [{key: value for key, value in row.items() if key not in ("params", "macs")} for row in rows()]
    assert truth_of(write(tmp_path, given), num_classes=100).task.num_classes == 100
    with pytest.raises(TruthError, match="at least the 5 classes of the images, but num_classes is 4") as caught:
        truth_of(tmp_path / "table.json", num_classes=4)
    assert caught.value.key == "num_classes"


def test_costs_that_are_not_ours_are_named_with_their_row_and_both_numbers(tmp_path: Path) -> None:
    ours = rows()[1]["params"]
    given = rows()
    given[1]["params"] = 123_456
    with pytest.raises(TruthError) as caught:
        truth_of(write(tmp_path, given))
    for fragment in ("row 2 of", "123,456 parameters", f"{ours:,}", "5 classes", "3 x 32 x 32"):
        assert fragment in str(caught.value)
    given = rows()
    given[2]["macs"] += 1
    with pytest.raises(TruthError, match=r"row 3 of .* macs"):
        truth_of(write(tmp_path, given))


BAD: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], tuple[str, ...]]] = {
    "not JSON": (lambda _: "[{'arch': 1}]", ("must be JSON", "line 1")),
    "not a list": (lambda given: given[0], ("must be a list of rows", "a mapping (arch, acc")),
    "no rows": (lambda _: [], ("at least one", "a list of 0")),
    "a row that is no mapping": (lambda given: [*given, 3], ("row 4 of", "'arch'", "it is 3")),
    "a row without arch": (lambda given: [*given, {"acc": 1.0}], ("row 4 of", "'arch'")),
    "a target that is not there": (
        lambda given: [{"arch": row["arch"], "acc_kd": 1.0} for row in given],
        ("must be one of acc_kd", "'acc'"),
    ),
    "a target that is missing in one row": (
        lambda given: [*given[:2], {"arch": TEXTS[2], "top1": 1.0}],
        ("row 3", "top1"),
    ),
    "a target that is text": (lambda given: [{**given[0], "acc": "high"}], ("row 1", "finite number", "'high'")),
    "a target that is not finite": (lambda given: [*given[:1], {**given[1], "acc": float("nan")}], ("row 2", "nan")),
    "an arch of another space": (lambda _: [{"arch": {"base_dim": 16}, "acc": 1.0}], ("row 1", "'as-vit'")),
    "a text of another form": (lambda given: [*given, {"arch": "1,2|3", "acc": 1.0}], ("row 4", "arch")),
    "a topology twice": (lambda given: [*given, {"arch": TEXTS[0], "acc": 1.0}], ("row 4", "repeats row 1", TEXTS[0])),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_cannot_be_used_is_answered_with_one_line(tmp_path: Path, name: str) -> None:
    change, fragments = BAD[name]
    file = write(tmp_path, change(rows()))
    with pytest.raises(TruthError) as caught:
        truth_of(file)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    for fragment in (*fragments, *(() if "target" in caught.value.key else (str(file),))):
        assert fragment in message, message


def test_the_nearest_target_and_space_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, [{**row, "c100_kd_acc": 1.0} for row in rows()])
    with pytest.raises(TruthError, match="Did you mean 'c100_kd_acc'") as caught:
        read_truth_table(file, space="as-vit", target="c100_kd_ac")
    assert caught.value.key == "target"
    with pytest.raises(TruthError, match="Did you mean 'as-vit'") as caught:
        read_truth_table(file, space="as-vitt", target="acc")
    assert caught.value.key == "space"


def test_a_file_that_is_not_there_and_one_that_is_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(TruthError, match=r"nowhere.json must be a table, but it cannot be read"):
        truth_of(tmp_path / "nowhere.json")
    (tmp_path / "table.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TruthError, match="must be JSON"):
        truth_of(tmp_path / "table.json")
    with pytest.raises(TruthError, match="cannot be read"):
        truth_of(tmp_path)


def test_a_topology_that_does_not_fit_the_images_is_told_with_its_row(tmp_path: Path) -> None:
    given = [{"arch": TEXTS[0], "acc": 1.0}, {"arch": TEXTS[1].removesuffix("8") + "1", "acc": 2.0}]
    with pytest.raises(TruthError, match=r"row 2 of .* must fit images of 32 pixels, but"):
        truth_of(write(tmp_path, given))


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    choice = TruthSource.model_validate({"table": str(write(tmp_path, rows())), "space": "as-vit", "target": "acc"})
    first = truth_fingerprint(choice, None)
    write(tmp_path, rows()[:2])
    assert truth_fingerprint(choice, None) != first
    write(tmp_path, rows())
    assert truth_fingerprint(choice, None) == first


def test_a_study_that_is_not_there_is_told() -> None:
    with pytest.raises(TruthError, match="there is no study 'tiny'") as caught:
        load_truth(TruthSource(study="tiny"), data=NOISE, store=None)
    assert caught.value.key == "study"


@pytest.mark.parametrize(("file", "space"), [("pit-cifar100", "pit"), ("autoformer-cifar100", "autoformer")])
def test_the_published_tables_are_of_our_networks(file: str, space: str) -> None:
    path = SHARED / f"{file}.json"
    if not path.exists():
        pytest.skip("the shared tables are not there")
    data = DataConfig(source="noise", image_size=224, num_classes=100, max_images=10)
    for target in ("c100_base_acc", "c100_kd_acc"):
        truth = truth_of(path, data=data, space=space, target=target)
        assert len(truth.topologies) == len(set(truth.topologies)) == 100
        assert accuracies_digest(truth.by_topology) in FITTED_TO
