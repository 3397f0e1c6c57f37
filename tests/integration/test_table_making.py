"""Makes a small table of trainings: measurements, resuming, packs, the file with its card, and stopping rules."""

import io
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.stopping_rules import compare, criteria, curves_of, recorded_signals, row_of
from benchmarks.tables.averages import Evaluator, Measurement, state_of
from benchmarks.tables.continuing import take_trainings
from benchmarks.tables.making import TableMaker
from benchmarks.tables.plan import CIFAR_10, TablePlan, cells_of, choose_topologies
from benchmarks.tables.records import Results
from benchmarks.tables.writing import estimate_s, write_table
from plugins.registry import parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from tests.unit.training import CPU
from trainers.config import TrainTask
from trainers.models.building import build_model, topology_costs
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter
from vitsearch import tables

ROOT = Path(__file__).resolve().parents[2]
EMA = 0.9
NOT_A_NUMBER = "mean(mean(mlp.weight) / (mean(mlp.weight) - mean(mlp.weight)))"
TWO_CLASSES = ImageTask(image_size=32, in_channels=3, num_classes=2)
PLAN = TablePlan.model_validate(
    {
        "table": "small",
        "data": {"train": 40, "validation": 20, "test": 20},
        "epochs": 3,
        "num_repeated": 1,
        "num_seeds": 2,
        "ema": [EMA, 0.99],
        "lawa": [2],
        "average_every": 2,
        "test_every": 2,
        "signals": ["gradient_norm"],
        "proxies": ["params", {"name": "expression", "formula": NOT_A_NUMBER}],
        "topologies": ["as-vit:4,8,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,2", "as-vit:4,8,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"],
        "recipes": {
            # Adam divides tiny gradients by their size, so that a pack's rounding would show.
            "base": {"batch_size": 20, "optimizer": "sgd"},
            "fast": {"batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05},
        },
    }
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise in the form of CIFAR-10's parquet files, with 2 classes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 20)):
        rows = []
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue()}, "label": number % 2})
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def maker(
    images: Path, work: Path, *, pack_size: int = 1, should_stop: Callable[[], bool] = lambda: False
) -> TableMaker:
    return TableMaker.of(
        PLAN,
        source=images,
        results=Results(work),
        device=CPU,
        pack_size=pack_size,
        should_stop=should_stop,
        say=lambda _: None,
    )


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TableMaker, Path]:
    """The maker of a finished table, trained one by one, and its file."""
    folder = tmp_path_factory.mktemp("table")
    made = maker(images, folder / "work")
    made.make()
    write_table(made, folder / "small.parquet", notes={"notes": ["for a test"]})
    return made, folder / "small.parquet"


@pytest.fixture
def table(finished: tuple[TableMaker, Path]) -> tables.BenchmarkTable:
    return tables.load(finished[1])


def test_the_table_has_all_trainings_and_a_card(
    finished: tuple[TableMaker, Path], table: tables.BenchmarkTable
) -> None:
    assert len(table.epochs) == 5 * PLAN.epochs
    assert not table.is_partial
    assert (table.card["num_trainings"], table.card["num_planned"]) == (5, 5)
    assert table.card["environments"][0]["num_trainings"] == 5
    assert table.card["notes"] == ["for a test"]
    assert table.recipes["fast"] == {"batch_size": 20, "optimizer": "sgd", "learning_rate": 0.05}
    assert set(table.card["noise"]["val_accuracy"]) >= {"topology", "recipe", "interaction", "seed"}
    assert finished[1].with_suffix(".card.yaml").read_text().startswith("table: small")
    assert not list((finished[1].parent / "work" / "running").iterdir())


def test_a_topology_has_its_costs_and_scores_and_a_failed_score_its_count(table: tables.BenchmarkTable) -> None:
    for topology, row in table.topologies.iterrows():
        costs = topology_costs(str(topology), TWO_CLASSES)
        assert (row["parameters"], row["macs"], row["proxy.params"]) == (*costs, costs.parameters)
    assert table.card["proxies_without_score"] == {"expression": 2}


