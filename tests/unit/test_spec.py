"""Study files: valid files, differences between two files, and no writes while reading."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.spec.stage_registry import stage_models
from orchestrator.spec.study_file import StudySpec, differences, load_configuration, load_spec, make_spec
from orchestrator.stages.averaging import AveragingStage
from orchestrator.stages.screen import ScreenStage
from orchestrator.stages.stopping import StoppingStage
from orchestrator.stages.train_spec import TrainStage
from search_spaces.recipes import PluginChoice
from trainers.yaml_source import SpecError

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = """\
study: tiny
data: {source: digits}
stages:
  - {stage: screen, num_trials: 8}
  - {stage: train, num_trials: 6, epochs: 1}
"""


def load(folder: Path, text: str, **overrides: object) -> StudySpec:
    file = folder / "study.yaml"
    file.write_text(text)
    return load_spec(file, overrides={key.replace("__", "."): value for key, value in overrides.items()})


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of four 8 x 8 images each."""
    folder = tmp_path / "photos"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["quickstart", "grow-digits"])
def test_the_example_studies_are_valid(name: str) -> None:
    assert load_spec(ROOT / "studies" / f"{name}.yaml").stages[-1].stage == "promote"


def test_the_cifar10_example_is_valid_with_data_from_the_command_line() -> None:
    data = ROOT / ".." / "shared" / "data" / "cifar10"
    if not data.exists():
        pytest.skip("the shared CIFAR-10 files are not there")
    spec = load_spec(ROOT / "studies" / "cifar10-small.yaml", overrides={"data.source": str(data)})
    assert spec.data.source == str(data.resolve())


def test_the_cifar10_example_without_its_folder_says_which_is_missing() -> None:
    with pytest.raises(SpecError, match="cifar10 does not exist") as caught:
        load_spec(ROOT / "studies" / "cifar10-small.yaml")
    assert caught.value.path == "data.source"


