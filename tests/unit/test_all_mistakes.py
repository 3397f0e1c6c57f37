"""Misspelt keys, wrong values and unknown plug-ins of a study file are told in one round."""

from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.spec import study_file
from orchestrator.spec.study_file import load_spec, parse_spec
from orchestrator.spec.truth_error import TruthError
from tests.service import golden_settings, serving
from trainers.yaml_source import SpecError

WRONG = """\
study: wrong
dat: {source: digits, imagesize: 32}
metrik: acuracy
engine: {name: ray, scheduler: ashaa}
stages:
  - stage: screen
    space: as-vitt
    num_trial: 2
    proxie: [paramz, params]
    sampler: randomm
  - stage: train
    epoch: 3
    num_trials: two
    recipe:
      optimizer: adamww
      curriculum: [nosuch]
      lossy: 3
    stopping: nostop
  - stage: trainn
    name: second
    epocks: 3
    stopping: nostop
  - stage: stopping
    criteria: [{name: foo, patience: 3}, patiencee]
  - stage: averaging
    num_trials: 3
    methods: [lava]
    samplr: tp
"""
MISTAKES = [
    (2, "dat", "'data'"),
    (2, "dat.imagesize", "'image_size'"),
    (3, "metrik", "'metric'"),
    (3, "metrik", "'accuracy'"),
    (4, "engine.scheduler", "'asha'"),
    (7, "stages[0].space", "'as-vit'"),
    (8, "stages[0].num_trial", "'num_trials'"),
    (9, "stages[0].proxie", "'proxies'"),
    (9, "stages[0].proxie[0]", "'params'"),
    (10, "stages[0].sampler", "'random'"),
    (12, "stages[1].epoch", "'epochs'"),
    (13, "stages[1].num_trials", "an integer"),
    (15, "stages[1].recipe.optimizer", "'adamw'"),
    (16, "stages[1].recipe.curriculum[0]", "kind curricula"),
    (17, "stages[1].recipe.lossy", "'loss'"),
    (18, "stages[1].stopping", "kind stopping"),
    (19, "stages[2].stage", "'train'"),
    (19, "stages[2].num_trials", "is missing"),
    (21, "stages[2].epocks", "'epochs'"),
    (22, "stages[2].stopping", "kind stopping"),
    (23, "stages[3].num_trials", "is missing"),
    (24, "stages[3].criteria[0]", "kind stopping"),
    (24, "stages[3].criteria[1]", "'patience'"),
    (27, "stages[4].methods[0]", "'lawa'"),
    (28, "stages[4].samplr", "'sampler'"),
    (28, "stages[4].samplr", "'tpe'"),
]


def mistakes(text: str, folder: Path, **given: object) -> list[tuple[int | None, str, str]]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text.encode(), "wrong.yaml", folder=folder, **given)  # type: ignore[arg-type]
    return [(one.line, one.path, one.message) for one in (caught.value, *caught.value.others)]


def test_misspelt_keys_do_not_hide_unknown_plugins(tmp_path: Path) -> None:
    found = mistakes(WRONG, tmp_path)
    assert [one[:2] for one in found] == [one[:2] for one in MISTAKES]
    for (_, path, message), (*_, fragment) in zip(found, MISTAKES, strict=True):
        assert fragment in message, (path, message)


@pytest.mark.parametrize("command", ["validate", "submit", "run"])
def test_the_commands_print_all_mistakes(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSEARCH_HOME", str(tmp_path / "home"))
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    monkeypatch.setattr("sys.argv", ["vitsearch", command, str(file)])
    with pytest.raises(SystemExit, match="2"):
        main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(MISTAKES)
    assert all(f"wrong.yaml:{line}: {path}: " in told for told, (line, path, _) in zip(lines, MISTAKES, strict=True))


def test_the_service_answers_with_all_mistakes(tmp_path: Path) -> None:
    with serving(golden_settings(tmp_path)) as requests:
        answer = requests.post("/v1/validate", content=WRONG, headers={"Content-Type": "application/yaml"})
    assert [(one["line"], one["path"]) for one in answer.json()["errors"]] == [one[:2] for one in MISTAKES]


def test_a_corrected_key_is_not_taken_for_a_mistake(tmp_path: Path) -> None:
    text = WRONG.partition("\n  - stage: train\n")[0]
    for old, new in (
        ("dat: {source: digits, imagesize: 32}", "data: {source: digits}"),
        ("metrik: acuracy", "metric: accuracy"),
        ("engine: {name: ray, scheduler: ashaa}", "engine: optuna"),
        ("as-vitt", "as-vit"),
        ("proxie: [paramz, params]", "proxies: [params]"),
        ("randomm", "random"),
    ):
        assert old in text
        text = text.replace(old, new)
    assert [one[1] for one in mistakes(text, tmp_path)] == ["stages[0].num_trial"]
    (tmp_path / "right.yaml").write_text(text.replace("num_trial:", "num_trials:"))
    assert load_spec(tmp_path / "right.yaml").study == "wrong"


def test_a_value_that_was_left_out_is_not_told_as_missing(tmp_path: Path) -> None:
    text = "study: a\ndata: {source: digits}\nstages:\n  - {stage: grow, target_params: many, proxies: [paramz]}\n"
    assert [one[1] for one in mistakes(text, tmp_path)] == ["stages[0].target_params", "stages[0].proxies[0]"]


def test_paths_outside_the_data_folders_do_not_hide_other_mistakes(tmp_path: Path) -> None:
    stage = "{stage: screen, space: as-vitt, num_trial: 2, proxies: [params]}"
    text = f"study: a\ndata: {{source: /etc}}\nstages:\n  - {stage}\n"
    found = [one[1] for one in mistakes(text, tmp_path, roots=[tmp_path])]
    assert found == ["data.source", "stages[0].num_trial", "stages[0].space"]
    text = text.replace("num_trial:", "num_trials:")
    assert [one[1] for one in mistakes(text, tmp_path, roots=[tmp_path])] == ["data.source", "stages[0].space"]


@pytest.mark.parametrize("key", ["sourc", "source"])
def test_no_file_outside_the_data_folders_is_looked_at(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "table.csv").write_text("topology,accuracy\n")
    (root / "link").symlink_to(outside)
    looked: list[object] = []
    monkeypatch.setattr(study_file, "source_problems", lambda data: looked.append(data) or iter(()))

    def look(*args: object, **_: object) -> None:
        looked.append(args)
        raise TruthError("seen", key="table")

    monkeypatch.setattr("orchestrator.stages.correlate.read_truth_table", look)
    text = (
        f"study: a\nseeed: 1\ndata: {{{key}: link}}\nstages:\n  - stage: correlate\n    proxies: [params]\n"
        "    truth: {tabl: link/table.csv, space: as-vit, target: accuracy}\n"
    )
    mistakes(text, root, roots=[root])
    mistakes(text.replace("tabl:", "table:"), root, roots=[root])
    assert not looked
    mistakes(text, root, roots=[root, outside])
    assert looked