def test_what_was_not_measured_is_empty_and_says_so(table: tables.BenchmarkTable) -> None:
    by_epoch = table.epochs.groupby("epoch")
    assert list(by_epoch["averages_measured"].all()) == [True, False, True]
    assert by_epoch["val_accuracy"].count().tolist() == [5, 5, 5]
    assert by_epoch["test_accuracy"].count().tolist() == [5, 0, 5]
    assert by_epoch[f"test_accuracy.ema-{EMA}"].count().tolist() == [5, 0, 5]
    assert by_epoch["val_loss.lawa-2"].count().tolist() == [0, 0, 5]  # the first epoch has too few checkpoints
    assert table.epochs["signal.gradient_norm"].notna().all()


def test_measurements_are_those_of_the_same_training_done_by_hand(
    finished: tuple[TableMaker, Path], table: tables.BenchmarkTable, images: Path, tmp_path: Path
) -> None:
    made, cell = finished[0], cells_of(PLAN)[0]
    config = cell.configuration(PLAN, images)
    outcome = train(
        TrainTask(configuration=config, folder=tmp_path, keep_checkpoints=3), made.data, SilentReporter(), CPU
    )
    states = [load_weights(record.path) for record in outcome.checkpoints]
    wanted = {
        "": states[2],
        ".lawa-2": {
            name: ((states[1][name].double() + value.double()) / 2).to(value.dtype) for name, value in states[2].items()
        },
        f".ema-{EMA}": load_weights(outcome.checkpoints[2].path, average=f"ema-{EMA}"),
    }
    row = table.find(topology=cell.topology, recipe=cell.recipe, seed=cell.seed, epoch=3).iloc[0]
    model = build_model(cell.topology, made.data.task, seed=9, device=CPU)
    normalizer = Normalizer(made.data.mean, made.data.std, CPU)
    for suffix, state in wanted.items():
        model.load_state_dict(state)
        for part, split in (("val", made.data.validation), ("test", made.test)):
            found = evaluate(model, split, normalizer)
            assert row[f"{part}_loss{suffix}"] == pytest.approx(found.loss, rel=1e-6)
            assert row[f"{part}_accuracy{suffix}"] == pytest.approx(found.accuracy, rel=1e-6)
    assert row["learning_rate"] > 0
    assert row["training_macs"] == 3 * 40 * row["macs"]


def test_a_table_that_is_interrupted_everywhere_and_packed_is_the_same(
    table: tables.BenchmarkTable, images: Path, tmp_path: Path
) -> None:
    for count in (1, 5, 9, 17, 10_000):
        calls = itertools.count()
        made = maker(images, tmp_path / "work", pack_size=3, should_stop=lambda: next(calls) >= count)  # noqa: B023
        made.make()
    write_table(made, tmp_path / "packed.parquet", notes={})
    packed = tables.load(tmp_path / "packed.parquet").epochs
    assert packed["pack_size"].max() > 1
    own = ("wall_time_s", "measuring_s", "pack_size", "averages_measured", "test_measured")
    numbers = [name for name in packed.select_dtypes("number").columns if name not in own]
    assert packed[["topology", "recipe", "seed", "epoch"]].equals(table.epochs[["topology", "recipe", "seed", "epoch"]])
    np.testing.assert_allclose(packed[numbers].to_numpy(float), table.epochs[numbers].to_numpy(float), rtol=1e-4)


def test_a_partial_table_says_so_and_how_long_the_rest_takes(
    finished: tuple[TableMaker, Path], images: Path, tmp_path: Path
) -> None:
    made = maker(images, tmp_path / "work", should_stop=lambda: False)
    with pytest.raises(ValueError, match="needs at least 1 finished training"):
        write_table(made, tmp_path / "part.parquet", notes={})
    for cell in cells_of(PLAN)[:2]:
        record = finished[0].results.training(finished[0].key(cell))
        assert record is not None
        made.results.keep_training(made.key(cell), record)
    for topology in PLAN.topologies:
        scored = finished[0].results.topology(finished[0].topology_key(topology))
        assert scored is not None
        made.results.keep_topology(made.topology_key(topology), scored)
    card = write_table(made, tmp_path / "part.parquet", notes={})
    assert card["partial"]
    assert "at least" in card["noise"]["val_accuracy"]
    part = tables.load(tmp_path / "part.parquet")
    spent = (part.epochs["wall_time_s"] / part.epochs["pack_size"]).sum() + part.find(epoch=1)["measuring_s"].sum()
    macs = {text: topology_costs(text, TWO_CLASSES).macs for text in PLAN.topologies}
    per_mac = spent / 2 / macs[PLAN.topologies[0]]
    missing = [macs[cell.topology] for cell in cells_of(PLAN)[2:]]
    assert estimate_s(PLAN, part) == pytest.approx(per_mac * sum(missing), rel=1e-4)
    assert estimate_s(PLAN, tables.load(finished[1])) == 0.0


