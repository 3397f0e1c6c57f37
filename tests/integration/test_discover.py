"""`vitsearch discover`, from a table to a proxy that is used by name."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli.signals import StopRequest
from orchestrator.discovery.block_tables import StatisticsFiles, join_tables, measure_topologies
from orchestrator.evaluation.ground_truth import load_table_truth
from orchestrator.spec.truth_source import TruthSource
from plugins import registry
from plugins.proxies.formula_text import parse
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from tests.tiny import CommandLine, Finished
from tests.trainings import rows, write_trainings
from trainers.config import DataConfig, ScoreTask
from trainers.training.reporting import SilentReporter
from trainers.worker import run_task

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)
NUM_TOPOLOGIES = 14


@pytest.fixture(autouse=True)
def _other_homes_formulas() -> Iterator[None]:
    """The folder of formulas is the one of the newest home: set it back."""
    before = os.environ.get(registry.FORMULA_FOLDER_VARIABLE)
    yield
    os.environ.pop(registry.FORMULA_FOLDER_VARIABLE, None)
    if before is not None:
        os.environ[registry.FORMULA_FOLDER_VARIABLE] = before
    registry.clear_caches()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Small topologies whose made-up accuracies grow with the parameters."""
    space, rng = AsViTSpace(width=8, depths=(1, 1, 1, 1)), random.Random(0)
    topologies = {one.text: one for one in (space.sample(rng) for _ in range(NUM_TOPOLOGIES))}
    rows = [
        {"arch": text, "accuracy": space.costs(one, TASK).parameters / 1000, "other": rng.random()}
        for text, one in topologies.items()
    ]
    path = tmp_path / "made-up.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def _discover(command_line: CommandLine, table: Path, *more: str, name: str = "my-score") -> Finished:
    small = ("--image-size", "32", "--num-classes", "10", "--batch-size", "4", "--iterations", "1500")
    given = ("--table", table, "--space", "as-vit", "--target", "accuracy", "--name", name)
    return command_line("discover", *given, *small, *more)


