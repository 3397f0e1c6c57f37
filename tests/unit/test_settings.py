"""Settings come from the environment and create nothing."""

import os
from pathlib import Path

import pytest

from orchestrator.settings import SettingsError, load_settings
from plugins import registry
from trainers.storage.addresses import address_of

VARIABLES = ("HOME", "DATABASE_URL", "TRACKING_URI", "ARTIFACT_ROOT", "TRACKING")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", *(f"VITSEARCH_{variable}" for variable in VARIABLES)):
        monkeypatch.delenv(name, raising=False)


def test_everything_lies_in_one_home_folder_that_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("VITSEARCH_HOME", str(home))
    settings = load_settings()
    assert settings.home == home
    assert settings.database_url == f"sqlite:///{home}/vitsearch.db"
    assert settings.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert settings.artifact_root == home / "artifacts"
    assert settings.tracking
    assert not home.exists()


def test_the_default_home_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VITSEARCH_HOME", "")
    assert load_settings().home == tmp_path / ".local/share/vitsearch"


def test_a_team_sets_its_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_DATABASE_URL", "postgresql+psycopg://db/vitsearch")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("VITSEARCH_TRACKING", "off")
    settings = load_settings()
    assert settings.database_url == "postgresql+psycopg://db/vitsearch"
    assert settings.tracking_uri == "http://mlflow:5000"
    assert not settings.tracking


def test_a_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(home=Path("here")).artifact_root == tmp_path / "here/artifacts"


def test_data_roots_are_separated_like_a_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITSEARCH_DATA_ROOTS", os.pathsep.join(["/srv/images", "here", ""]))
    assert load_settings().data_roots == (Path("/srv/images"), tmp_path / "here")


def test_a_token_is_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_TOKEN", "vs-hidden")
    settings = load_settings()
    assert settings.token is not None
    assert settings.token.get_secret_value() == "vs-hidden"
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_the_server_must_have_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_SERVER", "vitsearch.example")
    with pytest.raises(SettingsError, match=r"VITSEARCH_SERVER: must be an address .* such as http://vitsearch\.ex"):
        load_settings()


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_TRACKING", "perhaps")
    with pytest.raises(SettingsError, match=r"VITSEARCH_TRACKING: must be on or off, but got 'perhaps'"):
        load_settings()


@pytest.mark.parametrize("variable", ["VITSEARCH_HOME", "VITSEARCH_CACHE_FOLDER"])
def test_the_address_of_an_object_store_is_no_folder(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "s3://bucket/studies")
    with pytest.raises(SettingsError, match=rf"{variable}: must be a folder.*but got 's3://bucket/studies'"):
        load_settings()


@pytest.mark.parametrize(
    ("address", "must"),
    [
        (
            "s3://key:secret@bucket/studies",
            r"without a user, password or options .*but got 's3://\*\*\*@bucket/studies'",
        ),
        ("s3://bucket/studies?endpoint=x", "without a user, password or options"),
        ("s3://", "must be a folder, or the address of an object store"),
        ("s3://bucket/../other", "must be a folder, or the address of an object store"),
        ("file:///data", "name the folder without file://"),
        ("memory://studies", "lost with it"),
        ("floppy://bucket", "a store that fsspec knows"),
        ("oss://bucket/studies", "needs the package ossfs for oss://"),
    ],
)
def test_an_unsuitable_address_of_the_artifacts_is_refused(
    address: str, must: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSEARCH_ARTIFACT_ROOT", address)
    with pytest.raises(SettingsError, match=f"VITSEARCH_ARTIFACT_ROOT: .*{must}") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_an_object_store_keeps_artifacts_and_the_home_what_must_be_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSEARCH_ARTIFACT_ROOT", "s3://bucket/lab/")
    settings = load_settings(home=tmp_path)
    assert address_of(settings.artifact_root) == "s3://bucket/lab"
    assert address_of(settings.artifact_root / "studies" / "a") == "s3://bucket/lab/studies/a"
    assert (settings.local_root, settings.mlflow_root) == (tmp_path / "artifacts", tmp_path / "artifacts" / "mlflow")
    assert settings.environment()["VITSEARCH_ARTIFACT_ROOT"] == "s3://bucket/lab"


def test_loading_changes_no_environment_variable_and_no_plugin(tmp_path: Path) -> None:
    before, proxies = dict(os.environ), registry.available("proxies")
    load_settings(home=tmp_path / "another")
    assert dict(os.environ) == before
    assert registry.available("proxies") is proxies


def test_a_driver_gets_the_same_settings_but_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = load_settings(
        home=tmp_path, tracking=False, data_roots=f"{tmp_path}/a:{tmp_path}/b", max_studies=3, token="secret"
    )
    environment = given.environment()
    assert "secret" not in str(environment)
    assert "VITSEARCH_TOKEN" not in environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given.model_copy(update={"token": None})
