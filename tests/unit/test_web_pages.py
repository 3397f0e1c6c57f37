"""MLflow's page with the script that lets experiments open on our views."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.tracking.events import ShareView
from orchestrator.tracking.pages import ALL_VIEW, TRIALS_VIEW, VIEW_TAG, saved_view, view_state
from orchestrator.tracking.web_pages import FirstViews, Message, first_view, script_element

PAGE = b"<!doctype html><html><head><title>MLflow</title></head></html>"
VIEW = ShareView(experiment="digits", name="trials", columns=("metrics.rank",), order_by="metrics.rank", title="Trials")
HEADERS = [(b"content-type", b"text/html"), (b"content-length", b"62"), (b"etag", b"x")]


class Answers:
    """An app that answers every request with the page, and keeps the headers of the latest."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.headers = scope["headers"]
        await send({"type": "http.response.start", "status": self.status, "headers": HEADERS})
        await send({"type": "http.response.body", "body": PAGE[:20], "more_body": True})
        await send({"type": "http.response.body", "body": PAGE[20:]})


def get(app: Answers, path: str, views: Mapping[str, Any] | None = None) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body of the answer to a request."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"if-none-match", b"x"), (b"host", b"h")]}
    asyncio.run(FirstViews(app, lambda: views or {})(scope, receive, send))
    return dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


def test_the_page_begins_with_the_script_and_is_not_kept_by_the_browser() -> None:
    app = Answers()
    headers, body = get(app, "/", {"1": {"orderByAsc": True}})
    assert body.startswith(b"<!doctype html><html><head><script>")
    assert body.endswith(b"<title>MLflow</title></head></html>")
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"cache-control"] == b"no-store"
    assert b"etag" not in headers
    assert app.headers == [(b"host", b"h")]


@pytest.mark.parametrize(("path", "status"), [("/api/2.0/mlflow/runs/search", 200), ("/", 403)])
def test_other_answers_are_unchanged(path: str, status: int) -> None:
    _, body = get(Answers(status), path)
    assert body == PAGE


def test_an_experiment_opens_on_its_trials_otherwise_on_all_runs() -> None:
    trials, everything = saved_view(VIEW), saved_view(VIEW.model_copy(update={"columns": ("tags.x",)}))
    both = {f"{VIEW_TAG}{TRIALS_VIEW}": trials, f"{VIEW_TAG}{ALL_VIEW}": everything}
    assert first_view(both) == view_state(VIEW)
    del both[f"{VIEW_TAG}{TRIALS_VIEW}"]
    assert (first_view(both) or {})["selectedColumns"] == ["tags.`x`"]
    assert first_view({f"{VIEW_TAG}{TRIALS_VIEW}": "{"}) is None


def test_a_name_cannot_end_the_script() -> None:
    element = script_element({"1": {"searchFilter": "</script><script>alert(1)"}})
    assert element.count("</script>") == 1
    data = re.search(r"apply\(null, (.*)\);</script>$", element)
    assert data is not None
    assert json.loads(data.group(1))[0]["1"]["searchFilter"] == "</script><script>alert(1)"
