"""Errors of requests that do not reach MLflow are told with their cause alone."""

import pytest

from orchestrator.tracking.mlflow_client import short_cause

_REQUEST = (
    "API request to http://m:1/api failed with exception HTTPConnectionPool(host='m', port=1): Max retries exceeded "
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            _REQUEST + "with url: /api (Caused by NewConnectionError(\"HTTPConnection(host='m', port=1): Failed to "
            'establish a new connection: [Errno 111] Connection refused"))',
            "no answer (Connection refused)",
        ),
        (
            _REQUEST + "with url: /api (Caused by NameResolutionError(\"HTTPConnection(host='m', port=1): Failed to "
            "resolve 'm' ([Errno -2] Name or service not known)\"))",
            "no answer (Name or service not known)",
        ),
        (
            _REQUEST + "with url: /api (Caused by ReadTimeoutError(\"HTTPConnectionPool(host='m', port=1): Read timed "
            'out. (read timeout=5)"))',
            "no answer (Read timed out)",
        ),
        (
            _REQUEST + "with url: /api (Caused by ResponseError('too many 503 error responses'))",
            "no answer (too many 503 error responses)",
        ),
        (_REQUEST + "with url: /api (Caused by another error)", "no answer"),
        ("RESOURCE_DOES_NOT_EXIST: no run 7", "RESOURCE_DOES_NOT_EXIST: no run 7"),
    ],
)
def test_the_cause_of_a_request_that_does_not_reach_mlflow_is_short(line: str, shown: str) -> None:
    assert short_cause(line) == shown
