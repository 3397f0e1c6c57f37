"""Tables of trainings: looking up, curves and variance components, without torch."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from vitsearch import tables

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGIES = ("as-vit:a", "as-vit:b", "pit:c")
RECIPES = ("base", "fast")


def write(file: Path, *, metadata: bool = True) -> Path:
    """A table of 3 topologies and 2 recipes with 2 epochs; one pair has 2 seeds, and one training failed."""
    rows = []
    for place, topology in enumerate(TOPOLOGIES):
        for number, recipe in enumerate(RECIPES):
            for seed in range(2 if (place, number) == (0, 0) else 1):
                failed = (place, number) == (2, 1)
                rows += [
                    {
                        "topology": topology,
                        "recipe": recipe,
                        "seed": seed,
                        "epoch": epoch,
                        "state": "failed" if failed else "complete",
                        "space": topology.partition(":")[0],
                        "parameters": 1000 * (place + 1),
                        "macs": 100_000 * (place + 1),
                        "val_accuracy": 0.1 * place + 0.02 * number + 0.01 * epoch + 0.001 * seed,
                        "val_accuracy.ema-0.99": None if epoch == 1 else 0.5,
                        "proxy.params": float(place),
                    }
                    for epoch in ((1,) if failed else (1, 2))
                ]
    content = pa.Table.from_pylist(rows)
    card = {
        "partial": True,
        "num_trainings": 7,
        "num_planned": 9,
        "plan": {"recipes": {"base": {}, "fast": {"learning_rate": 0.004}}},
    }
    if metadata:
        content = content.replace_schema_metadata({tables.CARD_KEY: json.dumps(card).encode()})
    parquet.write_table(content, file)
    return file


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tables.BenchmarkTable:
    return tables.load(write(tmp_path_factory.mktemp("table") / "small.parquet"))


# --- reading ---


def test_a_table_has_its_card_topologies_and_recipes(table: tables.BenchmarkTable) -> None:
    assert table.is_partial
    assert list(table.topologies.index) == list(TOPOLOGIES)
    assert list(table.topologies["proxy.params"]) == [0.0, 1.0, 2.0]
    assert table.recipes == {"base": {}, "fast": {"learning_rate": 0.004}}


def test_epochs_are_found_by_all_conditions_together(table: tables.BenchmarkTable) -> None:
    assert len(table.find()) == 13
    assert set(table.find(space="as-vit")["topology"]) == {"as-vit:a", "as-vit:b"}
    assert len(table.find(topology="as-vit:a", recipe="base")) == 4
    assert len(table.find(topology=["as-vit:a", "pit:c"], seed=0, epoch=1)) == 4
    assert set(table.find(max_macs=100_000)["topology"]) == {"as-vit:a"}
    assert set(table.find(max_parameters=2000, recipe="fast", epoch=2)["topology"]) == {"as-vit:a", "as-vit:b"}
    last = table.find(epoch="last")
    assert len(last) == 7
    assert sorted(last["epoch"]) == [1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("condition", "found"), [({"topology": "pit:x"}, "pit:x"), ({"recipe": "slow"}, "slow"), ({"seed": 7}, "7")]
)
def test_an_unknown_value_is_an_error_that_names_it(table: tables.BenchmarkTable, condition: dict, found: str) -> None:
    with pytest.raises(ValueError, match=f"must be in the table, but '?{found}'? is not"):
        table.find(**condition)


def test_curves_have_a_row_per_training_and_a_column_per_epoch(table: tables.BenchmarkTable) -> None:
    curves = table.curves(recipe="base")
    assert list(curves.columns) == [1, 2]
    assert curves.index.names == ["topology", "recipe", "seed"]
    assert list(curves.loc["as-vit:b", "base", 0]) == pytest.approx([0.11, 0.12])
    assert np.isnan(table.curves().loc["pit:c", "fast", 0][2])
    assert np.isnan(table.curves("val_accuracy.ema-0.99")[1]).all()
    with pytest.raises(ValueError, match="must be a column of the table, but got 'accuracy'"):
        table.curves("accuracy")


def test_a_missing_or_other_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet does not exist"):
        tables.load(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match="must be a table made by"):
        tables.load(write(tmp_path / "other.parquet", metadata=False))


def test_reading_a_table_imports_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path / "small.parquet")
    code = (
        f"import sys; from vitsearch import tables; table = tables.load({str(file)!r}); table.variance_components();"
        "print({'torch', 'scipy', 'sklearn', 'trainers', 'plugins', 'orchestrator'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


# --- variance components ---


def layout(num_topologies: int, num_recipes: int, counts: Sequence[int]) -> tuple[list[str], list[str]]:
    """Topology and recipe of each training; pair `n` has `counts[n % len(counts)]` seeds."""
    topologies, recipes = [], []
    for number in range(num_topologies * num_recipes):
        count = counts[number % len(counts)]
        topologies += [f"t{number // num_recipes}"] * count
        recipes += [f"r{number % num_recipes}"] * count
    return topologies, recipes


def test_a_balanced_layout_gives_the_textbook_estimates() -> None:
    num_topologies, num_recipes, num_seeds = 5, 4, 3
    rng = np.random.default_rng(0)
    effects = (
        rng.normal(0, 2, (num_topologies, 1, 1))
        + rng.normal(0, 1, (1, num_recipes, 1))
        + rng.normal(0, 0.8, (num_topologies, num_recipes, 1))
    )
    values = effects + rng.normal(0, 0.4, (num_topologies, num_recipes, num_seeds))
    pairs, rows, columns, mean = values.mean(2), values.mean((1, 2)), values.mean((0, 2)), values.mean()
    of_seed = ((values - pairs[:, :, None]) ** 2).sum() / (num_topologies * num_recipes * (num_seeds - 1))
    rest = pairs - rows[:, None] - columns[None] + mean
    of_interaction = num_seeds * (rest**2).sum() / ((num_topologies - 1) * (num_recipes - 1))
    of_topology = num_recipes * num_seeds * ((rows - mean) ** 2).sum() / (num_topologies - 1)
    of_recipe = num_topologies * num_seeds * ((columns - mean) ** 2).sum() / (num_recipes - 1)
    expected = {
        "topology": (of_topology - of_interaction) / (num_recipes * num_seeds),
        "recipe": (of_recipe - of_interaction) / (num_topologies * num_seeds),
        "interaction": (of_interaction - of_seed) / num_seeds,
        "seed": of_seed,
    }
    found = tables.estimate_components(*layout(num_topologies, num_recipes, [num_seeds]), values.ravel())
    assert {one.source: one.variance for one in found.components} == pytest.approx(
        {name: max(value, 0.0) for name, value in expected.items()}, rel=1e-9
    )
    assert sum(one.share for one in found.components) == pytest.approx(1.0)
    assert found["seed"].deviation == pytest.approx(of_seed**0.5)
    assert (found.num_topologies, found.num_recipes, found.num_trainings, found.num_repeated) == (5, 4, 60, 20)


def test_an_unbalanced_layout_with_missing_pairs_gives_unbiased_estimates() -> None:
    topologies, recipes = layout(7, 5, [1, 3, 1, 0, 1, 1, 2, 1])
    true = {"topology": 0.16, "recipe": 1.0, "interaction": 0.25, "seed": 0.09}
    rng = np.random.default_rng(1)
    pairs = [f"{one} {two}" for one, two in zip(topologies, recipes, strict=True)]
    estimates = []
    for _ in range(200):
        values = sum(
            np.array([draw[label] for label in labels])
            for name, labels in (("topology", topologies), ("recipe", recipes), ("interaction", pairs))
            for draw in [{label: rng.normal(0, true[name] ** 0.5) for label in sorted(set(labels))}]
        )
        values = values + rng.normal(0, true["seed"] ** 0.5, len(pairs))
        found = tables.estimate_components(topologies, recipes, values, num_bootstraps=2)
        estimates.append([one.variance for one in found.components])
    means, errors = np.mean(estimates, 0), np.std(estimates, 0) / len(estimates) ** 0.5
    for source, mean, error in zip(tables.SOURCES, means, errors, strict=True):
        assert abs(mean - true[source]) < 4 * error, source


def test_effects_of_one_source_alone_are_given_to_it_alone() -> None:
    topologies, recipes = layout(4, 3, [1, 2, 1])
    for labels, source in ((topologies, "topology"), (recipes, "recipe")):
        found = tables.estimate_components(topologies, recipes, [float(label[1]) ** 2 for label in labels])
        assert {one.source: one.share for one in found.components} == pytest.approx(
            {name: float(name == source) for name in tables.SOURCES}, abs=1e-12
        )


def test_the_interval_holds_the_estimate_and_is_the_same_for_the_same_seed() -> None:
    topologies, recipes = layout(8, 6, [1, 1, 2])
    values = np.random.default_rng(3).normal(size=len(topologies)) + [float(one[1]) for one in topologies]
    first, second = (tables.estimate_components(topologies, recipes, values, seed=5) for _ in range(2))
    assert first == second
    assert first["topology"].low < first["topology"].variance < first["topology"].high
    text = str(first)
    assert "topology" in text.splitlines()[2]
    assert "8 topologies and 6 recipes, 16 pairs with several seeds" in text


@pytest.mark.parametrize(
    ("sizes", "missing"),
    [
        ((1, 3, [2]), "topology cannot be estimated"),
        ((3, 1, [2]), "recipe cannot be estimated"),
        ((3, 2, [1]), "seed cannot be estimated"),
    ],
)
def test_a_layout_that_cannot_tell_sources_apart_is_refused(sizes: tuple, missing: str) -> None:
    topologies, recipes = layout(*sizes)
    with pytest.raises(ValueError, match=missing):
        tables.estimate_components(topologies, recipes, range(len(topologies)))


def test_the_components_of_a_table_leave_out_failed_trainings(table: tables.BenchmarkTable) -> None:
    found = table.variance_components()
    assert (found.num_trainings, found.num_topologies, found.num_repeated) == (6, 3, 1)
    assert found["topology"].share > 0.9
    assert table.variance_components(epoch=1).mean == pytest.approx(found.mean - 0.01)


# --- the page, and tables of the repository ---


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "cifar10-32.parquet")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "table.md").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "example"}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs/table.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "7 of 9 trainings" in shown
    assert "interaction" in shown


def test_tables_of_the_repository_are_small_and_whole_or_say_that_they_are_not() -> None:
    for file in (ROOT / "benchmarks" / "tables").glob("*.parquet"):
        assert file.stat().st_size < 5_000_000
        assert file.with_suffix(".card.yaml").is_file()
        table = tables.load(file)
        trainings = table.epochs[list(tables.TRAINING)].drop_duplicates()
        assert len(trainings) == table.card["num_trainings"]
        assert table.is_partial == (table.card["num_trainings"] < table.card["num_planned"])
        assert set(table.epochs["recipe"]) <= set(table.recipes)