def test_a_discovered_formula_is_judged_on_what_was_held_out_and_used_by_its_name(
    command_line: CommandLine, table: Path, tmp_path: Path
) -> None:
    done = _discover(command_line, table, "--json")
    assert done.status == 0, done.err
    found = done.json()
    formula = parse(found["formula"])
    (truth,) = found["truths"]
    for half in ("held_out", "searched"):
        assert {row["proxy"] for row in truth[half]} == {"my-score", "params", "flops", "depth"}
        assert {row["num_topologies"] for row in truth[half]} == {NUM_TOPOLOGIES // 2}
    held_out = next(row for row in truth["held_out"] if row["proxy"] == "my-score")
    assert held_out["tau"]["value"] > 0.5  # the truth is the number of parameters, which many formulas know
    assert next(row for row in truth["held_out"] if row["proxy"] == "params")["tau"]["value"] == pytest.approx(1)

    saved = Path(found["saved"])
    assert saved == command_line.home / "proxies" / "my-score.txt"
    *comments, line = saved.read_text(encoding="utf-8").splitlines()
    assert line == str(formula)
    assert all(comment.startswith("#") for comment in comments)
    assert any("accuracy of made-up, 7 held out: tau" in comment for comment in comments)

    given = f"--table {table} --space as-vit --proxies my-score --image-size 32 --num-classes 10 --batch-size 4".split()
    for target, is_seen in {"accuracy": True, "other": False}.items():
        judged = command_line("correlate", *given, "--target", target, "--json", "--quiet")
        assert judged.status == 0, judged.err
        row = next(one for one in judged.json()["correlation"]["proxies"] if one["proxy"] == "my-score")
        assert ("it was fitted to these accuracies" in str(row["note"])) == is_seen

    shown = command_line("plugins", "proxies", "my-score", "--format", "json")
    assert shown.json()["about"] == str(formula)
    study = tmp_path / "study.yaml"
    screen = {
        "stage": "screen",
        "space": {"name": "as-vit", "width": 8, "depths": [1, 1, 1, 1]},
        "num_trials": 2,
        "batch_size": 4,
        "proxies": [{"name": "my-score", "repeats": 2}, "params"],
    }
    data = {"source": "noise", "image_size": 32}
    study.write_text(json.dumps({"study": "uses-it", "data": data, "stages": [screen]}), encoding="utf-8")
    assert command_line("validate", study).status == 0
    ran = command_line("run", study, "--quiet")
    assert ran.status == 0, ran.err
    other_home = command_line("validate", study, home=tmp_path / "elsewhere")
    assert other_home.status == 2
    assert "my-score" in other_home.err


def test_the_tau_of_a_perfect_score_is_told_from_the_images_or_from_the_seeds_of_trainings(
    command_line: CommandLine, tmp_path: Path
) -> None:
    space, rng = AsViTSpace(width=8, depths=(1, 1, 1, 1)), random.Random(0)
    sizes = {one.id: space.costs(one, TASK).parameters for one in (space.sample(rng) for _ in range(16))}
    by_size = sorted(sizes, key=lambda name: sizes[name])
    published = [{"arch": name, "accuracy": 40 + place} for place, name in enumerate(by_size)]
    (tmp_path / "published.json").write_text(json.dumps(published), encoding="utf-8")

    told = _discover(command_line, tmp_path / "published.json", "--test-images", "10000", "--json").json()
    (truth,) = told["truths"]
    assert (truth["ceiling"]["source"], truth["has_no_verdict"]) == ("images", False)
    assert truth["ceiling"]["tau"]["value"] > 0.9
    comments = Path(told["saved"]).read_text(encoding="utf-8")
    assert "a perfect score 0.9" in comments

    options = ("--space", "as-vit", "--recipe", "base", "--batch-size", "4", "--iterations", "1500")
    good = write_trainings(tmp_path / "good.parquet", rows(by_size, num_repeated=16))
    done = command_line("discover", "--table", good, "--target", "val_accuracy", "--name", "from-trainings", *options)
    assert done.status == 0, done.err
    assert "A perfect score would reach a tau of about 0.9" in " ".join(done.out.split())
    assert "32 pixels" in (command_line.home / "proxies" / "from-trainings.txt").read_text(encoding="utf-8")

    chance = [{**row, "val_accuracy": 0.4 + 0.01 * rng.random()} for row in rows(by_size, num_repeated=16)]
    bad = write_trainings(tmp_path / "chance.parquet", chance)
    done = command_line("discover", "--table", bad, "--target", "val_accuracy", "--name", "from-chance", *options)
    assert done.status == 0, done.err
    assert "differ by no more than chance: no verdict" in " ".join(done.out.split())
    assert "differ by no more than chance" in (command_line.home / "proxies" / "from-chance.txt").read_text()


def test_a_saved_proxy_gives_exactly_the_scores_that_it_was_chosen_by(command_line: CommandLine, table: Path) -> None:
    formula = parse(_discover(command_line, table, "--json").json()["formula"])
    data = DataConfig(source="noise", image_size=32, num_classes=10, max_images=320)
    truth = load_table_truth(TruthSource(table=str(table), space="as-vit", target="accuracy"), data=data)

    told: list[tuple[int, int]] = []

    def stop() -> bool:
        raise AssertionError("every network is known")

    files = StatisticsFiles(command_line.home / "block-statistics")
    measured = measure_topologies(
        truth, files, batch_size=4, num_seeds=1, on_progress=lambda *done: told.append(done), should_stop=stop
    )
    assert measured is not None
    assert told == []
    chosen_by = join_tables(measured, truth.topologies[:2], num_seeds=1).scores(formula)[0]
    for topology, expected in zip(truth.topologies, chosen_by, strict=False):
        choice = PluginChoice(name="my-score")
        task = ScoreTask(data=data, topology=topology, proxies=(choice,), batch_size=4, seed=0)
        assert run_task(task, SilentReporter()).metrics["my-score"] == pytest.approx(expected, rel=1e-6)


def test_a_second_search_measures_nothing_again(command_line: CommandLine, table: Path) -> None:
    first = _discover(command_line, table, "--seed", "1")
    second = _discover(command_line, table, "--seed", "2", name="another")
    more = _discover(command_line, table, "--num-networks", "2", name="third")
    assert f"measuring {NUM_TOPOLOGIES} networks" in first.err
    assert "measuring" not in second.err
    assert f"measuring {NUM_TOPOLOGIES} networks" in more.err
    assert "7 topologies held out" in second.out
    assert "7 searched topologies" in second.out
    assert (command_line.home / "proxies" / "another.txt").is_file()


def test_several_targets_are_searched_jointly(command_line: CommandLine, table: Path) -> None:
    done = _discover(command_line, table, "--table", str(table), "--target", "other", "--json")
    found = done.json()
    titles = ["accuracy of made-up", "other of made-up"]
    assert [truth["title"] for truth in found["truths"]] == titles
    joint = {row["proxy"]: row for row in found["joint"] if row["question"] == "any size"}
    assert joint.keys() == {"my-score", "params", "flops", "depth"}
    for place, truth in enumerate(found["truths"]):
        rows = {row["proxy"]: row["tau"]["value"] for row in truth["held_out"]}
        table_row = joint["my-score"]["tables"][place]
        strongest = max(rows[name] for name in ("params", "flops", "depth") if rows[name] is not None)
        assert table_row["difference"]["value"] == pytest.approx(rows["my-score"] - strongest)
    assert "2 tables held out, any size: minus the strongest" in Path(found["saved"]).read_text(encoding="utf-8")
    text = _discover(command_line, table, "--table", str(table), "--target", "other", name="another").out
    assert "held-out halves of 2 tables together" in text
    assert "minus the strongest baseline" in text
    assert len(list((command_line.home / "block-statistics").iterdir())) == NUM_TOPOLOGIES


def test_an_interrupted_search_is_saved_only_if_asked(
    command_line: CommandLine, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stops_in_the_search(_: StopRequest) -> bool:
        asked.append(None)
        return len(asked) > NUM_TOPOLOGIES + 700

    monkeypatch.setattr(StopRequest, "should_stop", stops_in_the_search)
    done = _discover(command_line, table, "--json")
    assert done.status == 130
    assert "not saved (--save-interrupted" in done.err
    assert done.json()["interrupted"] is True
    assert done.json()["saved"] is None
    asked[:] = [None] * NUM_TOPOLOGIES
    kept = _discover(command_line, table, "--json", "--save-interrupted")
    assert kept.status == 130
    assert Path(kept.json()["saved"]).is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--name", "params"), "--name: a formula needs a unique name, but 'params' is a proxy of vitsearch"),
        (("--name", "No Name"), "--name: a name must start with"),
        (("--target", "other", "--target", "x"), "--target must be given once, or once for each --table (1)"),
        (("--table", "made-up.json"), "--table: accuracy of made-up.json must be other data than accuracy of made-up,"),
        (("--max-size", "2"), "--max-size must be greater than or equal to 4"),
        (("--data", "nowhere"), "--data: "),
    ],
)
def test_a_wrong_option_is_answered_with_its_name(
    command_line: CommandLine, table: Path, more: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table.parent)
    done = _discover(command_line, table, *more)
    assert done.status == 2
    assert message in done.err


