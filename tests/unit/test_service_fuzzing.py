"""No request makes the service fail: every one is answered, or refused with a reason."""

import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestrator.api import limits
from orchestrator.api.errors import PROBLEM_TYPE
from orchestrator.settings import Settings
from orchestrator.store.service_records import Role
from tests.service import TestClient, add_token, golden_settings, serving

HOSTILE = [
    "",
    "\x00",
    "..",
    "../../etc/passwd",
    "%2e%2e%2f",
    "-1",
    "0",
    "9" * 400,
    "1e400",
    "nan",
    "true",
    "null",
    "a" * 5000,
    "\r\nSet-Cookie: x=y",
    "'; DROP TABLE studies; --",
    "<script>",
    "𝕏\u202e\ud7ff",
    "finished",
    "interrupted",
    "train",
]
BODIES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"{" * 5000,
    b"[1]",
    b'{"study": 1}',
    b"a: !!python/object:os.system x",
    b"&a [*a]",
]
ROLES: tuple[Role, ...] = ("viewer", "submitter", "admin")
MAX_TRIES = 4
"""Random combinations of values for each operation and role."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return golden_settings(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def requests(settings: Settings) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "BURST", 10**6)
        with serving(settings, needs_token=True) as requests:
            yield requests


@pytest.fixture(scope="module")
def tokens(settings: Settings) -> dict[str, dict[str, str]]:
    """Headers with a token of each role."""
    return {role: {"Authorization": f"Bearer {add_token(settings, role, role)}"} for role in ROLES}


def assert_answered(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    assert "set-cookie" not in answer.headers
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == PROBLEM_TYPE
        assert answer.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_hostile_values_of_all_parameters_are_answered_or_refused(
    role: str, requests: TestClient, tokens: dict[str, dict[str, str]]
) -> None:
    rng = random.Random(0)
    for path, operations in requests.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            names = [(one["in"], one["name"]) for one in operation.get("parameters", ())]
            for _ in range(MAX_TRIES if names else 1):
                values = {name: rng.choice(HOSTILE) for _, name in names}
                address = path
                for name in (name for where, name in names if where == "path"):
                    address = address.replace(f"{{{name}}}", quote(values[name], safe=""))
                query = {name: values[name] for where, name in names if where == "query" and rng.random() < 0.5}
                given_headers = {
                    name: quote(values[name]) for where, name in names if where == "header" and rng.random() < 0.5
                }
                body = rng.choice(BODIES) if "requestBody" in operation else None
                kind = rng.choice(["application/yaml", "application/json", "text/html"])
                answer = requests.request(
                    method,
                    address,
                    params=query,
                    content=body,
                    headers={**tokens[role], **given_headers, "Content-Type": kind},
                )
                assert_answered(answer)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(text=st.text(max_size=200))
def test_any_text_is_a_study_or_has_a_reason_why_not(
    text: str, requests: TestClient, tokens: dict[str, dict[str, str]]
) -> None:
    answer = requests.post(
        "/v1/validate",
        content=text.encode("utf-8", "surrogatepass"),
        headers={**tokens["viewer"], "Content-Type": "application/yaml"},
    )
    assert answer.status_code == 422
    assert_answered(answer)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(HOSTILE[:10]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = {"study": "x", "seed": 0, "data": {"source": "digits"}, "stages": [{"stage": "screen", "num_trials": 4}]}


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(key=st.sampled_from([*KEYS, "engine", "metric", "budget", "resources", "pool", "other"]), value=VALUES)
def test_any_value_of_a_field_is_checked(
    key: str, value: Any, requests: TestClient, tokens: dict[str, dict[str, str]]
) -> None:
    answer = requests.post(
        "/v1/validate",
        content=str({**KEYS, key: value}).encode("utf-8", "surrogatepass"),
        headers={**tokens["viewer"], "Content-Type": "application/yaml"},
    )
    assert_answered(answer)