@pytest.mark.parametrize("document", ["README.md", "docs/own-images.md"])
def test_the_example_with_the_documented_changes_fits_photographs(document: str, tmp_path: Path) -> None:
    """The changes are those of the first block of YAML, which names the study `photos`."""
    text = (ROOT / document).read_text(encoding="utf-8")
    (changes,) = re.findall(r"```yaml\n(study: photos\n.*?)```", text, flags=re.DOTALL)
    example = (ROOT / "studies" / "cifar10-small.yaml").read_text(encoding="utf-8")
    changed, count = re.subn(r"^study: .*?(?=^stages:)", lambda _: changes, example, flags=re.DOTALL | re.MULTILINE)
    assert count == 1
    for number, name in enumerate(("cats", "dogs", "owls")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            size = (80 + 10 * index, 70 + 20 * number)
            Image.new("RGB", size, (index, number, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    spec = load(tmp_path, changed)
    assert (spec.study, spec.data.source) == ("photos", str(tmp_path / "photos"))
    assert spec.data.max_images is None
    assert spec.data.max_test_images is None
    assert spec.remarks == []


@pytest.mark.parametrize("name", ["quickstart", "cifar10-small"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_epochs_of_an_example_can_be_lowered(name: str, epochs: int, tmp_path: Path) -> None:
    text = (ROOT / "studies" / f"{name}.yaml").read_text(encoding="utf-8")
    fewer, count = re.subn(r"^    epochs: \d+$", f"    epochs: {epochs}", text, flags=re.MULTILINE)
    assert count == 1
    *of_criteria, of_averages = load(tmp_path, fewer, data__source="digits").remarks
    assert "lawa" in of_averages
    assert [re.findall(r"[a-z]+(?:-[a-z]+)*(?=\()", remark) for remark in of_criteria] == (
        [["patience", "generalization-loss", "successive-rises"]] if epochs == 1 else [["successive-rises"]]
    )


@pytest.mark.parametrize("name", ["quickstart", "grow-digits"])
def test_a_spec_survives_json_with_its_digest(name: str) -> None:
    spec = load_spec(ROOT / "studies" / f"{name}.yaml")
    again = StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec
    assert again.digest == spec.digest


def test_the_digest_changes_with_any_value(tmp_path: Path) -> None:
    digests = {
        load(tmp_path, SMALLEST).digest,
        load(tmp_path, SMALLEST, seed=1).digest,
        load(tmp_path, SMALLEST, study="b").digest,
    }
    assert len(digests) == 3


def test_the_digest_does_not_depend_on_the_order_of_keys_or_comments(tmp_path: Path) -> None:
    other = SMALLEST.replace("stage: screen, num_trials: 8", "num_trials: 8, stage: screen") + "# a comment\n"
    assert load(tmp_path, other).digest == load(tmp_path, SMALLEST).digest


def test_differences_are_readable(tmp_path: Path) -> None:
    old = load(tmp_path, SMALLEST)
    new = load(tmp_path, SMALLEST.replace("epochs: 1", "epochs: 30, recipe: {warmup: 0.2}") + "  - stage: promote\n")
    found = differences(old, new)
    assert found[:3] == [
        "stages[1].epochs: 1 -> 30",
        "stages[1].recipe: {} -> (not there)",
        "stages[1].recipe.warmup: (not there) -> 0.2",
    ]
    assert 'stages[2].stage: (not there) -> "promote"' in found
    assert all(line.startswith("stages[2].") for line in found[3:])
    assert differences(old, old) == []


def test_a_relative_source_belongs_to_the_file_and_an_overridden_one_to_the_working_directory(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SMALLEST.replace("digits", image_folder.name)
    assert load(image_folder.parent, text).data.source == str(image_folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(image_folder.parent)
    assert load(tmp_path / "elsewhere", SMALLEST, data__source=image_folder.name).data.source == str(image_folder)


def test_a_wrong_override_is_told_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, SMALLEST, data__source=str(tmp_path / "nowhere"))
    assert caught.value.line is None
    assert "an override of the file" in caught.value.message


def test_exponents_without_a_dot_are_numbers_in_recipes(tmp_path: Path) -> None:
    recipe = "recipe: {learning_rate: {low: 1e-4, high: 1e-2, log: true}, weight_decay: 5e-2}"
    stage = load(tmp_path, SMALLEST.replace("epochs: 1", f"epochs: 1, {recipe}")).stages[1]
    assert isinstance(stage, TrainStage)
    (learning_rate,) = stage.recipe_space.dimensions
    assert learning_rate.model_dump(include={"low", "high", "log"}) == {"low": 1e-4, "high": 1e-2, "log": True}
    assert stage.recipe_space.base.weight_decay == 0.05
    assert stage.recipe_space.base.learning_rate == 1e-3


def test_plugin_searches_decode_points_and_fall_back_to_what_is_fixed() -> None:
    searched = StoppingStage.model_validate(
        {"stage": "stopping", "num_trials": 1, "criteria": [{"name": "patience", "epochs": {"low": 1, "high": 4}}]}
    )
    assert [dimension.name for dimension in searched.dimensions] == [
        "stopping.criterion",
        "stopping.criterion.patience.epochs",
    ]
    point = {"stopping.criterion": "patience", "stopping.criterion.patience.epochs": 3}
    assert searched.decode(point) == PluginChoice(name="patience", settings={"epochs": 3})
    fixed = AveragingStage.model_validate({"stage": "averaging", "num_trials": 1, "methods": ["last"]})
    assert fixed.dimensions == ()
    assert fixed.decode({}) == PluginChoice(name="last")


def test_ranking_defaults_to_the_first_two_proxies_that_measure_more_than_size() -> None:
    def ranking(**fields: object) -> tuple[str, ...]:
        return ScreenStage.model_validate({"stage": "screen", "num_trials": 1, **fields}).ranking

    assert ranking() == ("length-distortion", "ntk-condition")
    assert ranking(proxies=["params", "extrinsic-curvature", "flops"]) == ("extrinsic-curvature",)
    assert ranking(proxies=["params", "flops"]) == ("params",)
    assert ranking(rank_by=["flops"]) == ("flops",)


def test_every_field_is_documented() -> None:
    for model in (StudySpec, *stage_models().values()):
        missing = [name for name, field in model.model_fields.items() if not field.description and name != "stage"]
        assert not missing, f"{model.__name__}: {missing}"


def test_a_configuration_is_read_with_the_same_care(tmp_path: Path) -> None:
    text = (
        "data: {source: digits}\ntopology: as-vit:4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|16,16\n"
        "recipe: {learning_rate: 1e-3, curriculum: {name: paced}}\nepochs: 5\nseed: 1\n"
    )
    file = tmp_path / "best.yaml"
    file.write_text(text)
    assert load_configuration(file).recipe.learning_rate == 1e-3
    for old, new, line, fragment in (
        ("epochs: 5", "epoch: 5", 4, "Did you mean 'epochs'?"),
        ("paced", "spaced", 3, "Did you mean 'paced'?"),
        ("4,2,2,1", "4,3,2,1", 2, "split"),
        ("learning_rate: 1e-3", "learning_rate: -1", 3, "above 0"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(SpecError, match=fragment) as caught:
            load_configuration(file)
        assert caught.value.line == line


def test_reading_a_study_imports_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(SMALLEST)
    code = (
        "import sys; from orchestrator.spec.study_file import load_spec; import orchestrator.settings;"
        "load_spec('study.yaml');"
        "orchestrator.settings.load_settings();"
        "heavy = {'torch', 'optuna', 'ray', 'mlflow', 'sqlalchemy', 'sklearn', 'scipy', 'matplotlib', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {"VITSEARCH_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "[]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


# --- a study that no file contains ---


def in_memory(**data: object) -> dict[str, object]:
    train = {"stage": "train", "num_trials": 6, "epochs": 1}
    return {"study": "tiny", "data": data, "stages": [{"stage": "screen", "num_trials": 8}, train]}


def test_a_study_without_a_file_is_the_same_as_with_one(tmp_path: Path) -> None:
    assert make_spec(in_memory(source="digits")) == load(tmp_path, SMALLEST)


def test_paths_of_a_study_without_a_file_are_relative_to_the_working_directory(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    spec = make_spec(in_memory(source="digits", image_size=32), overrides={"data.source": "photos"})
    assert spec.data.source == str(image_folder)
    assert make_spec(in_memory(source="photos", image_size=32)) == spec


def test_a_mistake_in_a_study_without_a_file_has_no_line() -> None:
    with pytest.raises(SpecError, match=r"^the study: stages\[1\]\.epochs: must be") as caught:
        make_spec(
            {
                **in_memory(source="digits"),
                "stages": [{"stage": "screen", "num_trials": 8}, {"stage": "train", "num_trials": 1, "epochs": 0}],
            }
        )
    assert caught.value.line is None


def test_a_mistake_about_the_engine_is_found_without_a_file() -> None:
    with pytest.raises(SpecError, match="a scheduler needs engine `ray`"):
        make_spec({**in_memory(source="digits"), "engine": {"name": "optuna", "scheduler": "asha"}})