def test_a_table_is_continued_without_its_work_folder(
    finished: tuple[TableMaker, Path], images: Path, tmp_path: Path
) -> None:
    written, num_cells = tables.load(finished[1]), len(cells_of(PLAN))
    made = maker(images, tmp_path / "work", should_stop=lambda: True)
    assert take_trainings(written, made.results, data_digest="another") == 0
    assert take_trainings(written, made.results, data_digest=made.data.digest) == num_cells
    assert take_trainings(written, made.results, data_digest=made.data.digest) == 0
    with pytest.raises(ValueError, match="those of 2 are missing"):
        write_table(made, tmp_path / "again.parquet", notes={})
    made = maker(images, tmp_path / "work")
    made.make()
    card = write_table(made, tmp_path / "again.parquet", notes={})
    again = tables.load(tmp_path / "again.parquet").epochs
    assert card["environments"] == written.card["environments"]
    assert again.equals(written.epochs)


def test_what_another_process_computes_is_left_to_it(images: Path, tmp_path: Path) -> None:
    made, (theirs, *ours) = maker(images, tmp_path), cells_of(PLAN)
    with Results(tmp_path).claimed(made.key(theirs)) as is_ours:
        assert is_ours
        made.make()
    assert made.results.training(made.key(theirs)) is None
    assert all(made.results.training(made.key(cell)) for cell in ours)
    made.make()
    assert made.results.training(made.key(theirs))


