"""The service keeps its OpenAPI document: what it answers to made-up requests of each role is as described."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from orchestrator.api import limits
from orchestrator.api.app import make_service
from orchestrator.store.service_records import Role
from tests.service import add_token, golden_settings

ROLES: tuple[Role, ...] = ("viewer", "submitter", "admin")
NUM_REQUESTS = 6
"""For each operation and role."""
NOTHING_TO_VIOLATE = (Unsatisfiable,)
"""An operation without parameters cannot be called in a wrong way."""
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, str]]]:
    """The OpenAPI document of a service, with its app, and a token of each role."""
    settings = golden_settings(Path(tmp_path_factory.mktemp("contract")))
    tokens = {role: add_token(settings, f"owner-{role}", role) for role in ROLES}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "BURST", 10**6)
        app = make_service(settings, needs_token=True)
        yield schemathesis.openapi.from_asgi("/openapi.json", app), tokens


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("role", ROLES)
def test_made_up_requests_are_answered_as_described(
    role: str, mode: GenerationMode, service: tuple[Any, dict[str, str]]
) -> None:
    document, tokens = service
    headers = {"Authorization": f"Bearer {tokens[role]}"}
    num_operations = 0
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):  # it does not end; tests of live events read it
            continue
        with suppress(*NOTHING_TO_VIOLATE if mode is GenerationMode.NEGATIVE else ()):
            check_operation(operation.as_strategy(generation_mode=mode), headers)
            num_operations += 1
    assert num_operations >= (20 if mode is GenerationMode.POSITIVE else 8)


def check_operation(cases: st.SearchStrategy[Any], headers: dict[str, str]) -> None:
    """Send made-up requests of one operation."""

    @hypothesis_settings(
        max_examples=NUM_REQUESTS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def send(case: Any) -> None:
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()
