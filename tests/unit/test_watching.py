"""`vitsearch watch` at a service that stops answering for a while, and what `status` and `watch` show from there."""

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from orchestrator.cli import service_studies
from orchestrator.cli.remote import summary_there
from orchestrator.cli.service_studies import watch_there
from orchestrator.client import Client, ServerUnavailableError


class Answers(httpx.BaseTransport):
    """Answers for `/submission` in this order, then the last one; an exception is a lost connection."""

    def __init__(self, *answers: dict[str, Any] | int | Exception) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self._last = answers[-1]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/log"):
            return httpx.Response(200, text="", headers={"Next-Offset": "0"})
        answer = next(self._answers, self._last)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, json={"type": "urn:vitsearch:x", "detail": f"status {answer}"})
        return httpx.Response(200, json=answer)


RUNNING = {"study": "digits", "state": "running", "reason": None}
FAILED = {"study": "digits", "state": "failed", "reason": "no images"}
LOST = httpx.ConnectError("connection refused")


def watched(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any] | int | Exception) -> None:
    monkeypatch.setattr(service_studies, "POLL_S", 0.0)
    monkeypatch.setattr(service_studies, "PAUSE_S", 0.0)
    with httpx.Client(transport=Answers(*answers)) as http:
        watch_there(Client("http://service.example", "token", http=http), "digits", as_json=False)


def test_a_service_that_restarts_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        watched(monkeypatch, RUNNING, LOST, LOST, 503, RUNNING, LOST, RUNNING, FAILED)
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told.count("does not affect the study") == 2, "once for each time that it is away"
    assert told.count("the service answers again") == 2
    assert "study 'digits' failed: no images" in told


def test_a_service_that_never_answered_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerUnavailableError, match="must answer"):
        watched(monkeypatch, LOST, RUNNING)


def test_a_service_that_does_not_return_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_studies, "PATIENCE_S", 0.05)
    with pytest.raises(ServerUnavailableError, match="must answer"):
        watched(monkeypatch, RUNNING, LOST)


def test_a_token_that_is_revoked_meanwhile_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="status 401"):
        watched(monkeypatch, RUNNING, 401)


def test_a_command_replaces_the_folder_of_a_champion_on_another_machine() -> None:
    found = {"study": "ann~digits", "champion": {"folder": "/srv/vitsearch/champion", "trial": 3}}
    with httpx.Client(transport=Answers(found)) as http:
        there = summary_there(Client("http://service.example", "token", http=http), "ann~digits")
        here = summary_there(Client("http://127.0.0.1:8000", http=http), "ann~digits")
    assert there["champion"] == {"trial": 3, "copied_by": "vitsearch download ann~digits"}
    assert here == found, "the service of this machine's user"
