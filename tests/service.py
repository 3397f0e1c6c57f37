"""The service in this process: an app on a copy of a released version's home, and clients of it."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import StarletteDeprecationWarning

from orchestrator.api.app import make_service
from orchestrator.client import Client
from orchestrator.service.access_tokens import create_token
from orchestrator.settings import Settings, load_settings
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Role

with warnings.catch_warnings():
    warnings.simplefilter("ignore", StarletteDeprecationWarning)
    from starlette.testclient import TestClient

GOLDEN = Path(__file__).parent / "golden" / "homes" / "0.1.0" / "home"
"""A home with the studies `finished` and `interrupted`."""


def golden_settings(folder: Path, **given: Any) -> Settings:
    """Settings of a copy of the released home."""
    return load_settings(home=Path(shutil.copytree(GOLDEN, folder / "home")), tracking=False, **given)


@contextmanager
def serving(settings: Settings, **given: Any) -> Iterator[TestClient]:
    """Requests to the app of a service, without a network."""
    app: FastAPI = make_service(settings, **given)
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def add_token(settings: Settings, owner: str, role: Role, *, days: float = 1) -> str:
    """A new access token."""
    store = Store.open(settings.database_url)
    try:
        return create_token(store, owner, role, days=days)[1]
    finally:
        store.close()


def client_for(requests: TestClient, token: str | None = None) -> Client:
    """Our client, whose requests reach the app directly."""
    return Client("http://testserver", token, http=requests)  # type: ignore[arg-type]
