"""A champion is a model that MLflow loads and serves, also from a moved home and from a home of version 0.1.0."""

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from orchestrator.settings import load_settings
from orchestrator.study.access import find_study, open_existing, study_folder, tracker_of
from orchestrator.tracking.events import DeleteExperiment, EnsureExperiment, Event, LogArtifact, RegisterModel, StartRun
from orchestrator.tracking.mlflow_client import Tracker
from orchestrator.tracking.relocation import relocate
from tests.integration.test_mlflow_server import free_port, mlflow_server
from tests.tiny import CommandLine
from trainers.champion import load_model
from vitsearch.pyfunc import as_images

OLD_CHAMPION = next(
    (Path(__file__).parents[1] / "golden/homes/0.1.0/home/artifacts/studies").glob("finished-*/promote/champion")
)


def champion_events(folder: Path) -> list[Event]:
    """The events of a study whose champion is in a folder."""
    return [
        EnsureExperiment(name="digits", tags={"vitsearch.study": "digits"}),
        StartRun(key="abc/promote", name="promote", experiment="digits", start_time_ms=1),
        LogArtifact(key="abc/promote", path=str(folder), artifact_path="champion"),
        RegisterModel(key="abc/promote", name="digits", artifact_path="champion", alias="champion"),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the champion of version 0.1.0 is registered."""
    home = tmp_path_factory.mktemp("mlflow-model") / "home"
    folder = home / "artifacts" / "studies" / "digits-abc" / "promote" / "champion"
    shutil.copytree(OLD_CHAMPION, folder)
    Tracker(f"sqlite:///{home}/mlflow.db", home / "artifacts" / "mlflow").deliver(champion_events(folder))
    return home


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same home, with MLflow's environment."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made}/mlflow.db")
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    return made


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A picture of a vertical stroke."""
    from PIL import Image

    pixels = np.zeros((40, 32), np.uint8)
    pixels[4:36, 14:19] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def loaded() -> Any:
    import mlflow

    return mlflow.pyfunc.load_model("models:/digits@champion")


def test_a_champion_takes_bytes_arrays_and_paths(home: Path, digit: Path) -> None:
    from PIL import Image

    model = loaded()
    (expected,) = load_model(OLD_CHAMPION).predict(digit, top=10)
    content, pixels = digit.read_bytes(), np.asarray(Image.open(digit))
    several: list[Any] = [
        [content, content],
        [str(digit), digit],
        [pixels, pixels],
        np.stack([pixels, pixels])[..., None],
        pd.DataFrame({"image": [content, content]}),
        pd.DataFrame({"path": [str(digit), str(digit)]}),
        pd.Series([content, content]),
        [base64.b64encode(content).decode(), base64.encodebytes(content).decode()],
        [pixels.tolist(), pixels.tolist()],
    ]
    for given in several:
        found = model.predict(given)
        assert list(found.columns) == ["label", "probability", "probabilities"]
        for _, row in found.iterrows():
            assert row["label"] == expected.label
            assert row["probability"] == pytest.approx(expected.probability, abs=1e-6)
            assert row["probabilities"] == pytest.approx(dict(expected.top), abs=1e-6)
        assert len(found) == 2
    for given in (content, str(digit), digit, pixels):
        assert list(model.predict(given)["label"]) == [expected.label]


def test_a_champion_has_a_signature_an_example_and_pinned_requirements(home: Path) -> None:
    import mlflow

    model = loaded()
    assert [column["name"] for column in model.metadata.signature.outputs.to_dict()] == [
        "label",
        "probability",
        "probabilities",
    ]
    assert [column["type"] for column in model.metadata.signature.inputs.to_dict()] == ["binary"]
    assert len(model.predict(model.input_example)) == 1
    requirements = mlflow.pyfunc.get_model_dependencies("models:/digits@champion")
    lines = Path(requirements).read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    assert {"vitsearch", "torch", "mlflow"} <= {line.partition("==")[0] for line in lines}
    assert model.metadata.flavors["python_function"].get("code") is None


def test_weights_of_the_registered_model_take_no_further_space(home: Path) -> None:
    files = list(home.rglob("model.safetensors"))
    assert len(files) == 2
    assert files[0].samefile(files[1])


def test_a_champion_is_loaded_from_a_moved_home(
    home: Path, digit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    hidden = home.with_name("hidden")
    home.rename(hidden)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}/mlflow.db")
        assert relocate(moved / "mlflow.db", moved / "artifacts" / "mlflow") == 1
        assert len(loaded().predict(digit)) == 1
    finally:
        hidden.rename(home)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"a": [b""], "b": [b""]}), "must have one column, but has 2"),
        ([[[0, 300]]], r"images\[0\] must be rows of pixels"),
        ([[["a"]]], r"images\[0\] must be rows of pixels"),
    ],
)
def test_what_is_not_an_image_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_images(given)


