"""Accuracies of a recipe at an epoch, read from a table of trainings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from orchestrator.cli.verdict_table import ceiling_text
from orchestrator.evaluation.ground_truth import GroundTruth, load_table_truth
from orchestrator.spec import trainings_table
from orchestrator.spec.truth_error import TruthError
from orchestrator.spec.truth_source import TruthSource
from orchestrator.spec.truth_table import read_truth_table, task_of_trainings
from tests.trainings import TASK, TEXTS, card, rows, write_trainings
from trainers.config import DataConfig
from vitsearch import tables

NOISE = DataConfig(source="noise", image_size=32, num_classes=5)


def truth_of(file: Path, **fields: Any) -> GroundTruth:
    given = {"table": str(file), "space": "as-vit", "target": "val_accuracy", "recipe": "base", **fields}
    return load_table_truth(TruthSource.model_validate(given), data=NOISE)


def value(rows: list[dict[str, Any]], topology: str, recipe: str, seed: int, epoch: int, column: str) -> float:
    (row,) = (
        row
        for row in rows
        if (row["topology"], row["recipe"], row["seed"], row["epoch"]) == (topology, recipe, seed, epoch)
    )
    return float(row[column])


def test_the_accuracy_of_a_topology_is_the_mean_over_its_seeds_at_the_last_epoch(tmp_path: Path) -> None:
    given, file = rows(), write_trainings(tmp_path / "small.parquet")
    truth = truth_of(file)
    assert truth.topologies == TEXTS
    first = [value(given, TEXTS[0], "base", seed, 3, "val_accuracy") for seed in (0, 1)]
    assert truth.seeds[0] == pytest.approx(first)
    assert truth.accuracies[0] == pytest.approx(sum(first) / 2)
    assert [len(seeds) for seeds in truth.seeds] == [2, 1, 1]
    assert (truth.title, truth.unit, truth.task) == ("val_accuracy of small (base, epoch 3)", "fraction", TASK)
    assert (truth.num_images, truth.num_left_out) == (400, 0)


def test_an_earlier_epoch_another_recipe_and_the_test_part_are_read_by_name(tmp_path: Path) -> None:
    given, file = rows(), write_trainings(tmp_path / "small.parquet")
    early = truth_of(file, epoch=1)
    assert early.accuracies[1] == pytest.approx(value(given, TEXTS[1], "base", 0, 1, "val_accuracy"))
    fast = truth_of(file, recipe="fast")
    assert fast.topologies == TEXTS[:2]  # the training of the third one failed
    assert fast.num_left_out == 1
    test = truth_of(file, target="test_accuracy")
    assert test.num_images == 1000
    assert test.title == "test_accuracy of small (base, epoch 2)"  # the last epoch that was measured on this part


def later_failure(num_epochs: int) -> list[dict[str, Any]]:
    """The rows of `rows()`, in which the failed training went on for some epochs more than the complete ones."""
    given = rows()
    (last,) = (row for row in given if row["state"] == "failed")
    return [*given, *({**last, "epoch": epoch} for epoch in range(2, num_epochs + 1))]


def test_the_last_epoch_is_that_of_trainings_that_did_not_fail(tmp_path: Path) -> None:
    file = write_trainings(tmp_path / "small.parquet", later_failure(5))
    table = read_truth_table(file, space="as-vit", target="val_accuracy", recipe="fast")
    assert (table.epoch, len(table.rows), table.num_left_out) == (3, 2, 1)
    with pytest.raises(TruthError, match="was measured, 1, 2, 3 in") as caught:
        read_truth_table(file, space="as-vit", target="val_accuracy", recipe="fast", epoch=5)
    assert caught.value.key == "epoch"


def test_a_recipe_whose_trainings_all_failed_is_an_error(tmp_path: Path) -> None:
    given = [{**row, "state": "failed"} if row["recipe"] == "fast" else row for row in rows()]
    file = write_trainings(tmp_path / "small.parquet", given)
    with pytest.raises(TruthError, match="val_accuracy must be measured in a training") as caught:
        read_truth_table(file, space="as-vit", target="val_accuracy", recipe="fast")
    assert caught.value.key == "target"


def test_a_recipe_need_not_be_named_if_there_is_only_one(tmp_path: Path) -> None:
    file = write_trainings(tmp_path / "small.parquet", [row for row in rows() if row["recipe"] == "fast"])
    table = read_truth_table(file, space="as-vit", target="val_accuracy")
    assert (table.recipe, table.epoch) == ("fast", 3)


def test_the_ceiling_comes_from_the_seeds_and_without_them_from_the_number_of_images(tmp_path: Path) -> None:
    seeds = truth_of(write_trainings(tmp_path / "small.parquet")).ceiling(0.95)
    assert seeds is not None
    assert (seeds.source, seeds.num_seeds) == ("seeds", 1)
    text = ceiling_text(seeds.model_dump(mode="json"))
    assert text.endswith("(from the topologies that were trained several times).")
    single = write_trainings(tmp_path / "single.parquet", [row for row in rows() if row["seed"] == 0])
    images = truth_of(single).ceiling(0.95)
    assert images is not None
    assert images.source == "images"


def test_other_images_than_those_of_the_trainings_are_refused(tmp_path: Path) -> None:
    file = write_trainings(tmp_path / "small.parquet")
    assert task_of_trainings(file) == TASK
    source = TruthSource(table=str(file), space="as-vit", target="val_accuracy", recipe="base")
    with pytest.raises(TruthError, match="must match our networks"):
        load_table_truth(source, data=DataConfig(source="noise", image_size=64, num_classes=5))


def test_a_study_file_names_recipe_and_epoch_only_for_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`recipe` is only for a `table`"):
        TruthSource(study="tiny", recipe="base")
    file = tmp_path / "table.json"
    file.write_text(json.dumps([{"arch": TEXTS[0], "acc": 1.0}]))
    with pytest.raises(TruthError, match="`epoch` is only for a table of trainings") as caught:
        read_truth_table(file, space="as-vit", target="acc", epoch=3)
    assert caught.value.key == "epoch"


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no recipe": ({"recipe": None}, "recipe", "has base, fast"),
    "another recipe": ({"recipe": "bas"}, "recipe", "Did you mean 'base'"),
    "another space": ({"space": "pit"}, "space", "must be one of the table's, as-vit"),
    "another target": ({"target": "val_acc"}, "target", "Did you mean 'val_accuracy'"),
    "a column that is no accuracy": ({"target": "val_loss"}, "target", "must be one of val_accuracy, test_accuracy"),
    "an epoch that is too late": ({"epoch": 4}, "epoch", "1, 2, 3 in"),
    "an epoch without a test": ({"target": "test_accuracy", "epoch": 3}, "epoch", "was measured, 2 in"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_in_the_table_is_an_error_that_names_what_is(tmp_path: Path, name: str) -> None:
    fields, key, fragment = BAD[name]
    given = {"space": "as-vit", "target": "val_accuracy", "recipe": "base", **fields}
    with pytest.raises(TruthError) as caught:
        read_truth_table(write_trainings(tmp_path / "small.parquet"), **given)
    assert caught.value.key == key
    assert fragment in str(caught.value)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def _damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)


def _without_column(file: Path) -> None:
    parquet.write_table(parquet.read_table(file).drop_columns("macs"), file)


def _with_null(file: Path) -> None:
    write_trainings(file, [{**row, "seed": None} for row in rows()])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (_cut, "must be a parquet file"),
    "damaged": (_damage, "must be a whole parquet file|lacks one of them"),
    "without a column": (_without_column, "must have the column 'macs'"),
    "without a seed": (_with_null, "row 1 of .* lacks one of them"),
    "empty": (lambda file: write_trainings(file, rows()[:0]), "must have at least 1 training"),
    "without a card": (lambda file: write_trainings(file, metadata={}), "no card"),
    "with a card that is no mapping": (lambda file: write_trainings(file, metadata=[1]), "no card"),
    "without its images' sizes": (
        lambda file: write_trainings(file, metadata={"images": {**card()["images"], "test": "many"}}),
        "number of test images",
    ),
    "without its networks' images": (
        lambda file: write_trainings(file, metadata={"images": {"validation": 4, "test": 4}}),
        "image size, channels and classes",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_another_or_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    change, fragment = DAMAGES[name]
    file = write_trainings(tmp_path / "small.parquet")
    change(file)
    with pytest.raises(TruthError, match=fragment) as caught:
        read_truth_table(file, space="as-vit", target="val_accuracy", recipe="base")
    assert "small.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_of_the_card_is_that_of_the_tables() -> None:
    assert trainings_table.CARD_KEY == tables.CARD_KEY


def test_the_made_table_is_one_that_the_reader_of_tables_accepts(tmp_path: Path) -> None:
    table = tables.load(write_trainings(tmp_path / "small.parquet"))
    assert set(table.epochs["recipe"]) == {"base", "fast"}
    assert isinstance(pa.Table.from_pandas(table.epochs), pa.Table)
