"""A study whose artifacts are in an object store ends the same, wherever its driver is killed and resumed."""

import json
from pathlib import Path

import pytest

from orchestrator.study.report import html_report
from tests.faults.driver import Kill, run
from tests.faults.killing import kill_and_resume, write_study
from tests.faults.on_ray import SHORT, WAYS
from tests.faults.on_ray import write_study as write_text
from tests.object_store import S3Server
from tests.places import Place, assert_is_the_same_study
from tests.ray_local import cluster_environment, ray_cluster
from tests.tiny import FinishedStudy
from trainers.storage.addresses import address_of
from trainers.storage.object_store import object_store

STORE = "orchestrator.store.repository:Store"
CREATE = "trainers.storage.object_store:ObjectStore.create"
WRITE = "trainers.storage.object_store:ObjectStore.write"
REMOVE = "trainers.storage.object_store:ObjectStore.remove"


def keys(place: Place) -> set[str]:
    """The objects of the study, below its folder."""
    address = address_of(place.settings().artifact_root)
    assert address is not None
    return {key.partition("/studies/")[2].partition("/")[2] for key in object_store("s3").find(address[5:])}


@pytest.mark.slow
def test_a_study_in_an_object_store_ends_the_same_although_it_is_killed(
    tiny: FinishedStudy, place: Place, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSEARCH_CACHE_FOLDER", str(tmp_path / "cache"))
    place = Place(place.home, place.database_url, s3.root)
    kill_and_resume(
        tiny,
        place,
        [
            Kill(CREATE, "after", "train", 4),  # objects of a checkpoint whose manifest is missing
            Kill(CREATE, "before", "train", 7),
            Kill(REMOVE, "before", "train", 6),
            Kill(CREATE, "after", "promote", 1),  # the champion's weights, without its description
            Kill(WRITE, "after", "promote", 1),  # a picture, before the stage has ended
        ],
        **s3.environment,
        VITSEARCH_CACHE_FOLDER=str(tmp_path / "cache"),
    )
    assert not (place.home / "artifacts").exists()
    monkeypatch.setenv("VITSEARCH_CACHE_FOLDER", str(tmp_path / "another"))
    another_machine(place, tiny, s3, tmp_path)


def another_machine(place: Place, tiny: FinishedStudy, s3: S3Server, tmp_path: Path) -> None:
    """What people do with a finished study, at first without any local copy."""
    environment = {**s3.environment, "VITSEARCH_CACHE_FOLDER": str(tmp_path / "another")}
    with pytest.raises(FileNotFoundError):
        assert_is_the_same_study(place, tiny)  # it reads files
    page = tmp_path / "report.html"
    assert run(place, "report", "tiny", "--out", page, **environment).process.exitcode == 0
    assert page.read_text().count("data:image/png") == tiny_pictures(tiny)
    before = keys(place)
    assert any(key.endswith("/optimizer.safetensors") or "/epoch-" in key for key in before)
    status = run(place, "evaluate", "tiny@champion", "--format", "json", **environment)
    assert status.process.exitcode == 0, status.err
    assert_is_the_same_study(place, tiny)
    pruned = run(place, "prune", "tiny", "--format", "json", **environment)
    assert pruned.process.exitcode == 0, pruned.err
    after = keys(place)
    assert {key for key in before - after if "/epoch-" not in key} == set()
    assert not any("/epoch-" in key for key in after)
    assert {"promote/champion/model.yaml", "promote/champion/model.safetensors"} <= after
    deleted = run(place, "delete", "tiny", "--yes", **environment)
    assert deleted.process.exitcode == 0, deleted.err
    assert keys(place) == set()


def tiny_pictures(tiny: FinishedStudy) -> int:
    """Pictures that the report of the undisturbed study shows."""
    return html_report("tiny", tiny.settings).count("data:image/png")


@pytest.mark.parametrize("reason", ["engine: {name: ray, scheduler: {name: pbt}}"])
def test_a_scheduler_that_copies_files_is_refused(
    place: Place, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setenv("VITSEARCH_CACHE_FOLDER", str(tmp_path / "cache"))
    place = Place(place.home, place.database_url, s3.root)
    file = write_study(place, **{"seed: 7\n": f"seed: 7\n{reason}\n"})
    refused = run(place, "run", file, "--quiet", **s3.environment, VITSEARCH_CACHE_FOLDER=str(tmp_path / "cache"))
    assert refused.process.exitcode == 1
    assert "does not suit scheduler `pbt`, whose trials copy each other's files" in refused.err
    assert not place.home.exists() or not list(place.home.glob("*.db"))
    assert json.dumps(sorted(keys(place))) == "[]"


@pytest.mark.slow
def test_the_nodes_of_a_cluster_need_no_common_folder_but_access_to_the_store(
    short: FinishedStudy, place: Place, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSEARCH_CACHE_FOLDER", str(tmp_path / "cache"))
    place = Place(place.home, place.database_url, s3.root)
    file = write_text(place, SHORT.replace("seed: 7\n", f"seed: 7\n{WAYS['pool']}\n"))
    environment = {**cluster_environment(), **s3.environment, "VITSEARCH_CACHE_FOLDER": str(tmp_path / "cache")}
    with monkeypatch.context() as without:
        without.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with ray_cluster(1) as cluster:
            refused = run(place, "run", file, "--quiet", RAY_ADDRESS=cluster.address, **environment)
    assert refused.process.exitcode == 1, refused.err
    assert f"cannot write to s3://{s3.root[5:]}/studies/" in refused.err
    with ray_cluster(2) as cluster:
        done = run(place, "run", file, "--quiet", RAY_ADDRESS=cluster.address, **environment)
    assert done.process.exitcode == 0, done.err
    assert place.rows().setups[-1]["pool"] == "ray"
    assert_is_the_same_study(place, short)