def test_the_command_makes_the_table_and_finds_it_finished(images: Path, tmp_path: Path) -> None:
    plan = tmp_path / "small.yaml"
    plan.write_text(yaml.safe_dump(PLAN.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    options = ["--data", str(images), "--work", str(tmp_path / "work"), "--threads", "1"]
    for trainings, note in (("0 of 5", "for a test"), ("5 of 5", "continued")):
        command = [sys.executable, "-m", "benchmarks.tables", "make", str(plan), *options, "--note", note]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"small: {trainings} trainings are finished" in done.stdout
        assert "small.parquet: 5 of 5 trainings" in done.stdout
    assert tables.load(tmp_path / "small.parquet").card["notes"] == ["for a test", "continued"]


def test_the_first_recipe_of_each_topology_comes_first_and_further_seeds_last(images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plan = PLAN.model_copy(update={"num_repeated": 2})
    made = replace(maker(images, tmp_path), plan=plan, say=said.append)
    made.make()
    trained = [line for line in said if " seed " in line]
    first = next(iter(PLAN.recipes))
    assert [line.split()[1] for line in trained[: len(PLAN.topologies)]] == [first] * len(PLAN.topologies)
    assert [line.partition(" seed ")[2][0] for line in trained] == ["0"] * 4 + ["1"] * 2


def test_several_state_dicts_at_once_are_measured_as_one_by_one(
    finished: tuple[TableMaker, Path], images: Path
) -> None:
    made, cell = finished[0], cells_of(PLAN)[0]
    evaluator = Evaluator(cell.configuration(PLAN, images), made.data, made.test, CPU, threads=1)
    states = [build_model(cell.topology, made.data.task, seed=seed, device=CPU).state_dict() for seed in range(3)]
    one_by_one = evaluator.measure([(Measurement(1, "weights", ("test",)), state) for state in states])
    together = evaluator._together(states, "test")
    for one, other in zip(one_by_one, together, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


def test_a_source_of_another_size_is_refused(images: Path, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"data": PLAN.data.model_copy(update={"train": 400})})
    with pytest.raises(ValueError, match=r"must give \(400, 20, 20\) images"):
        TableMaker.of(plan, source=images, results=Results(tmp_path), device=CPU, pack_size=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipes": {**PLAN.recipes, "odd": {"optimizer": "adamm"}}}, "recipe 'odd': .*adamm"),
        ({"topologies": (*PLAN.topologies, "pit:1,2|1,2|1,2|2,8,64")}, r"must fit the images, but pit:.* does not"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_before_anything_is_trained(
    images: Path, tmp_path: Path, changed: dict, message: str
) -> None:
    plan = TablePlan.model_validate({**PLAN.model_dump(), **changed})
    with pytest.raises(ValueError, match=message):
        TableMaker.of(plan, source=images, results=Results(tmp_path), device=CPU, pack_size=1)


def test_a_training_that_fails_is_named_and_the_others_are_made(images: Path, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"topologies": PLAN.topologies[:1], "num_repeated": 0, "epochs": 1})
    made = TableMaker.of(plan, source=images, results=Results(tmp_path), device=CPU, pack_size=1, say=lambda _: None)
    in_the_way = made.results.running(made.key(cells_of(plan)[1]))
    in_the_way.write_text("a file where the checkpoints belong")
    made.make()
    (problem,) = made.problems
    assert "fast seed 0" in problem
    assert "must be written" in problem
    assert write_table(made, tmp_path / "part.parquet", notes={})["num_trainings"] == 1
    in_the_way.unlink()
    again = TableMaker.of(plan, source=images, results=Results(tmp_path), device=CPU, pack_size=1, say=lambda _: None)
    again.make()
    assert not again.problems
    assert not write_table(again, tmp_path / "whole.parquet", notes={})["partial"]


def test_pairs_with_further_seeds_are_spread_over_topologies_and_recipes() -> None:
    plan = PLAN.model_copy(update={"num_repeated": 4, "num_seeds": 3})
    assert len(cells_of(plan)) == 12
    plan = PLAN.model_copy(update={"num_repeated": 2})
    repeated = [cell for cell in cells_of(plan) if cell.seed == 1]
    assert len({cell.topology for cell in repeated}) == len({cell.recipe for cell in repeated}) == 2


def test_all_proxies_are_those_that_score_a_topology_alone() -> None:
    names = {choice.name for choice in PLAN.model_copy(update={"proxies": "all"}).proxy_choices()}
    assert {"params", "ntk-condition", "zico"} <= names
    assert not names & {"az-nas", "expression"}


def test_proposed_topologies_are_spread_evenly_over_a_range() -> None:
    found = choose_topologies(6, low=5e5, high=4e6, tries=2000)
    assert {text.partition(":")[0] for text in found} == {"as-vit", "pit"}
    macs = [topology_costs(text, CIFAR_10).macs for text in found]
    assert macs == sorted(macs)
    edges = 5e5 * 8 ** (np.arange(7) / 6)
    assert [low <= value < high for value, low, high in zip(macs, edges, edges[1:], strict=False)] == [True] * 6
    assert [parse_topology(text).id for text in found] == found


def test_stopping_rules_are_replayed_on_the_curves(table: tables.BenchmarkTable) -> None:
    curves = curves_of(table, average=f"ema-{EMA}")
    assert len(curves) == 5
    reasons = [why_not for choice, why_not in criteria(recorded_signals(table)) if choice.name == "plateau" and why_not]
    assert "the table lacks changed_training_predictions" in reasons
    (result,) = compare(curves, [PluginChoice(name="plateau", settings={"signal": "gradient_norm", "patience": 2})])
    row = row_of(*result, average=f"ema-{EMA}")
    assert row["criterion"] == "plateau(signal=gradient_norm, patience=2)"
    assert all(0 <= one.epochs_saved < 1 for one in result[1])
    assert all(one.val_lost >= 0 for one in result[1])
    with pytest.raises(ValueError, match=r"`average` must be one of ema-0\.9, ema-0\.99, lawa-2, but got 'lawa-9'"):
        curves_of(table, average="lawa-9")


def test_a_rule_that_stops_at_once_saves_all_but_one_epoch(table: tables.BenchmarkTable) -> None:
    curves = curves_of(table, average=f"ema-{EMA}")
    choice = PluginChoice(name="patience", settings={"epochs": 1, "min_delta": 100.0})
    ((_, results),) = compare(curves, [choice])
    for result, curve in zip(results, curves, strict=True):
        assert result.is_stopped
        assert result.epochs_saved == pytest.approx(1 / 3)
        assert result.macs_saved == pytest.approx(1 / 3)
        assert result.average_lost == pytest.approx(curve.test[-1] - curve.average[2])


def test_a_machine_without_the_orchestrators_frameworks_makes_tables() -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"optuna", "ray", "mlflow", "sqlalchemy", "alembic", "fastapi"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
import benchmarks.tables.__main__
print("orchestrator" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_state_of_an_average_needs_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have an intact manifest"):
        state_of(Measurement(3, "lawa-2", ("val",)), tmp_path)
