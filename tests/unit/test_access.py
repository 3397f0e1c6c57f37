"""Finding studies raises our exceptions, and the command line maps each to an exit status."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from orchestrator.cli.exit_status import STATUS, exit_on_error, status_of
from orchestrator.service.submitting import submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import make_spec
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement
from orchestrator.study.access import (
    NoChampionError,
    UnknownStudyError,
    delete_study,
    delete_submissions,
    find_champion,
    find_study,
    find_summary,
    list_studies,
    study_folder,
)
from orchestrator.study.lock import StudyBusyError
from trainers.data.listing import DataError

SCREEN = {"stage": "screen", "space": "as-vit", "num_trials": 2, "proxies": ["params"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home without a study."""
    return load_settings(home=tmp_path / "home", tracking=False)


@pytest.fixture
def with_study(settings: Settings) -> Settings:
    """A home with the study `digits`, which has not begun."""
    settings.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    stages = [("screen", "screen"), ("promote", "promote")]
    store.create_study("digits", spec={"seed": 3}, digest="a", data_digest="b", stage_names=stages)
    store.close()
    return settings


def test_a_list_of_more_studies_takes_no_more_queries(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    asked, counts = list[None](), list[int]()
    execute = Connection._execute_context

    def noted(*given: Any, **more: Any) -> Any:
        asked.append(None)
        return execute(*given, **more)

    monkeypatch.setattr(Connection, "_execute_context", noted)
    for number in range(1, 4):
        study = store.create_study(
            f"s{number}", spec={}, digest="a", data_digest="b", stage_names=[("screen", "screen")]
        )
        store.outbox(study.id).put(f"{study.uid}/run", f"run-{number}")
        file = settings.mlflow_root / study.name / f"run-{number}" / "artifacts.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * 100_000 * number)
        asked.clear()
        lines = list_studies(settings)
        counts.append(len(asked))
        assert [one["study"] for one in lines] == [f"s{n}" for n in range(number, 0, -1)]
        sizes = [one["num_bytes"] for one in lines]
        assert all(
            100_000 * n <= size < 100_000 * n + 90_000 for n, size in zip(range(number, 0, -1), sizes, strict=True)
        )
    store.close()
    assert len(set(counts)) == 1, counts


def test_a_missing_study_is_reported_with_the_nearest_name(with_study: Settings) -> None:
    with pytest.raises(UnknownStudyError, match=r"no study 'digit'.*Did you mean 'digits'\?") as caught:
        find_study("digit", with_study)
    assert (caught.value.name, caught.value.nearest) == ("digit", "digits")


def test_a_hint_about_the_service_does_not_hide_the_nearest_name(with_study: Settings) -> None:
    asking = with_study.model_copy(update={"server": "https://vitsearch.example"})
    hint = "This command does not ask the service at https://vitsearch.example: run it on the machine of"
    for name, told in (("digit", f". Did you mean 'digits'? {hint}"), ("photos", f". {hint}")):
        with pytest.raises(UnknownStudyError) as caught:
            find_study(name, asking)
        assert f"no study {name!r} in {with_study.home}{told}" in str(caught.value)


def test_looking_into_an_empty_home_creates_nothing(settings: Settings) -> None:
    assert list_studies(settings) == []
    with pytest.raises(UnknownStudyError):
        find_summary("digits", settings)
    assert not settings.home.exists()


def test_a_study_without_a_champion_raises(with_study: Settings) -> None:
    with pytest.raises(NoChampionError, match="it is waiting") as caught:
        find_champion("digits", with_study)
    assert caught.value.state == "waiting"


def test_a_deleted_study_leaves_neither_rows_nor_files(with_study: Settings) -> None:
    study = find_study("digits", with_study)
    folder = study_folder(with_study, study)
    folder.mkdir(parents=True)
    delete_study(study, with_study)
    assert list_studies(with_study) == []
    assert not folder.exists()


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_study_whose_driver_starts_is_not_deleted(settings: Settings, *, has_begun: bool) -> None:
    settings.home.mkdir()
    store = Store.open(settings.database_url)
    submit_study(store, make_spec({"study": "digits", "data": {"source": "noise"}, "stages": [SCREEN]}), "")
    claimed = store.queue().claim("r", "here", lambda *_: Placement({}))
    assert claimed is not None
    if has_begun:
        study = store.create_study("digits", spec={}, digest="a", data_digest="d", stage_names=[])
    with pytest.raises(StudyBusyError, match=r"'digits'.*Stop it first: vitsearch cancel digits"):
        delete_study(study, settings) if has_begun else delete_submissions("digits", settings)
    assert store.queue().find(claimed.uid) == claimed
    store.close()


@pytest.mark.parametrize("name", sorted(STATUS))
def test_an_exception_with_an_exit_status_exists(name: str) -> None:
    module, _, kind = name.partition(":")
    assert issubclass(getattr(importlib.import_module(module), kind), Exception)


def test_an_error_of_the_input_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error("study.yaml"):
        raise DataError("data.source must be a folder")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "vitsearch: study.yaml: data.source must be a folder\n"


def test_a_slip_of_ours_keeps_its_traceback() -> None:
    assert status_of(KeyError("x")) is None
    with pytest.raises(KeyError), exit_on_error("study.yaml"):
        raise KeyError("x")
