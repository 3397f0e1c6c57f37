"""`vitsearch correlate` on tables and studies: one command, resumed after interruption, with reused scores."""

import csv
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.spec.proxy_choices import is_pool_proxy, orient
from orchestrator.spec.study_file import load_spec
from orchestrator.stages.truth_scores import ScoredTruth
from orchestrator.store.repository import Store
from orchestrator.tracking.events import LogArtifact, LogInputs, LogMetrics, LogText, SetTags, event_from_json
from plugins import registry
from plugins.protocols import Candidate, ProxyScore
from plugins.proxies.flops import Flops
from search_spaces.recipes import PluginChoice
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import CommandLine, FinishedStudy, read_rows, run_here
from tests.trainings import TASK, rows, write_trainings
from trainers.config import ScoreTask, TaskOutcome
from trainers.tasks import scoring

SPACE = registry.create_space("as-vit", {"width": 8})
POOL_PROXIES = [name for name in registry.available("proxies") if is_pool_proxy(name)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen topologies with an accuracy that mostly follows their size, and another target that does not."""
    rng, file = random.Random(0), tmp_path_factory.mktemp("tables") / "small.json"
    topologies = {topology.id: topology for topology in (SPACE.sample(rng) for _ in range(14))}.values()
    rows = [
        {"arch": topology.model_dump(mode="json"), "acc": 40 + place + 3 * rng.random(), "noise": rng.random()}
        for place, topology in enumerate(sorted(topologies, key=lambda one: sum(one.depths) + one.heads))
    ]
    file.write_text(json.dumps(rows))
    return file


def options(table: Path, *more: str, proxies: str = "params,flops") -> list[str]:
    base = ["--table", str(table), "--space", "as-vit", "--target", "acc", "--proxies", proxies]
    return ["correlate", *base, "--image-size", "32", "--num-classes", "10", "--batch-size", "4", "--quiet", *more]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Topology and proxy of each score that is computed, as it is."""
    calls: list[tuple[str, str]] = []
    score_topology = scoring.score_topology

    def spy(task: ScoreTask, *rest: Any) -> TaskOutcome:
        calls.extend((task.topology, choice.name) for choice in task.proxies)
        return score_topology(task, *rest)

    monkeypatch.setattr("trainers.worker.score_topology", spy)
    return calls


# --- tables ---


def test_a_table_is_judged_by_one_command(command_line: CommandLine, table: Path, scored: list[Any]) -> None:
    done = command_line(*options(table, "--json"))
    assert done.status == 0, done.err
    summary = done.json()
    assert summary["state"] == "complete"
    assert summary["study"].startswith("small-acc-")
    verdict = summary["correlation"]
    rows = {row["proxy"]: row for row in verdict["proxies"]}
    assert {"params", "flops", "depth", "combined.learned", "combined.mean-rank"} <= rows.keys()
    taus = [row["tau"]["value"] for row in verdict["proxies"] if row["tau"]["value"] is not None]
    assert taus == sorted(taus, reverse=True)
    given = json.loads(table.read_text())
    sizes = [SPACE.costs(SPACE.topology_type.model_validate(row["arch"]), _task()).parameters for row in given]
    tau = stats.kendalltau(sizes, [row["acc"] for row in given], variant="b").statistic
    assert rows["params"]["tau"]["value"] == pytest.approx(tau)
    assert rows["flops"]["minus"].keys() == {"params", "depth"}
    assert (verdict["num_topologies"], verdict["num_seeds"]) == (len(given), 1)
    assert len(scored) == 3 * len(given)
    assert len(set(scored)) == len(scored)
    # The same command shows what was found, and `--format json` is `--json`.
    again = command_line(*options(table, "--format", "json"))
    assert again.json() == summary
    assert len(scored) == 3 * len(given)


def _task() -> Any:
    from search_spaces.base import ImageTask

    return ImageTask(image_size=32, in_channels=3, num_classes=10)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_the_terminal(command_line: CommandLine, table: Path, width: int) -> None:
    done = command_line(*options(table), COLUMNS=str(width))
    assert done.status == 0, done.err
    lines = done.out.partition("\nNext\n")[0].splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    head = next(line for line in lines if line.startswith("proxy"))
    assert ("regret" in head) == (width == 200)
    assert ("widen the terminal" in done.out) == (width < 200)
    words = " ".join(done.out.split())
    assert "Learned combination (judged out of fold): tau" in words
    assert "beat params" in words
    assert "14 topologies, 1 seed, 95 % intervals" in words


def test_one_more_proxy_costs_one_proxy(command_line: CommandLine, table: Path, scored: list[Any]) -> None:
    command_line(*options(table, proxies="params"))
    scored.clear()
    more = command_line(
        *options(
            table,
            "--json",
            proxies="params,ntk-condition",
        )
    )
    assert more.status == 0, more.err
    assert {name for _, name in scored} == {"ntk-condition"}
    assert len(scored) == 14
    assert len(command_line("list", "--format", "json").json()) == 2


def test_more_seeds_are_scored_for_what_depends_on_them(
    command_line: CommandLine, table: Path, scored: list[Any]
) -> None:
    given = options(table, "--json", "--repeats", "1", proxies="ntk-condition,params")
    command_line(*given)
    scored.clear()
    verdict = command_line(*given, "--seeds", "3").json()["correlation"]
    assert {name for _, name in scored} == {"ntk-condition"}
    assert len(scored) == 2 * 14  # the first seed is known
    rows = {row["proxy"]: row for row in verdict["proxies"]}
    assert (rows["ntk-condition"]["num_seeds"], rows["params"]["num_seeds"]) == (3, 1)
    assert rows["ntk-condition"]["seed_spread"] > 0
    assert rows["params"]["seed_spread"] is None


def test_a_score_without_repeats_is_exact_only_if_it_declares_so(
    command_line: CommandLine, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Flops, candidate: Candidate) -> ProxyScore:
        return ProxyScore(float(random.Random(f"{candidate.topology.id} {candidate.seed}").random()))

    monkeypatch.setattr(Flops, "score", score)
    monkeypatch.setattr(Flops, "is_exact", False)
    rows = command_line(*options(table, "--json", "--seeds", "3")).json()["correlation"]["proxies"]
    found = {row["proxy"]: (row["num_seeds"], row["seed_spread"]) for row in rows}
    assert found["params"] == (1, None)
    assert found["flops"][0] == 3
    assert found["flops"][1] > 0


def test_an_interrupted_study_goes_on_and_scores_nothing_twice(
    command_line: CommandLine, table: Path, scored: list[Any], tmp_path: Path
) -> None:
    file, switch = tmp_path / "study.yaml", Switch()
    file.write_text(
        "study: halved\ndata: {source: noise, image_size: 32}\nstages:\n"
        f"  - stage: correlate\n    truth: {{table: '{table}', space: as-vit, target: acc}}\n"
        "    proxies: [params]\n    batch_size: 4\n"
    )

    def stop(told: Told) -> None:
        switch.on = switch.on or (told.what == "trial ended" and told.value[0] == 4)

    home = command_line.home
    assert run_here(file, home, progress=RecordingProgress(stop), control=switch).state == "interrupted"
    # The end of a trial is written, and told, together with the beginning of the next one.
    assert {topology for topology, _ in scored} == set(_topologies(table)[:6])
    study = run_here(file, home)
    assert study.state == "complete", study.reason
    assert len(set(scored)) == len(scored) == 3 * 14
    assert read_rows(home, "halved").executions == ["interrupted", "complete"]
    assert [trial.state for trial in read_rows(home, "halved").trials["correlate"]] == ["complete"] * 14


def _topologies(table: Path) -> list[str]:
    return [SPACE.topology_type.model_validate(row["arch"]).id for row in json.loads(table.read_text())]


def test_a_table_that_changed_is_another_study_and_stops_one_that_is_half_done(
    command_line: CommandLine, table: Path, tmp_path: Path
) -> None:
    own = tmp_path / "small.json"
    shutil.copy(table, own)
    first = command_line(*options(own, "--json")).json()["study"]
    rows = json.loads(own.read_text())
    rows[0]["acc"] += 1
    own.write_text(json.dumps(rows))
    assert command_line(*options(own, "--json")).json()["study"] != first


def test_the_learned_combination_is_carried_to_another_target(command_line: CommandLine, table: Path) -> None:
    done = command_line(*options(table, "--json", "--transfer", f"{table}:as-vit:noise"))
    assert done.status == 0, done.err
    (other,) = done.json()["correlation"]["transfers"]
    assert other["truth"]["target"] == "noise"
    assert [row["proxy"] for row in other["proxies"] if row["is_combination"]] == ["combined.learned"]
    text = " ".join(command_line(*options(table, "--transfer", f"{table}:as-vit:noise")).out.split())
    assert len(other["shared"]) == 14  # the same topologies, predicted out of fold
    assert "Learned combination on noise of small (14 of its 14 topologies are in the first table too:" in text
    assert "does not beat params" in text


def test_several_tables_are_judged_each_and_together_and_scored_once(
    command_line: CommandLine, table: Path, scored: list[Any]
) -> None:
    twice = ["--table", str(table), "--target", "noise"]
    done = command_line(*options(table, "--json", *twice))
    assert done.status == 0, done.err
    assert done.json()["study"].startswith("small-acc-and-1-more-")
    verdict = done.json()["correlation"]
    (other,) = verdict["further"]
    assert (verdict["truth"]["target"], other["truth"]["target"]) == ("acc", "noise")
    assert len(set(scored)) == len(scored) == 3 * 14  # both targets have the same topologies
    rows = {row["proxy"]: row for row in verdict["joint"] if row["question"] == "any size"}
    assert {"params", "flops", "depth", "combined.learned"} <= rows.keys()
    assert [one["table"] for one in rows["flops"]["tables"]] == ["acc of small", "noise of small"]
    single = command_line(*options(table, "--json")).json()["correlation"]
    assert verdict["proxies"] == single["proxies"]
    text = command_line(*options(table, *twice)).out
    assert "Any size: which of two topologies is better" in text


def test_a_table_of_trainings_is_judged_by_recipe_with_the_ceiling_of_its_seeds(
    command_line: CommandLine, tmp_path: Path
) -> None:
    rng = random.Random(0)
    topologies = {topology.id: topology for topology in (SPACE.sample(rng) for _ in range(12))}
    by_size = sorted(topologies, key=lambda name: SPACE.costs(topologies[name], TASK).parameters)
    file = write_trainings(tmp_path / "curves.parquet", rows(by_size, num_repeated=4))
    given = ["correlate", "--table", str(file), "--space", "as-vit", "--target", "val_accuracy", "--quiet"]
    scored = ["--proxies", "weight-norm", "--batch-size", "4"]

    done = command_line(*given, *scored, "--recipe", "base", "--json")
    assert done.status == 0, done.err
    verdict = done.json()["correlation"]
    assert verdict["truth"]["name"] == "curves (base, epoch 3)"
    assert (verdict["truth"]["unit"], verdict["num_topologies"]) == ("fraction", len(by_size))
    assert verdict["ceiling"]["source"] == "seeds"
    assert verdict["ceiling"]["tau"]["value"] > 0.9
    assert {row["proxy"]: row for row in verdict["proxies"]}["params"]["tau"]["value"] == pytest.approx(1)

    both = command_line(*given, *scored, "--table", str(file), "--recipe", "base", "--recipe", "fast", "--epoch", "1")
    assert both.status == 0, both.err
    text = " ".join(both.out.split())
    assert "val_accuracy of curves (base, epoch 1): the strongest baseline is params" in text
    assert "val_accuracy of curves (fast, epoch 1)" in text

    for more, fragment in {
        (): "--recipe: a `recipe` must be named",
        ("--recipe", "bas"): "--recipe: `recipe` must be one of the table's, base, fast",
        ("--recipe", "base", "--epoch", "9"): "--epoch: `epoch` must be one at which",
        ("--recipe", "base", "--image-size", "64"): "must match our networks",
    }.items():
        bad = command_line(*given, *more)
        assert bad.status != 0
        assert fragment in " ".join(bad.err.split()), bad.err


def test_a_proxy_that_fails_is_told_and_the_others_are_judged(
    command_line: CommandLine, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = set(_topologies(table)[:2])

    def score(self: Flops, candidate: Candidate) -> ProxyScore:
        if candidate.topology.id in broken:
            raise OSError("no more file handles")
        return ProxyScore(float(candidate.costs.macs))

    monkeypatch.setattr(Flops, "score", score)
    rows = {row["proxy"]: row for row in command_line(*options(table, "--json")).json()["correlation"]["proxies"]}
    assert (rows["flops"]["num_topologies"], rows["params"]["num_topologies"]) == (12, 14)
    assert "2 failed: OSError: no more file handles" in rows["flops"]["note"]
    assert rows["params"]["note"] is None
    assert rows["combined.learned"]["tau"]["value"] is not None


BAD: dict[str, tuple[Callable[[list[str]], list[str]], tuple[str, ...]]] = {
    "an unknown proxy": (lambda given: _with(given, "--proxies", "paramz"), ("--proxies:", "Did you mean 'params'?")),
    "an unknown target": (lambda given: _with(given, "--target", "accc"), ("--target:", "Did you mean 'acc'?")),
    "an unknown space": (lambda given: _with(given, "--space", "as-vitt"), ("--space:", "Did you mean 'as-vit'?")),
    "a file that is not there": (lambda given: _with(given, "--table", "no.json"), ("--table:", "no.json")),
    "images that are too small": (
        lambda given: _with(given, "--image-size", "8"),
        ("row 1 of", "fit images of 8 pixels"),
    ),
    "a size that is none": (lambda given: _with(given, "--image-size", "3"), ("--image-size:", "at least 8")),
    "a transfer of another form": (lambda given: [*given, "--transfer", "a.json"], ("FILE:SPACE:TARGET", "'a.json'")),
    "a transfer that is not there": (
        lambda given: [*given, "--transfer", "a:as-vit:b"],
        ("--transfer:", "cannot be read"),
    ),
    "a study and a table": (lambda given: [*given, "tiny"], ("is only for a table", "'tiny'")),
    "a study that is not there": (lambda _: ["correlate", "tiny"], ("STUDY", "no study 'tiny'")),
    "nothing": (lambda _: ["correlate"], ("name a study, or a table",)),
    "a table that is named twice": (
        lambda given: [*given, "--table", given[2]],
        ("--table: acc of", "must be other data than acc of small, but has the same accuracies of 14 topologies"),
    ),
    "a combination that is tested on what it learned": (
        lambda given: [*given, "--transfer", f"{given[2]}:as-vit:acc"],
        ("--transfer: acc of", "must be other data than acc of small"),
    ),
    "two spaces for one table": (
        lambda given: [*given, "--space", "pit"],
        ("--space must be given once, or once for",),
    ),
    "a recipe without trainings": (lambda given: [*given, "--recipe", "base"], ("--recipe is only for a table of",)),
    "a table without a target": (lambda given: given[:5], ("--target must be given",)),
    "images that are not there": (lambda given: [*given, "--data", "nowhere"], ("--data:", "does not exist")),
}


def _with(given: list[str], option: str, value: str) -> list[str]:
    place = given.index(option) + 1
    return [*given[:place], value, *given[place + 1 :]]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(command_line: CommandLine, table: Path, name: str) -> None:
    change, fragments = BAD[name]
    done = command_line(*change(options(table)))
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1, done.err
    for fragment in fragments:
        assert fragment in done.err, done.err
    assert not command_line.home.exists()


# --- studies ---


@pytest.fixture
def home(tiny: FinishedStudy, command_line: CommandLine) -> Path:
    """A copy of the finished study's home, to write in."""
    shutil.copytree(tiny.home, command_line.home)
    return command_line.home


def test_a_study_is_judged_on_its_own_images_with_the_scores_that_it_has(
    command_line: CommandLine, home: Path, tiny: FinishedStudy, scored: list[Any]
) -> None:
    done = command_line("correlate", "tiny", "--quiet", "--json")
    assert done.status == 0, done.err
    own = tiny.rows.stages["correlate"].result
    verdict = done.json()["correlation"]
    taus = {row["proxy"]: row["tau"]["value"] for row in verdict["proxies"] if not row["is_combination"]}
    assert taus == {row["proxy"]: row["tau"]["value"] for row in own["proxies"] if not row["is_combination"]}
    assert verdict["truth"]["kind"] == "trials"
    assert verdict["early"]["epochs"][-1]["tau"]["value"] == 1
    assert scored == []
    more = command_line("correlate", "tiny", "--quiet", "--json", "--proxies", "extrinsic-curvature,params")
    assert more.status == 0, more.err
    assert {name for _, name in scored} == {"extrinsic-curvature"}
    assert len(scored) == len(tiny.rows.stages["train"].result["candidates"])
    text = command_line("correlate", "tiny", "--quiet").out
    assert "These trainings differ by no more than chance: no verdict on" in text
    assert verdict["ceiling"]["source"] == "images"
    assert not any(row["beats"] for row in verdict["proxies"])


def test_topologies_whose_trainings_a_scheduler_ended_are_compared_at_an_epoch_that_enough_have_reached(
    command_line: CommandLine, home: Path, tiny: FinishedStudy
) -> None:
    """The rows of a study whose scheduler stopped four of six topologies after two of four epochs."""
    (record,) = [stage for stage in tiny.rows.stages.values() if stage.kind == "train"]
    trials = tiny.rows.trials["train"]
    stopped = [trial.id for trial in trials[:4]]
    result = dict(record.result)
    result["trials"] = [{**row, "has_base_recipe": row["trial"] >= 4} for row in result["trials"]]
    with closing(sqlite3.connect(home / "vitsearch.db")) as database:
        database.execute("UPDATE stages SET result = ? WHERE id = ?", (json.dumps(result), record.id))
        database.executemany("DELETE FROM reports WHERE trial_id = ? AND epoch > 2", [(one,) for one in stopped])
        database.commit()
    done = command_line("correlate", "tiny", "--quiet", "--json", "--proxies", "params")
    assert done.status == 0, done.err
    truth = done.json()["correlation"]["truth"]
    assert (truth["num_topologies"], truth["epoch"], truth["num_epochs"], truth["num_left_out"]) == (6, 2, 4, 0)
    accuracies = [curve[1].val_accuracy for curve in tiny.rows.curves["train"][:6]]
    sizes = [trial.metrics["parameters"] for trial in trials[:6]]
    (params,) = [row for row in done.json()["correlation"]["proxies"] if row["proxy"] == "params"]
    assert params["tau"]["value"] == pytest.approx(stats.kendalltau(sizes, accuracies, variant="b").statistic)


REPEATED = """\
study: repeated
seed: 3
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: train
    topologies: ["as-vit:4,4,2,1|2,2,2,1|2,1,2,1|2,1,2,1|16,8", "as-vit:4,2,2,1|2,2,2,1|2,1,2,1|2,1,2,1|16,8"]
    repeats: 3
    num_trials: 7
    epochs: 1
    recipe: {batch_size: 32, learning_rate: {low: 5e-4, high: 8e-3, log: true}}
  - stage: correlate
    proxies: [params]
    resamples: 100
"""


def test_candidates_are_trained_with_several_seeds_and_compared_by_their_mean(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(REPEATED)
    assert run_here(file, tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home", "repeated")
    trials = rows.trials["train"]
    names = [trial.point["topology"] for trial in trials]
    assert names[:6] == names[:2] * 3
    assert len({trial.seed for trial in trials}) == 7
    assert all(trial.point == trials[0].point | {"topology": trial.point["topology"]} for trial in trials[:6])
    assert trials[6].point["recipe.learning_rate"] != trials[0].point["recipe.learning_rate"]
    result = rows.stages["correlate"].result
    assert (result["truth"]["num_topologies"], result["truth"]["num_seeds"]) == (2, 3)
    assert (result["ceiling"]["source"], result["ceiling"]["num_seeds"]) == ("seeds", 3)


def test_the_study_of_a_correlation_is_one_like_any_other(command_line: CommandLine, home: Path) -> None:
    name = command_line("correlate", "tiny", "--quiet", "--json", "--proxies", "params").json()["study"]
    assert name in command_line("list").out
    assert "no verdict" in command_line("status", name).out
    assert command_line("delete", name, "--yes").status == 0
    assert [row["study"] for row in command_line("list", "--format", "json").json()] == ["tiny"]


def test_a_study_of_an_older_version_is_the_same_study_if_its_file_says_the_same(
    command_line: CommandLine, home: Path, tiny: FinishedStudy
) -> None:
    def rewrite(change: Callable[[dict[str, Any]], object]) -> None:
        with closing(sqlite3.connect(home / "vitsearch.db")) as database:
            (text,) = database.execute("SELECT spec FROM studies").fetchone()
            spec = json.loads(text)
            change(spec)
            database.execute("UPDATE studies SET spec = ?, spec_digest = 'older'", (json.dumps(spec),))
            database.commit()

    rewrite(lambda spec: spec["data"].pop("num_classes"))
    assert "already complete" in command_line("run", tiny.file).err
    rewrite(lambda spec: spec["stages"][-2].update(baseline="params"))
    refused = command_line("run", tiny.file)
    assert refused.status == 2
    assert "another version of vitsearch" in refused.err
    assert "another version" in command_line("correlate", "tiny").err


# --- pools ---


@pytest.mark.parametrize("name", POOL_PROXIES)
def test_a_pool_proxy_is_its_combination_over_all_topologies(
    command_line: CommandLine, table: Path, scored: list[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ScoredTruth] = []
    of_pool = ScoredTruth.of_pool

    def spy(self: ScoredTruth, choice: PluginChoice) -> Any:
        seen.append(self)
        return of_pool(self, choice)

    monkeypatch.setattr(ScoredTruth, "of_pool", spy)
    done = command_line(*options(table, "--json", "--repeats", "1", "--seeds", "2", proxies=f"{name},params"))
    assert done.status == 0, done.err
    proxy = registry.create("proxies", name)
    assert {computed for _, computed in scored} == {*proxy.parts, "params", "flops", "depth"}
    (truth,) = seen
    values = of_pool(truth, PluginChoice(name=name))
    assert len(values) == 2
    for index, row in enumerate(values):
        parts = truth.of_seed(index)
        assert row == proxy.combine({part: orient(part, parts[part]) for part in proxy.parts})
    accuracy = [row["acc"] for row in json.loads(table.read_text())]
    sign = 1 if proxy.direction == "maximize" else -1
    taus = [stats.kendalltau([sign * value for value in row], accuracy, variant="b").statistic for row in values]
    rows = {row["proxy"]: row for row in done.json()["correlation"]["proxies"]}
    assert rows[name]["tau"]["value"] == pytest.approx(np.mean(taus))
    assert not (set(proxy.parts) - {"params", "flops", "depth"}) & rows.keys()  # they were not asked for


@pytest.mark.parametrize("name", POOL_PROXIES)
def test_a_screen_ranks_by_a_pool_proxy_and_samples_by_its_parts(tmp_path: Path, name: str) -> None:
    file, proxy = tmp_path / "pool.yaml", registry.create("proxies", name)
    parts = ", ".join(f"{{name: {part}, repeats: 1}}" for part in proxy.parts if _has_repeats(part))
    file.write_text(
        "study: pool\ndata: {source: noise, image_size: 32}\nstages:\n  - stage: screen\n"
        "    space: {name: as-vit, width: 8}\n    num_trials: 6\n    batch_size: 4\n"
        f"    sampler: {{name: nsga2, population_size: 4}}\n    rank_by: [{name}]\n    proxies: [{name}, {parts}]\n"
    )
    assert load_spec(file).stages
    assert run_here(file, tmp_path / "home").state == "complete"
    rows = read_rows(tmp_path / "home", "pool")
    trials, result = rows.trials["screen"], rows.stages["screen"].result
    values = proxy.combine({part: orient(part, [one.metrics[part] for one in trials]) for part in proxy.parts})
    order = sorted(range(6), key=lambda place: values[place], reverse=proxy.direction == "maximize")
    assert [row["topology"] for row in result["top"]] == [trials[place].details["topology"] for place in order]
    assert [row["scores"][name] for row in result["top"]] == [values[place] for place in order]
    assert all(name not in trial.metrics for trial in trials)


def _has_repeats(proxy: str) -> bool:
    return "repeats" in registry.setting_types("proxies", proxy)


# --- MLflow ---


@pytest.mark.usefixtures("drawn_figures")
def test_mlflow_is_told_everything(command_line: CommandLine, table: Path) -> None:
    given = options(table, "--json", proxies="params,flops,few-step-loss")
    done = command_line(*given, VITSEARCH_TRACKING="on", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.status == 0, done.err
    store = Store.open(f"sqlite:///{command_line.home}/vitsearch.db")
    study = store.find_study(done.json()["study"])
    assert study is not None
    events = [event_from_json(text) for _, text in store.outbox(study.id).owed(1000)]
    store.close()
    assert all(event_from_json(event.model_dump_json()) == event for event in events)
    stage = [event for event in events if getattr(event, "key", "").endswith("/stage/correlate")]
    (dataset,) = [event for event in stage if isinstance(event, LogInputs)]
    assert (dataset.name, dataset.context, dataset.num_rows, dataset.source) == (
        "small",
        "ground truth",
        14,
        str(table),
    )
    names = {point.name for event in stage if isinstance(event, LogMetrics) for point in event.points}
    assert {"tau.params", "tau.flops", "tau.combined.learned", "spearman.flops", "partial_tau.flops"} <= names
    assert {name for name in names if name.startswith("training_macs.")} == {"training_macs.few-step-loss"}
    texts = {event.artifact_file: event.text for event in stage if isinstance(event, LogText)}
    assert texts["correlation.csv"].startswith("proxy,num_topologies,num_seeds,tau,tau_low,tau_high")
    costs = {row["proxy"]: row["training_macs"] for row in csv.DictReader(texts["correlation.csv"].splitlines())}
    costs_in_result = {row["proxy"]: row["training_macs"] for row in done.json()["correlation"]["proxies"]}
    assert [name for name, macs in costs.items() if macs] == ["few-step-loss"]
    assert [name for name, macs in costs_in_result.items() if macs is not None] == ["few-step-loss"]
    topologies = [SPACE.topology_type.model_validate(row["arch"]) for row in json.loads(table.read_text())]
    forward = np.mean([SPACE.costs(one, _task()).macs for one in topologies])
    assert costs_in_result["few-step-loss"] == pytest.approx(forward * (3 * 10 * 2 + 4))  # 10 steps of 2 of 4 images
    assert len(texts["scores.csv"].splitlines()) == 15
    plots = {Path(event.path).name for event in stage if isinstance(event, LogArtifact)}
    assert {"params-against-accuracy.png", "flops-against-accuracy.png", "correlation-summary.png"} <= plots
    assert all(Path(event.path).stat().st_size > 1000 for event in stage if isinstance(event, LogArtifact))
    tags = {name: value for event in stage if isinstance(event, SetTags) for name, value in event.tags.items()}
    assert tags["vitsearch.truth"] == "acc of small"