def test_a_server_does_not_read_its_own_files_for_a_client(digit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(ValueError, match=r"images\[0\] must be an image file in base64"):
        as_images([str(digit)])


@contextmanager
def served(home: Path, port: int) -> Iterator[Path]:
    """`mlflow models serve` for the champion; yields its log."""
    log = home / "serve.log"
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@champion", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--env-manager", "local", "--host", "127.0.0.1"],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            cwd=home,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(port: int, body: bytes, content_type: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def wait_for(port: int, page: str, log: Path | None = None) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + 900
    while not is_up(port, page):
        assert time.monotonic() < end, log.read_text() if log else page
        time.sleep(0.5)


def is_up(port: int, page: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", page)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.slow
def test_a_tracking_server_gets_a_copy_that_is_deleted_with_the_study(
    tmp_path: Path, digit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    port, home = free_port(), tmp_path / "home"
    folder = home / "artifacts" / "studies" / "digits-abc" / "promote" / "champion"
    shutil.copytree(OLD_CHAMPION, folder)
    url = f"http://127.0.0.1:{port}"
    with mlflow_server(tmp_path / "server", port):
        wait_for(port, "/health")
        tracker = Tracker(url, home / "artifacts" / "mlflow")
        tracker.deliver(champion_events(folder))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        assert len(loaded().predict(digit)) == 1
        copies = list((tmp_path / "server").rglob("model.safetensors"))
        assert [one.stat().st_nlink for one in copies] == [1]
        tracker.deliver([DeleteExperiment(name="digits")])
        assert list((tmp_path / "server").rglob("model.safetensors")) == []
        assert mlflow.MlflowClient(url).search_registered_models() == []
        assert (folder / "model.safetensors").is_file()


@pytest.mark.slow
def test_mlflow_serves_a_champion(made: Path, digit: Path) -> None:
    port = free_port()
    with served(made, port) as log:
        wait_for(port, "/ping", log)
        (expected,) = load_model(OLD_CHAMPION).predict(digit)
        image = base64.b64encode(digit.read_bytes()).decode()
        status, answer = post(port, json.dumps({"inputs": [image, image]}).encode(), "application/json")
        assert status == 200, answer
        assert [row["label"] for row in answer["predictions"]] == [expected.label] * 2
        assert answer["predictions"][0]["probability"] == pytest.approx(expected.probability, abs=1e-6)
        (example,) = made.glob("artifacts/mlflow/*/*/artifacts/champion/serving_input_example.json")
        assert post(port, example.read_bytes(), "application/json")[0] == 200
        status, answer = post(port, f"image\n{digit}\n".encode(), "text/csv")
        assert status == 400
        assert "must be an image file in base64" in json.dumps(answer)


def test_a_damaged_model_card_is_rejected_and_not_tried_again(made: Path, tmp_path: Path) -> None:
    from orchestrator.tracking.mlflow_client import TrackingRejected

    folder = tmp_path / "champion"
    shutil.copytree(OLD_CHAMPION, folder)
    card = yaml.safe_load((folder / "model.yaml").read_text())
    del card["task"]
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    tracker = Tracker(f"sqlite:///{made}/mlflow.db", made / "artifacts" / "mlflow")
    with pytest.raises(TrackingRejected, match=r"model\.yaml must describe a model"):
        tracker.deliver([LogArtifact(key="abc/promote", path=str(folder), artifact_path="champion")])


def test_any_command_in_a_moved_home_corrects_the_addresses(
    home: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    for tracking, expected in (("off", home), ("on", moved)):
        assert command_line("list", home=moved, VITSEARCH_TRACKING=tracking, MLFLOW_TRACKING_URI="").status == 0
        from mlflow import MlflowClient

        version = MlflowClient(f"sqlite:///{moved}/mlflow.db").get_model_version_by_alias("digits", "champion")
        assert version.source.startswith(expected.as_uri())


def test_a_champion_that_version_0_1_0_registered_can_be_loaded_after_the_next_run(
    digit: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    version = OLD_CHAMPION.parents[4].parent
    home = Path(shutil.copytree(version / "home", command_line.home))
    settings = load_settings(home=home)
    study = find_study("finished", settings)
    key, folder = f"{study.uid}/stage/promote", study_folder(settings, study) / "promote" / "champion"
    with open_existing(settings) as store:
        assert store is not None
        tracker_of(study, settings, store).deliver(
            [
                EnsureExperiment(name="finished", tags={"vitsearch.study": "finished"}),
                StartRun(key=key, name="promote", experiment="finished", start_time_ms=1),
                LogArtifact(key=key, path=str(folder), artifact_path="champion"),
                RegisterModel(key=key, name="finished", artifact_path="champion", alias="champion"),
            ]
        )
    for path in home.glob("artifacts/mlflow/finished/*/artifacts/champion/*"):  # what only this version writes
        if path.name not in ("model.yaml", "model.safetensors"):
            path.unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    with pytest.raises(mlflow.MlflowException):
        mlflow.pyfunc.load_model("models:/finished@champion")
    file = version / "finished.yaml"
    assert command_line("run", file, "--quiet", VITSEARCH_TRACKING="on", MLFLOW_TRACKING_URI="").status == 0
    assert len(mlflow.pyfunc.load_model("models:/finished@champion").predict(digit)) == 1
