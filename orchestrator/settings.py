"""Settings of an installation, read from environment variables. Reading them creates no files."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.safe_text import masked_address
from orchestrator.service_address import checked_address
from plugins.registry import use_formulas
from trainers.data.cache_settings import DEFAULT_GIB, DEFAULT_HOME, FOLDER_NAME, use_cache
from trainers.storage.addresses import address_of, local_place, place_text


class SettingsError(ValueError):
    """An environment variable has an invalid value."""


class Settings(BaseSettings):
    """Settings of one installation; a setting has its default if its variable is unset or empty."""

    model_config = SettingsConfigDict(
        env_prefix="VITSEARCH_", env_ignore_empty=True, frozen=True, extra="forbid", populate_by_name=True
    )

    home: Path = Field(
        default=DEFAULT_HOME,
        validate_default=True,
        description="VITSEARCH_HOME: folder of everything that has no separate setting below",
    )
    database_url: str = Field(
        default_factory=lambda data: _sqlite_url(data, "vitsearch.db"),
        description="VITSEARCH_DATABASE_URL: SQLAlchemy URL of the database of studies, SQLite or PostgreSQL",
    )
    database_wait_s: float = Field(
        default=120.0,
        ge=0,
        allow_inf_nan=False,
        description="VITSEARCH_DATABASE_WAIT_S: seconds that a running study waits for an unreachable database",
    )
    tracking_uri: str = Field(
        default_factory=lambda data: _sqlite_url(data, "mlflow.db"),
        validation_alias=AliasChoices("VITSEARCH_TRACKING_URI", "MLFLOW_TRACKING_URI"),
        description="MLFLOW_TRACKING_URI: the MLflow server or store",
    )
    cache_folder: Path = Field(
        default_factory=lambda data: _below_home(data, FOLDER_NAME),
        description="VITSEARCH_CACHE_FOLDER: folder of decoded images and of copies of objects, preferably on a fast "
        "local disk",
    )
    cache_gib: float = Field(
        default=DEFAULT_GIB,
        ge=0,
        allow_inf_nan=False,
        description="VITSEARCH_CACHE_GIB: largest size of the decoded images in this folder, in GiB, and of the copies "
        "of weights in it; those that were not used for longest are removed first; 0 keeps none",
    )
    artifact_root: Path = Field(
        default_factory=lambda data: _below_home(data, "artifacts"),
        description="VITSEARCH_ARTIFACT_ROOT: folder of checkpoints and artifacts, on a cluster "
        "one that all nodes share; or the address of an object store, such as s3://bucket/folder",
    )
    """For an object store, the folder of the local copies, which stands for its address (`trainers.storage`)."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="VITSEARCH_DATA_ROOTS: folders, separated by colons, that submitted studies may read images and "
        "other files from; relative paths are relative to the first. A service with tokens reads no others",
    )
    server: str | None = Field(
        default=None,
        description="VITSEARCH_SERVER: address of the service that `submit`, `list`, `status` and similar commands "
        "use, such as https://vitsearch.example; unset for the studies in the home folder",
    )
    token: SecretStr | None = Field(
        default=None, description="VITSEARCH_TOKEN: the token that these commands send to the service"
    )
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="VITSEARCH_WEBHOOK_HOSTS: hosts, separated by commas, that webhooks may be sent to, such as "
        "hooks.example or 10.0.0.5:8080; without a port, 80 and 443. Without access tokens, this machine is allowed",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="VITSEARCH_WEBHOOK_SECRET: the secret with which the requests of `submit --webhook` are signed, "
        "`whsec_` with 24 to 64 bytes in Base64 behind it",
    )
    tracking: bool = Field(default=True, description="VITSEARCH_TRACKING: `off` sends nothing to MLflow")

    max_studies: int | None = Field(
        default=None,
        ge=1,
        description="VITSEARCH_MAX_STUDIES: maximum number of submitted studies that run at a time on this machine, or "
        "on the cluster that RAY_ADDRESS names; if unset, one per GPU, at least one",
    )
    driver_nice: int = Field(
        default=10,
        ge=0,
        le=19,
        description="VITSEARCH_DRIVER_NICE: number added to the niceness of submitted studies, so that the service "
        "answers while they use all cores; 0 gives both the same share",
    )
    cluster_gpus: int | None = Field(
        default=None,
        ge=0,
        description="VITSEARCH_CLUSTER_GPUS: number of GPUs of the cluster that RAY_ADDRESS names, which submitted "
        "studies share; if unset, they are not counted",
    )

    def apply(self) -> None:
        """Use the saved formulas and the cache of these settings in this process and its child processes."""
        use_formulas(self.formula_folder)
        use_cache(self.cache_folder, self.cache_gib)

    def environment(self) -> dict[str, str]:
        """Environment variables that give a driver these settings. Addresses may contain passwords."""
        texts = {
            "tracking": "on" if self.tracking else "off",
            "artifact_root": place_text(self.artifact_root),
            "data_roots": os.pathsep.join(map(str, self.data_roots)),
            "server": None,  # a driver talks to the database only
            "token": None,
            "webhook_hosts": ",".join(self.webhook_hosts),
            "webhook_secret": None,  # stored with the submission
        }
        values = {name: texts.get(name, getattr(self, name)) for name in Settings.model_fields}
        return {f"VITSEARCH_{name.upper()}": str(value) for name, value in values.items() if value not in (None, "")}

    @property
    def formula_folder(self) -> Path:
        """Folder of formulas saved as proxies."""
        return self.home / "proxies"

    @property
    def login_folder(self) -> Path:
        """Folder of the users and keys of MLflow's authentication (`vitsearch ui --auth`)."""
        return self.home / "mlflow-auth"

    @property
    def local_root(self) -> Path:
        """Folder of artifacts that must be files: the artifact root, or one in the home for an object store."""
        return self.artifact_root if address_of(self.artifact_root) is None else self.home / "artifacts"

    @property
    def mlflow_root(self) -> Path:
        """Folder of MLflow's files, unless a tracking server keeps them."""
        return self.local_root / "mlflow"

    @field_validator("artifact_root", mode="before")
    @classmethod
    def _stands_for_address(cls, given: Any, info: ValidationInfo) -> Any:
        if isinstance(given, str) and "://" in given and "cache_folder" in info.data:
            return local_place(given, info.data["cache_folder"])
        return given

    @field_validator("home", "cache_folder", mode="before")
    @classmethod
    def _no_url(cls, given: Any) -> Any:
        if isinstance(given, str) and "://" in given:
            raise ValueError("must be a folder, mounted on every machine that uses it")
        return given

    @field_validator("data_roots", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return [part for part in given.split(os.pathsep) if part] if isinstance(given, str) else given

    @field_validator("webhook_hosts", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [part.strip().lower() for part in given.split(",") if part.strip()] if isinstance(given, str) else given

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if any("/" in host or "*" in host or "@" in host for host in hosts):
            raise ValueError("must be hosts such as hooks.example or 10.0.0.5:8080, without https:// and without *")
        return hosts

    @field_validator("data_roots")
    @classmethod
    def _absolute_roots(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in paths)

    @field_validator("server")
    @classmethod
    def _http(cls, given: str | None) -> str | None:
        return None if given is None else checked_address(given)

    @field_validator("home", "artifact_root", "cache_folder")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()


def load_settings(**given: Any) -> Settings:
    """Load the settings from the environment; keyword arguments (such as `home`) take precedence.

    Raises:
        SettingsError: A value is invalid; the message names the variable.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = name if name.isupper() else f"VITSEARCH_{name.upper()}"
        must = "must be on or off" if name == "tracking" else f"is invalid ({first['msg']})"
        if first["type"] == "value_error":
            must = str(first["ctx"]["error"])
        raise SettingsError(f"{variable}: {must}, but got {_shown(first['input'])}. Correct or unset it.") from None


def _shown(value: object) -> str:
    return repr(masked_address(value) if isinstance(value, str) and "://" in value else value)


def _below_home(data: dict[str, Any], name: str) -> Path:
    home: Path = data["home"]
    return home / name


def _sqlite_url(data: dict[str, Any], name: str) -> str:
    return f"sqlite:///{_below_home(data, name)}"
