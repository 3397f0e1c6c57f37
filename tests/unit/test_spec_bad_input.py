"""Errors in study files: line, requirement, value found and the most similar name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from orchestrator.spec.study_file import load_spec
from trainers.yaml_source import SpecError

STUDY = """\
study: tiny
seed: 1
data: {source: digits}
stages:
  - stage: screen
    num_trials: 8
    proxies: [length-distortion, params]
  - stage: train
    candidates: {best: 2, spread: 2}
    num_trials: 6
    epochs: 5
    keep_checkpoints: 4
    recipe:
      learning_rate: {low: 1e-4, high: 1e-2, log: true}
      curriculum: [none, {name: paced, start: {low: 0.1, high: 0.5}}]
  - stage: stopping
    num_trials: 5
    criteria:
      - {name: patience, epochs: {low: 1, high: 4}}
  - stage: averaging
    num_trials: 4
    methods: [last, {name: lawa, window: {low: 2, high: 4}}]
  - stage: correlate
    baselines: [params]
  - stage: promote
"""


class Bad(NamedTuple):
    """What is replaced in `STUDY`, and what the error must say."""

    old: str
    new: str
    line: int
    path: str
    fragments: tuple[str, ...]


TOPOLOGY = "as-vit:4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|16,16"
GROW = "  - {{stage: grow, target_params: 1000, {}}}\n  - stage: train\n"

BAD: dict[str, Bad] = {
    # types and keys
    "unknown key at the top": Bad("seed: 1", "sead: 1", 2, "sead", ("got 'sead'", "Did you mean 'seed'?")),
    "unknown key of data": Bad(
        "{source: digits}", "{source: digits, image_sise: 32}", 3, "data.image_sise", ("Did you mean 'image_size'?",)
    ),
    "unknown key of a stage": Bad("    epochs: 5", "    epoch: 5", 11, "stages[1].epoch", ("Did you mean 'epochs'?",)),
    "unknown key below a stage": Bad(
        "spread: 2", "spraed: 2", 9, "stages[1].candidates.spraed", ("Did you mean 'spread'?",)
    ),
    "key of another stage": Bad("baselines: [params]", "criteria: []", 24, "stages[4].criteria", ("resamples",)),
    "missing key at the top": Bad("study: tiny\n", "", 1, "study", ("is missing",)),
    "missing key of a stage": Bad("    epochs: 5\n", "", 8, "stages[1].epochs", ("is missing", "budget")),
    "text instead of an integer": Bad(
        "epochs: 5", "epochs: ten", 11, "stages[1].epochs", ("an integer of at least 1", "got 'ten'")
    ),
    "a quoted integer": Bad("epochs: 5", "epochs: '5'", 11, "stages[1].epochs", ("an integer", "got '5'")),
    "true instead of an integer": Bad("epochs: 5", "epochs: true", 11, "stages[1].epochs", ("a number", "got true")),
    "a fraction instead of an integer": Bad("epochs: 5", "epochs: 2.5", 11, "stages[1].epochs", ("integer", "got 2.5")),
    "an integer below its bound": Bad("epochs: 5", "epochs: 0", 11, "stages[1].epochs", ("at least 1", "got 0")),
    "a number above its bound": Bad(
        "baselines: [params]", "confidence: 95", 24, "stages[4].confidence", ("above 0 and below 1", "got 95")
    ),
    "a null": Bad("epochs: 5", "epochs:", 11, "stages[1].epochs", ("integer", "nothing")),
    "a mapping instead of text": Bad("study: tiny", "study: {a: 1}", 1, "study", ("text", "a mapping (a)")),
    "text instead of a mapping": Bad("{source: digits}", "digits", 3, "data", ("a mapping", "got 'digits'")),
    "text instead of a stage": Bad("- stage: promote", "- promote", 25, "stages[5]", ("stage: ...", "got 'promote'")),
    "a mapping instead of a list": Bad(
        "[length-distortion, params]", "{params: 1}", 7, "stages[0].proxies", ("a list",)
    ),
    "an empty list": Bad(
        "[length-distortion, params]", "[]", 7, "stages[0].proxies", ("a list of at least 1", "list of 0")
    ),
    "a number in a list of names": Bad(
        "[length-distortion, params]", "[params, 3]", 7, "stages[0].proxies[1]", ("name of a plug-in", "got 3")
    ),
    "a number instead of a method": Bad(
        "[none, {name: paced, start: {low: 0.1, high: 0.5}}]",
        "3",
        15,
        "stages[1].recipe.curriculum",
        ("the name of a plug-in, or {name:", "got 3"),
    ),
    "a method as a key": Bad(
        "[none, {name: paced, start: {low: 0.1, high: 0.5}}]",
        "{paced: {}}",
        15,
        "stages[1].recipe.curriculum",
        ("written as {name:", "got paced"),
    ),
    "nothing instead of a criterion": Bad(
        "{name: patience, epochs: {low: 1, high: 4}}",
        "null",
        19,
        "stages[2].criteria[0]",
        ("plug-in", "nothing (null)"),
    ),
    "a name with a space": Bad("study: tiny", "study: Tiny Study", 1, "study", ("lower-case", "'Tiny Study'")),
    "an unknown option": Bad(
        "{source: digits}", "{source: digits, resize: corp}", 3, "data.resize", ("'crop'", "Did you mean 'crop'?")
    ),
    "an unknown engine": Bad(
        "seed: 1", "engine: optunna", 2, "engine", ("must be 'auto', 'optuna' or 'ray'", "Did you mean 'optuna'?")
    ),
    "an unknown stage": Bad("stage: train", "stage: trian", 8, "stages[1].stage", ("Did you mean 'train'?",)),
    "a stage without its kind": Bad("stage: train", "name: train", 8, "stages[1]", ("must name its stage",)),
    "splits that leave nothing to train on": Bad(
        "{source: digits}", "{source: digits, validation: 0.6, test: 0.5}", 3, "data", ("below 0.95",)
    ),
    # plug-ins
    "an unknown sampler": Bad(
        "num_trials: 8", "num_trials: 8\n    sampler: rondom", 7, "stages[0].sampler", ("Did you mean 'random'?",)
    ),
    "an unknown space": Bad(
        "num_trials: 8", "num_trials: 8\n    space: as_vit", 7, "stages[0].space", ("Did you mean 'as-vit'?",)
    ),
    "an unknown proxy": Bad(
        "[length-distortion,", "[lenght-distortion,", 7, "stages[0].proxies[0]", ("Did you mean 'length-distortion'?",)
    ),
    "a proxy twice": Bad("[length-distortion,", "[params,", 7, "stages[0].proxies[1]", ("once", "'params'")),
    "an unknown criterion": Bad("{name: patience,", "{name: patients,", 19, "stages[2].criteria[0]", ("'patience'?",)),
    "an unknown method": Bad("[last,", "[lats,", 22, "stages[3].methods[0]", ("Did you mean 'last'?",)),
    "an unknown curriculum": Bad("{name: paced,", "{name: paces,", 15, "stages[1].recipe.curriculum[1]", ("'paced'?",)),
    "an unknown setting": Bad(
        "patience, epochs:", "patience, epoch:", 19, "stages[2].criteria[0].epoch", ("Did you mean 'epochs'?",)
    ),
    "a setting of the wrong type": Bad(
        "epochs: {low: 1, high: 4}", "epochs: ten", 19, "stages[2].criteria[0].epochs", ("integer", "got 'ten'")
    ),
    "a range that leaves a setting's bounds": Bad(
        "{low: 0.1, high: 0.5}", "{low: 0.1, high: 5.0}", 15, "stages[1].recipe.curriculum[1].start", ("5.0",)
    ),
    "a range upside down": Bad(
        "{low: 1, high: 4}}", "{low: 4, high: 1}}", 19, "stages[2].criteria[0].epochs", ("below `high`",)
    ),
    "a range of a setting with a word in it": Bad(
        "{low: 1, high: 4}}", "{low: 1, high: big}}", 19, "stages[2].criteria[0].epochs.high", ("must be", "got 'big'")
    ),
    "a setting whose options are lists": Bad(
        "{low: 1, high: 4}}", "[1, [2]]}", 19, "stages[2].criteria[0].epochs[1]", ("an option must be", "a list of 1")
    ),
    "a setting that is a mapping": Bad(
        "{low: 1, high: 4}}", "{a: 4}}", 19, "stages[2].criteria[0].epochs", ("a range", "a mapping (a)")
    ),
    "a space setting of the wrong type": Bad(
        "num_trials: 8",
        "num_trials: 8\n    space: {name: as-vit, width: wide}",
        7,
        "stages[0].space.width",
        ("integer", "got 'wide'"),
    ),
    # the recipe
    "an unknown recipe field": Bad(
        "learning_rate:", "learning_rat:", 14, "stages[1].recipe.learning_rat", ("Did you mean 'learning_rate'?",)
    ),
    "a recipe value of the wrong type": Bad(
        "{low: 1e-4, high: 1e-2, log: true}",
        "fast",
        14,
        "stages[1].recipe.learning_rate",
        ("a number above 0", "got 'fast'"),
    ),
    "a recipe range with a word in it": Bad(
        "high: 1e-2,", "high: big,", 14, "stages[1].recipe.learning_rate.high", ("number", "got 'big'")
    ),
    "a recipe range without an end": Bad(
        "high: 1e-2, ", "", 14, "stages[1].recipe.learning_rate.high", ("is missing",)
    ),
    "a recipe range with an unknown key": Bad(
        "log: true", "lag: true", 14, "stages[1].recipe.learning_rate", ("'lag'",)
    ),
    "a logarithmic range from zero": Bad("low: 1e-4,", "low: 0,", 14, "stages[1].recipe.learning_rate", ("above 0",)),
    "a recipe range that leaves the field's bounds": Bad(
        "{low: 1e-4, high: 1e-2, log: true}",
        "{low: -1, high: 1}",
        14,
        "stages[1].recipe.learning_rate",
        ("above 0", "-1"),
    ),
    "an option given twice": Bad(
        "{low: 1e-4, high: 1e-2, log: true}", "[1e-3, 1e-3]", 14, "stages[1].recipe.learning_rate", ("must differ",)
    ),
    # stages together
    "two stages of one name": Bad(
        "stage: promote", "stage: promote\n    name: train", 26, "stages[5].name", ("differ", "'train'")
    ),
    "ranking by a proxy that is not computed": Bad(
        "num_trials: 8", "num_trials: 8\n    rank_by: [flops]", 7, "stages[0].rank_by[0]", ("proxies", "'flops'")
    ),
    "a baseline that is not installed": Bad(
        "baselines: [params]", "baselines: [param]", 24, "stages[4].baselines[0]", ("Did you mean 'params'?",)
    ),
    "a baseline that needs a pool": Bad(
        "baselines: [params]", "baselines: [az-nas]", 24, "stages[4].baselines[0]", ("combines others",)
    ),
    "a baseline twice": Bad(
        "baselines: [params]", "baselines: [params, params]", 24, "stages[4].baselines[1]", ("once", "'params'")
    ),
    "a proxy to correlate that is not installed": Bad(
        "baselines: [params]", "proxies: [flop]", 24, "stages[4].proxies[0]", ("Did you mean 'flops'?",)
    ),
    "a truth without anything": Bad(
        "baselines: [params]", "truth: {}", 24, "stages[4].truth", ("a `table` or a `study`", "neither")
    ),
    "a truth that is both": Bad(
        "baselines: [params]", "truth: {table: a.json, study: b}", 24, "stages[4].truth", ("but has both",)
    ),
    "a table without its space": Bad(
        "baselines: [params]", "truth: {table: a.json, target: b}", 24, "stages[4].truth", ("`space` is missing",)
    ),
    "a table of an unknown space": Bad(
        "baselines: [params]",
        "truth: {table: a.json, space: as-vitt, target: b}",
        24,
        "stages[4].truth.space",
        ("Did you mean 'as-vit'?",),
    ),
    "a table that is not there": Bad(
        "baselines: [params]",
        "truth: {table: a.json, space: as-vit, target: b}",
        24,
        "stages[4].truth.table",
        ("a.json must be a table", "cannot be read"),
    ),
    "a study with the keys of a table": Bad(
        "baselines: [params]",
        "truth: {study: b, space: as-vit}",
        24,
        "stages[4].truth",
        ("`space` is only for a `table`",),
    ),
    "a transfer without a combination": Bad(
        "baselines: [params]",
        "combine: false\n    transfer: [{study: b}]",
        25,
        "stages[4].transfer",
        ("`combine` is false",),
    ),
    "classes of images that have their own": Bad(
        "{source: digits}", "{source: digits, num_classes: 5}", 3, "data", ("`num_classes` needs `source: noise`",)
    ),
    "more candidates than screened": Bad(
        "{best: 2, spread: 2}\n    num_trials: 6",
        "{best: 5, spread: 4}\n    num_trials: 9",
        9,
        "stages[1].candidates",
        ("at most the 8", "5 + 4"),
    ),
    "more candidates than trained": Bad(
        "num_trials: 6", "num_trials: 3", 10, "stages[1].num_trials", ("at least 4", "got 3")
    ),
    "more trained than trials with a grown one": Bad(
        "  - stage: train\n    candidates: {best: 2, spread: 2}\n    num_trials: 6",
        GROW.format("max_steps: 2") + "    num_trials: 6",
        10,
        "stages[2].num_trials",
        ("at least 7", "got 6"),
    ),
    "growth that starts at its target": Bad(
        "  - stage: train\n",
        GROW.format(f"topology: '{TOPOLOGY}'"),
        8,
        "stages[1].target_params",
        ("must be above", "got 1,000"),
    ),
    "growth scored at a width that cannot be built": Bad(
        "  - stage: train\n",
        GROW.format("reduction: 16"),
        8,
        "stages[1].reduction",
        ("1/16", "4 heads and 2 channels", "Lower"),
    ),
    "growth by a proxy that has no repeats": Bad(
        "  - stage: train\n",
        GROW.format("proxies: [params]"),
        8,
        "stages[1].proxies[0]",
        ("'params' has no setting `repeats`",),
    ),
    "candidates and topologies": Bad(
        "num_trials: 6", f"num_trials: 6\n    topologies: ['{TOPOLOGY}']", 11, "stages[1].topologies", ("both",)
    ),
    "only averages of more checkpoints than are kept": Bad(
        "[last, {name: lawa, window: {low: 2, high: 4}}]",
        "[{name: lawa, window: {low: 5, high: 6}}]",
        22,
        "stages[3].methods",
        ("at most the 4", "keep_checkpoints: 4", "need 5 or more"),
    ),
    # topologies and images
    "images that the space does not take": Bad(
        "{source: digits}", "{source: digits, image_size: 48}", 5, "stages[0].space", ("48 pixels", "multiple of 32")
    ),
    "a parameter limit that no topology meets": Bad(
        "num_trials: 8",
        "num_trials: 8\n    limits: {max_params: 1000}",
        7,
        "stages[0].limits.max_params",
        ("must be at least", "as-vit:4,", "got 1,000"),
    ),
    "a cost limit that no topology meets": Bad(
        "num_trials: 8",
        "num_trials: 8\n    limits: {max_macs: 1000}",
        7,
        "stages[0].limits.max_macs",
        ("must be at least",),
    ),
    "a least size that no topology meets": Bad(
        "num_trials: 8",
        "num_trials: 8\n    limits: {min_params: 1_000_000_000}",
        7,
        "stages[0].limits.min_params",
        ("must be at most", "as-vit:8,", "got 1,000,000,000"),
    ),
    "shape rules that no topology keeps": Bad(
        "num_trials: 8",
        "num_trials: 8\n    limits: {multiples: {width: 24}}",
        7,
        "stages[0].limits.multiples",
        ("must be kept by a topology of the space", "each width must be a multiple of 24", "has a width of"),
    ),
    "limits that contradict each other": Bad(
        "num_trials: 8",
        "num_trials: 8\n    limits:\n      max_params: 1_000_000\n      min_params: 2_000_000",
        9,
        "stages[0].limits.min_params",
        ("at most max_params = 1,000,000", "got 2,000,000"),
    ),
    "a topology of no form": Bad(
        "  - stage: train\n", GROW.format("topology: '8,2,3'"), 8, "stages[1].topology", ("space:text", "'8,2,3'")
    ),
    "a topology of no space": Bad(
        "  - stage: train\n", GROW.format("topology: 'asvit:1'"), 8, "stages[1].topology", ("Did you mean 'as-vit'?",)
    ),
    "a topology with a value outside its space": Bad(
        "  - stage: train\n",
        GROW.format(f"topology: '{TOPOLOGY.replace('4,2,2', '9,2,2')}'"),
        8,
        "stages[1].topology",
        ("kernel of stage 1", "got 9"),
    ),
}


def check(folder: Path, text: str) -> SpecError:
    """The error of a study file with `text`; also checks that reading it left nothing behind."""
    file = folder / "study.yaml"
    file.write_text(text)
    before = sorted(folder.rglob("*"))
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert sorted(folder.rglob("*")) == before
    return caught.value


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that must never come to be; it lies where `check` looks."""
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_study_that_the_mistakes_are_made_in_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    assert len(load_spec(file).stages) == 6


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, name: str) -> None:
    bad = BAD[name]
    assert STUDY.count(bad.old) >= 1
    error = check(tmp_path, STUDY.replace(bad.old, bad.new, 1))
    assert (error.line, error.path) == (bad.line, bad.path), str(error)
    for fragment in bad.fragments:
        assert fragment in error.message, str(error)
    assert "\n" not in str(error)
    assert "pydantic" not in str(error)