def test_a_copy_of_a_table_is_refused_and_another_recipe_of_it_is_not(
    command_line: CommandLine, table: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(json.loads(table.read_text())[::-1]))  # also with its rows in another order
    done = _discover(command_line, table, "--table", copy)
    assert done.status == 2
    assert f"--table: accuracy of {copy} must be other data than accuracy of made-up, but has the same" in done.err

    space, rng = AsViTSpace(width=8, depths=(1, 1, 1, 1)), random.Random(0)
    names = list(dict.fromkeys(space.sample(rng).id for _ in range(16)))
    trainings = write_trainings(tmp_path / "trainings.parquet", rows(names))
    again = tmp_path / "again.parquet"
    again.write_bytes(trainings.read_bytes())
    given = ("--table", trainings, "--table", trainings, "--table", again, "--space", "as-vit")
    recipes = ("--recipe", "base", "--recipe", "fast", "--recipe", "fast")
    done = command_line("discover", *given, *recipes, "--target", "val_accuracy", "--name", "my-score")
    assert done.status == 2
    # The first two are accepted.
    assert f"--table: val_accuracy of {again} must be other data than val_accuracy of trainings (fast" in done.err


def test_an_unknown_target_is_answered_with_the_nearest(command_line: CommandLine, table: Path) -> None:
    done = command_line("discover", "--table", table, "--space", "as-vit", "--target", "acuracy", "--name", "a")
    assert done.status == 2
    assert "--target:" in done.err
    assert "Did you mean 'accuracy'" in done.err
