"""Studies that try the best points of earlier work first."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, update

from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.spec.warm_start import WarmStart, WarmStartError
from orchestrator.store.tables import trials
from orchestrator.study.access import UnknownStudyError, delete_study, find_champion, find_study
from orchestrator.study.reusing import read_warm_start
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import CommandLine, Rows, read_rows, run_here
from trainers.yaml_source import SpecError

ONE = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
TWO = "as-vit:8,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
THREE = "as-vit:4,4,2,1|4,4,2,1|2,2,2,1|2,1,2,1|16,4"
FIRST = f"""\
study: first
seed: 3
data: {{source: digits, image_size: 32, max_images: 120, max_test_images: 60}}
engine: optuna
resources: {{trials_per_pack: 4}}
stages:
  - stage: train
    topologies: ["{ONE}", "{TWO}"]
    num_trials: 7
    epochs: 1
    sampler: random
    recipe:
      batch_size: 32
      learning_rate: {{low: 5e-4, high: 8e-3, log: true}}
      augmentation: [none, shift]
"""
PROMOTED = f"{FIRST}  - stage: promote\n"


def second(warm_start: str, **replaced: str) -> str:
    text = FIRST.replace("study: first", "study: second").replace(
        "    epochs", f"    warm_start: {warm_start}\n    epochs"
    )
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


def run(folder: Path, text: str, home: Path, name: str = "second", **options: Any) -> tuple[Rows, list[str]]:
    progress = options.pop("progress", RecordingProgress())
    file = folder / "study.yaml"
    file.write_text(text, encoding="utf-8")
    run_here(file, home, progress=progress, **options)
    return read_rows(home, name), [told.value for told in progress.of("note")]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a finished study."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, PROMOTED, folder / "home", "first")
    return folder / "home"


@pytest.fixture
def home(first: Path, tmp_path: Path) -> Path:
    """A copy of that home."""
    shutil.copytree(first, tmp_path / "home")
    return tmp_path / "home"


def ranked(rows: Rows) -> list[dict[str, Any]]:
    """Points of the trials, best first."""
    trials = sorted(rows.trials["train"], key=lambda trial: (-trial.metrics["val_accuracy"], trial.metrics["val_loss"]))
    return [trial.point for trial in trials]


def test_the_best_points_are_tried_after_the_base_recipe(home: Path, tmp_path: Path) -> None:
    rows, notes = run(tmp_path, second("{study: first, top: 3}", **{"seed: 3": "seed: 4"}), home)
    before = read_rows(home, "first")
    base = [trial.point for trial in before.trials["train"][:2]]
    wanted = [point for point in ranked(before)[:3] if point not in base]
    points = [trial.point for trial in rows.trials["train"]]
    assert points[:2] == base
    assert points[2 : 2 + len(wanted)] == wanted
    assert len(points) == 7
    assert any(
        note.startswith("warm start from study first: ") and "the sampler knows 7 earlier" in note for note in notes
    )
    assert rows.stages["train"].result["warm_start"]["num_known"] == 7


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        ({"max_images: 120": "max_images: 130"}, "not comparable with those here: other images or split"),
        ({"epochs: 1": "epochs: 2"}, "not comparable with those here: other number of epochs"),
        ({"batch_size: 32": "batch_size: 16"}, "7 results not comparable, because recipe, topology or metric"),
    ],
)
def test_results_that_are_not_comparable_are_not_known(
    home: Path, tmp_path: Path, replaced: dict[str, str], reason: str
) -> None:
    rows, notes = run(tmp_path, second("{study: first, top: 2}", **replaced), home)
    assert rows.stages["train"].result["warm_start"]["num_known"] == 0
    assert any(reason in note for note in notes), notes


def test_values_outside_the_search_are_ignored_and_named(home: Path, tmp_path: Path) -> None:
    text = second("{study: first, top: 7}", **{"batch_size: 32": "batch_size: 16", "none, shift": "none, affine"})
    rows, notes = run(tmp_path, text.replace(TWO, THREE), home)
    said = " | ".join(note for note in notes if note.startswith("warm start: ignored"))
    assert "batch_size 32 there, 16 here" in said
    assert "augmentation shift there, none here" in said
    assert f"{TWO} is not a candidate, {ONE} is used" in said
    assert {trial.point["topology"] for trial in rows.trials["train"]} == {ONE, THREE}


def test_a_champion_and_its_printed_configuration_give_the_same_start(
    home: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    (tmp_path / "best.yaml").write_text(command_line("best", "first").out)
    best = ranked(read_rows(home, "first"))[0]
    found = []
    for name, source in (("a", "{model: first@champion}"), ("b", "{file: best.yaml}")):
        text = second(source).replace("study: second", f"study: {name}").replace("num_trials: 7", "num_trials: 4")
        rows, _ = run(tmp_path, text, home, name)
        found.append([trial.point for trial in rows.trials["train"]])
        assert best in found[-1][:3]
        assert rows.stages["train"].result["warm_start"]["num_known"] == 0
    assert found[0] == found[1]


def test_the_configuration_of_a_model_folder_is_tried(home: Path, tmp_path: Path) -> None:
    settings = load_settings(home=home, tracking=False)
    folder = find_champion("first", settings)["folder"]
    text = second(f'{{model: "{folder}"}}', **{"num_trials: 7": "num_trials: 4"})
    rows, _ = run(tmp_path, text, home)
    assert ranked(read_rows(home, "first"))[0] in [trial.point for trial in rows.trials["train"][:3]]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.yaml").write_text("format: 1")
    with pytest.raises(WarmStartError, match="it has no `configuration`"):
        run(tmp_path, second("{model: empty}").replace("study: second", "study: third"), home, "third")


def test_more_points_than_fit_wait_until_the_study_grows(home: Path, tmp_path: Path) -> None:
    rows, notes = run(tmp_path, second("{study: first, top: 7}", **{"num_trials: 7": "num_trials: 3"}), home)
    assert len(rows.trials["train"]) == 3
    assert any("num_trials leaves room for 1 of" in note for note in notes)
    grown, _ = run(tmp_path, second("{study: first, top: 7}", **{"num_trials: 7": "num_trials: 5"}), home)
    earlier = [trial.point for trial in read_rows(home, "first").trials["train"]]
    assert all(trial.point in earlier for trial in grown.trials["train"])


def test_a_killed_study_resumes_the_same_though_its_source_was_deleted(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "whole")
    text, stop = (
        second("{study: first, top: 3}", **{"sampler: random": "sampler: {name: tpe, num_startup_trials: 3}"}),
        Switch(),
    )
    whole, _ = run(tmp_path, text, tmp_path / "whole")

    def react(told: Told) -> None:
        stop.on = stop.on or told.what == "trial ended"

    cut, _ = run(tmp_path, text, home, progress=RecordingProgress(react), control=stop)
    assert cut.study.state == "interrupted"
    settings = load_settings(home=home, tracking=False)
    delete_study(find_study("first", settings), settings)
    resumed, notes = run(tmp_path, text, home)
    assert [trial.point for trial in resumed.trials["train"]] == [trial.point for trial in whole.trials["train"]]
    assert not any(note.startswith("warm start") for note in notes)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{study: nobody}", "there is no study 'nobody'"),
        ("{study: second}", "must name another study, but 'second' is the study itself"),
        ("{model: nowhere}", "must be a YAML file, but does not exist"),
    ],
)
def test_a_source_that_cannot_be_used_is_reported_before_anything_is_written(
    home: Path, tmp_path: Path, source: str, problem: str
) -> None:
    with pytest.raises((WarmStartError, UnknownStudyError, SpecError), match=problem):
        run(tmp_path, second(source), home)
    with pytest.raises(UnknownStudyError):
        find_study("second", load_settings(home=home))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{study: a, model: b}", "must name exactly one of `study`, `model` and `file`, but has `study` and `model`"),
        ("{top: 3}", "but has none"),
        ("{file: best.yaml, top: 3}", "`top` is only for a `study`"),
        ("{study: a, topp: 3}", "Did you mean 'top'"),
    ],
)
def test_a_wrong_warm_start_is_refused_with_its_line(tmp_path: Path, source: str, problem: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(second(source))
    with pytest.raises(SpecError, match=problem) as caught:
        load_spec(file)
    assert caught.value.line == 10


def test_results_of_trainings_that_were_cut_are_not_known(home: Path) -> None:
    settings = load_settings(home=home, tracking=False)
    rows = read_rows(home, "first")
    engine = create_engine(settings.database_url)
    with engine.begin() as connection:
        change = update(trials).where(trials.c.id == rows.trials["train"][4].id).values(details={"cut": "budget"})
        connection.execute(change)
    engine.dispose()
    found = read_warm_start(WarmStart(study="first"), settings, own_study="second")
    assert {past.label for past in found.results} == {f"first, train, trial {n}" for n in range(7) if n != 4}
    assert len(found.first) == 5