def test_all_mistakes_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    changes = {
        "seed: 1": "seed: one",
        "[length-distortion, params]": "[length-distorsion, params]",
        "    epochs: 5": "    epoch: 5",
        "{name: patience, epochs: {low: 1, high: 4}}": "{name: patience, epochs: ten}",
        "[last, {": "[lats, {",
        "baselines: [params]": "baselines: [params]\n    confidence: 95",
    }
    text = STUDY
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    error = check(tmp_path, text)
    assert len(error.others) == len(changes) - 1
    lines = str(error).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "7", "11", "19", "22", "25"]
    assert all(line.startswith(str(tmp_path / "study.yaml")) for line in lines)
    told = {other.path for other in (error, *error.others)}
    assert told == {
        "seed",
        "stages[0].proxies[0]",
        "stages[1].epoch",
        "stages[2].criteria[0].epochs",
        "stages[3].methods[0]",
        "stages[4].confidence",
    }


def test_averages_that_do_not_fit_are_left_out_and_named(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.replace("window: {low: 2, high: 4}", "window: {low: 2, high: 4}, spacing: [1, 2]"))
    assert load_spec(file).remarks == [
        "stage 'averaging' has 4 checkpoints to average, so it leaves out settings of lawa up to "
        "lawa(window=4, spacing=2) (needs 7)"
    ]
    file.write_text(STUDY.replace("epochs: 5", "epochs: 1"))
    assert [remark for remark in load_spec(file).remarks if "average" in remark] == [
        "stage 'averaging' has 1 checkpoint to average, so it leaves out lawa (needs at least 2)"
    ]
    file.write_text(STUDY)
    assert load_spec(file).remarks == []


