"""Files of MLflow's own authentication: its settings, users and keys, in a folder that only this user can read."""

import io
import os
import secrets
from configparser import Error as ConfigError
from configparser import RawConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PASSWORD_VARIABLE = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable
ADMIN = "admin"
APP_NAME = "basic-auth"
"""MLflow's app with authentication."""
USERS = "users.db"
"""The database of users, in the folder of a login."""
INSTALL = "pip install 'mlflow[auth]'"
_NEEDED = "flask_wtf"
_CONFIG = f"""\
[mlflow]
default_permission = READ
admin_username = {ADMIN}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
"""Without the cache, every request costs a second for the hash of its password. Our server has one process, in which
a changed password takes effect at once."""


class LoginError(ValueError):
    """MLflow's authentication cannot be used."""


class Login(NamedTuple):
    """What MLflow's server needs to ask for a user name and a password."""

    environment: dict[str, str]
    password: str | None
    """A new password of the administrator, if none was given for the first start."""


def prepare_login(folder: Path) -> Login:
    """Create or find the files of MLflow's authentication.

    Args:
        folder: Their folder; it is created if necessary.

    Raises:
        LoginError: A package is missing, or the folder cannot be written to.
    """
    if find_spec(_NEEDED) is None:
        raise LoginError(f"--auth needs MLflow's packages for authentication, but they are missing. Run: {INSTALL}")
    config, users, key = folder / "auth.ini", folder / USERS, folder / "key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        _write_private(config, _config(config, users))
        if not key.exists():
            _write_private(key, secrets.token_hex(32))
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(config.absolute()),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(encoding="utf-8"),
        }
    except OSError as error:
        raise LoginError(
            f"--auth: {folder} must be a folder for users and keys that can be written, but: {error.strerror}. Correct "
            "its permissions."
        ) from error
    except ConfigError as error:
        raise LoginError(f"--auth: {config} must hold MLflow's settings, but: {error}. Remove it.") from error
    password = None
    if not users.exists() and not os.environ.get(PASSWORD_VARIABLE):
        password = environment[PASSWORD_VARIABLE] = secrets.token_urlsafe(15)
    return Login(environment, password)


def _config(file: Path, users: Path) -> str:
    """MLflow's settings with what was changed in the file, and the users' present place, as the home may have moved."""
    settings = RawConfigParser()
    settings.read_string(_CONFIG)
    settings.read(file, encoding="utf-8")
    address = f"sqlite:///{users.absolute()}"
    settings["mlflow"]["database_uri"] = address.replace("%", "%%")  # MLflow interpolates
    text = io.StringIO()
    settings.write(text)
    return text.getvalue()


def _write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read; it is complete, or does not exist."""
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    part.rename(file)
