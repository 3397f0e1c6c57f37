"""A study file with a relative source, sent to a service on another machine."""

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli.service_studies import submit_there, tell_local_images, validate_there
from orchestrator.client import Client, RequestRefusedError
from orchestrator.settings import Settings
from tests.service import client_for, golden_settings, serving

STUDY = "study: photos\ndata: {{source: {source}}}\nstages: [{{stage: screen, num_trials: 2, proxies: [params]}}]\n"


def images(folder: Path) -> Path:
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / kind / f"{number}.png")
    return folder


def write(folder: Path, source: str = "photos") -> Path:
    file = folder / "photos.yaml"
    file.write_text(STUDY.format(source=source))
    return file


def refusal(settings: Settings, file: Path) -> list[str]:
    """The mistakes that a service finds in a file from elsewhere."""
    with serving(settings) as requests, pytest.raises(RequestRefusedError) as caught:
        client_for(requests).validate(file)
    return [one["message"] for one in caught.value.problem["errors"]]


def test_a_relative_source_that_the_service_lacks_is_told_with_its_data_folders(tmp_path: Path) -> None:
    roots = (tmp_path / "images", tmp_path / "more")
    (message,) = refusal(golden_settings(tmp_path, data_roots=roots), write(tmp_path))
    assert message.startswith(
        f"must name images in {roots[0]}, the data folder of the service, but there is no 'photos'."
    )
    assert "Images are not sent with a study file" in message
    assert f"({roots[0]}, {roots[1]})" in message


def test_a_relative_source_is_found_in_the_first_data_folder(tmp_path: Path) -> None:
    images(tmp_path / "images" / "photos")
    with serving(golden_settings(tmp_path, data_roots=(tmp_path / "images",))) as requests:
        found = client_for(requests).validate(write(tmp_path))
    assert found["spec"]["data"]["source"] == str(tmp_path / "images" / "photos")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_service_without_data_folders_needs_an_absolute_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if is_there:
        images(work / "photos")
    monkeypatch.chdir(work)
    settings, file = golden_settings(tmp_path), write(tmp_path)
    (message,) = refusal(settings, file)
    assert message.startswith("must be an absolute path on the machine of the service, but got 'photos'.")
    file.write_text(file.read_text().replace("num_trials", "num_trial"))
    assert [one.partition(",")[0] for one in refusal(settings, file)][-1].startswith("must be one of the keys")


def test_the_folder_of_another_machine_is_not_one_of_the_service(tmp_path: Path) -> None:
    with serving(golden_settings(tmp_path)) as requests:
        text = STUDY.format(source="photos")
        sent = requests.post("/v1/validate", content=text, params={"folder": str(tmp_path / "laptop")})
        assert "must be an absolute path on the machine of the service" in sent.json()["detail"]
        images(tmp_path / "here" / "photos")
        assert requests.post("/v1/validate", content=text, params={"folder": str(tmp_path / "here")}).status_code == 200


@pytest.mark.parametrize(
    ("source", "is_told"), [("photos", True), ("elsewhere", False), ("digits", False), ("/", False)]
)
def test_the_commands_tell_that_images_on_this_computer_are_not_sent(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_told: bool
) -> None:
    here = images(tmp_path / "photos")
    tell_local_images(Client("http://service.example"), write(tmp_path, source))
    told = capsys.readouterr().err.replace("\n", " ")
    assert (f"{here} is on this computer and is not sent: the service looks for 'photos' in" in told) == is_told
    assert bool(told) == is_told
    tell_local_images(Client("http://localhost:8000"), write(tmp_path, source))
    assert capsys.readouterr().err == ""


def test_validate_and_submit_tell_it_before_they_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "photos")
    images(tmp_path / "images" / "photos")
    file = write(tmp_path)
    with serving(golden_settings(tmp_path, data_roots=(tmp_path / "images",))) as requests:
        client = client_for(requests)
        validate_there(client, file, overrides={})
        submit_there(
            client,
            file,
            overrides={},
            priority=0,
            key=None,
            retry_failed=False,
            shared=False,
            webhook=None,
            webhook_secret=None,
            as_json=True,
        )
    assert capsys.readouterr().err.count("is on this computer and is not sent") == 2