def test_criteria_that_come_too_late_for_the_training_are_named(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    more = "{name: generalization-loss, threshold: 1.0}\n      - {name: plateau, patience: 4}"
    text = STUDY.replace("epochs: {low: 1, high: 4}}", f"epochs: [6, 9]}}\n      - {more}")
    file.write_text(text.replace("    epochs: 5", "    epochs: 5\n    stopping: {name: label-wave, window: 3}"))
    late, advice = "cannot end trainings of 5 epochs early with", "Choose smaller settings or more epochs"
    assert load_spec(file).remarks == [
        f"stage 'train' {late} label-wave(window=3) (not before epoch 5). {advice}",
        f"stage 'stopping' {late} patience(epochs=6) (not before epoch 7) and plateau(patience=4) (not before epoch 5)."
        f" {advice}",
    ]


def test_a_list_whose_entries_have_mistakes_is_not_called_too_short(tmp_path: Path) -> None:
    error = check(tmp_path, "study: x\ndata: {source: digits}\nstages: [{stage: train, curricula: 3}]\n")
    told = {other.path for other in (error, *error.others)}
    assert told == {"stages[0].curricula", "stages[0].num_trials", "stages[0].epochs"}


def test_mistakes_of_one_cause_are_told_once(tmp_path: Path) -> None:
    misspelt = check(tmp_path, STUDY.replace("study: tiny", "studi: tiny"))
    assert (misspelt.path, misspelt.others) == ("studi", ())
    corners = STUDY.replace("{low: 0.1, high: 0.5}", "{low: -1, high: 5}")
    assert check(tmp_path, corners).others == ()


STAGES = {
    "train without candidates": ("{stage: train, num_trials: 1, epochs: 1}", "a screen or grow stage before it"),
    "grow without a start": ("{stage: grow, target_params: 10}", "a screen stage before it or a `topology`"),
    "stopping without training": ("{stage: stopping, num_trials: 1, criteria: [patience]}", "needs a train stage"),
    "averaging without training": ("{stage: averaging, num_trials: 1, methods: [last]}", "needs a train stage"),
    "promotion without training": ("{stage: promote}", "needs a train stage"),
    "correlation without training": ("{stage: correlate, proxies: [params]}", "needs a train stage"),
    "correlation without proxies": ("{stage: correlate, truth: {study: a}}", "a screen stage before it or `proxies`"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_what_it_builds_on_is_told(tmp_path: Path, name: str) -> None:
    stage, fragment = STAGES[name]
    error = check(tmp_path, f"study: tiny\ndata: {{source: digits}}\nstages:\n  - {stage}\n")
    assert (error.line, error.path) == (4, "stages[0]")
    assert fragment in error.message


def test_correlation_without_a_screen_needs_proxies_even_where_topologies_are_named(tmp_path: Path) -> None:
    train = f"{{stage: train, num_trials: 1, epochs: 1, topologies: ['{TOPOLOGY}']}}"
    text = f"study: tiny\ndata: {{source: digits}}\nstages:\n  - {train}\n  - {{stage: correlate}}\n"
    assert "needs a screen stage before it or `proxies`" in check(tmp_path, text).message
    file = tmp_path / "named.yaml"
    file.write_text(text.replace("correlate}", "correlate, proxies: all}"))
    assert load_spec(file).stages


def add_images(folder: Path, *names: str, size: tuple[int, int] = (8, 8)) -> None:
    """Four images for each class name."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("RGB", size, (number, 0, 0)).save(folder / name / f"{size[0]}-{number}.png")


def one_is_no_image(folder: Path) -> None:
    add_images(folder, "cats", "dogs")
    (folder / "dogs" / "broken.png").write_text("no image")


def sizes_differ(folder: Path) -> None:
    add_images(folder, "cats", "dogs")
    add_images(folder, "dogs", size=(16, 16))


DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing folder": (shutil.rmtree, ("does not exist",)),
    "empty folder": (Path.touch, ("one sub-folder per class",)),
    "empty classes": (lambda folder: [(folder / name).mkdir() for name in ("cats", "dogs")], ("must contain images",)),
    "one class": (lambda folder: add_images(folder, "cats"), ("at least 2 classes", "cats")),
    "unreadable image": (one_is_no_image, ("broken.png", "must be an image")),
    "mixed sizes": (sizes_differ, ("the same size", "8 x 8", "16 x 16", "crop")),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used_is_told_at_the_line_of_its_source(tmp_path: Path, name: str) -> None:
    prepare, fragments = DATA[name]
    photos = tmp_path / "photos"
    photos.mkdir()
    prepare(photos)
    error = check(tmp_path, STUDY.replace("source: digits", "source: photos"))
    assert (error.line, error.path) == (3, "data.source")
    for fragment in fragments:
        assert fragment in error.message, str(error)
