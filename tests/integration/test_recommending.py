"""Recommendations from the finished studies of a home, by how near their data are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.api.routes import recommending
from orchestrator.cli.recommending import _short
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_configuration
from orchestrator.store.repository import Store
from orchestrator.store.service_records import NewSubmission, WantedDevices
from orchestrator.store.study_names import home_owner
from tests.service import add_token, client_for, serving
from tests.tiny import CommandLine, FinishedStudy
from trainers.config import Configuration, DataConfig
from trainers.data.describing import describe_data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured noise in two classes, unlike the digits."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / ("sky" if number % 2 else "sea")
        place.mkdir(exist_ok=True)
        pixels = rng.integers(150, 255, size=(96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_the_champion_of_a_study_with_like_data_is_recommended(
    tiny: FinishedStudy, command_line: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "best.yaml"
    done = command_line("recommend", "--data", "digits", "--out", file, "--format", "json", home=tiny.home)
    assert done.status == 0, done.err
    (found,) = done.json()["recommendations"]
    assert (found["study"], found["is_champion"], found["is_near"]) == ("tiny", True, True)
    assert [one["text"] for one in found["differences"]] == [
        f"{tiny.rows.study.spec['data']['max_images'] * 3 // 4} training images instead of 1,078"
    ]
    configuration = load_configuration(file)
    assert configuration.topology == tiny.champion["configuration"]["topology"]
    assert configuration.data.max_images is None, "the data are the new ones"
    again = command_line("recommend", "--data", "digits", "--out", file, home=tiny.home)
    assert (again.status, "must not exist yet" in again.err) == (1, True)


def test_a_limit_takes_the_best_model_below_it_or_none(tiny: FinishedStudy, command_line: CommandLine) -> None:
    trials = tiny.rows.trials["train"]
    sizes = sorted(trial.metrics["parameters"] for trial in trials)
    limit = int(sizes[0])
    done = command_line("recommend", "--data", "digits", "--max-params", str(limit), "--format", "json", home=tiny.home)
    (found,) = done.json()["recommendations"]
    fitting = [trial for trial in trials if trial.metrics["parameters"] <= limit]
    best = max(fitting, key=lambda trial: (trial.metrics["val_accuracy"], -trial.metrics["val_loss"]))
    assert found["trial"] == best.number
    assert found["parameters"] == limit
    none = command_line("recommend", "--data", "digits", "--max-params", "1k", home=tiny.home)
    assert none.status == 0
    assert "tiny: none of its models satisfies what is wanted" in none.out
    other = command_line("recommend", "--data", "digits", "--image-size", "48", home=tiny.home)
    assert "fits the images" in other.out, "its topologies cannot be built for 48 pixels"
    assert "No finished study" in none.out
    slow = command_line("recommend", "--data", "digits", "--budget", "1s", home=tiny.home)
    assert "tiny: it took longer than the budget" in slow.out


def test_far_data_are_said_to_be_far(
    tiny: FinishedStudy, command_line: CommandLine, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "best.yaml"
    done = command_line("recommend", "--data", photos, "--out", file, home=tiny.home, COLUMNS="80")
    assert done.status == 1
    assert not file.exists()
    assert "Nothing is near: 1 finished study" in done.out
    assert "grey instead of colour images" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80


def test_an_empty_home_and_wrong_limits_are_named(command_line: CommandLine) -> None:
    assert "No finished study can be compared" in command_line("recommend", "--data", "digits").out
    for option, value, told in (
        ("--max-params", "many", "such as 500k or 2M, but got 'many'"),
        ("--budget", "5", "such as 30m or 2h, but got '5'"),
        ("--space", "as-vitt", "Did you mean 'as-vit'?"),
    ):
        done = command_line("recommend", "--data", "digits", option, value)
        assert (done.status, told in done.err) == (2, True), done.err


def test_a_service_recommends_the_studies_that_the_caller_sees(tiny: FinishedStudy, tmp_path: Path) -> None:
    settings = load_settings(home=Path(shutil.copytree(tiny.home, tmp_path / "home")), tracking=False)
    report = describe_data(DataConfig(source="digits")).report
    config = DataConfig(source="/somewhere/else")
    asked = (report.model_dump(mode="json"), config.model_dump(mode="json"))
    mine, hers = add_token(settings, home_owner(), "viewer"), add_token(settings, "ann", "viewer")
    with serving(settings, needs_token=True) as requests:
        (found,) = client_for(requests, mine).recommend(*asked)["recommendations"]
        assert (found["study"], found["is_champion"], found["is_near"]) == ("tiny", True, True)
        assert Configuration.model_validate(found["configuration"]).data == config
        assert client_for(requests, mine).recommend(*asked, space="pit")["recommendations"] == []
        assert client_for(requests, hers).recommend(*asked) == {"recommendations": [], "left_out": []}
        store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
        share(store, "tiny")
        assert client_for(requests, hers).recommend(*asked)["recommendations"] == [found]
        store.close()


def test_a_service_compares_the_newest_complete_studies_and_counts_the_rest(
    tiny: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(home=Path(shutil.copytree(tiny.home, tmp_path / "home")), tracking=False)
    asked = (
        describe_data(DataConfig(source="digits")).report.model_dump(mode="json"),
        DataConfig(source="digits").model_dump(mode="json"),
    )
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    store.create_study("new", spec={}, digest="d", data_digest="e", stage_names=[])
    store.close()
    monkeypatch.setattr(recommending, "MAX_STUDIES", 1)
    with serving(settings) as requests:
        answer = client_for(requests).recommend(*asked)
        assert [one["study"] for one in answer["recommendations"]] == ["tiny"]
        assert answer["left_out"] == [{"study": "new", "reason": "it is waiting"}]
        monkeypatch.setattr(recommending, "MAX_STUDIES", 0)
        answer = client_for(requests).recommend(*asked)
        assert answer["recommendations"] == []
        assert answer["left_out"][1]["study"] is None
        assert "1 older study was not compared" in answer["left_out"][1]["reason"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", []),
        ("std", ["nan"]),
        ("classes", []),
        ("channels", 2),
        ("image_size", 10**9),
        ("parts", {}),
        ("parts", {"train": {"num_images": -1, "per_class": {}}}),
        ("parts", {"train": {"num_images": 10**300, "per_class": {}}}),
    ],
)
def test_a_service_refuses_impossible_descriptions_of_data(
    tiny: FinishedStudy, tmp_path: Path, name: str, value: object
) -> None:
    settings = load_settings(home=tiny.home, tracking=False)
    report = describe_data(DataConfig(source="digits")).report.model_dump(mode="json")
    with serving(settings) as requests:
        sent = {"data": {**report, name: value}, "config": {"source": "digits"}}
        answer = requests.post("/v1/recommend", json=sent)
    assert answer.status_code == 422, answer.text
    assert f"data.{name}" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00223607, "0.002236"),
        ({"from": 0.1, "to": 0.0, "until": 0.55, "shape": "linear"}, "(from 0.1, to 0, until 0.55, shape linear)"),
        ({"name": "mixup", "alpha": 0.2}, "mixup (alpha 0.2)"),
        ([{"name": "paced", "start": 0.3}, "progressive-tokenization"], "paced (start 0.3) + progressive-tokenization"),
    ],
)
def test_a_recipe_is_told_in_words(value: object, text: str) -> None:
    assert _short(value) == text


def share(store: Store, name: str) -> None:
    """Let others see a study that was not submitted."""
    uid, owner = "0" * 12, home_owner()
    store.queue().add(NewSubmission(uid, owner, name, {}, "", WantedDevices(), "", shared=True))
    store.queue().request_cancel(uid)
