"""Webhooks: a signed request when a study ends, sent again until it arrives, and only to allowed hosts."""

import base64
import hashlib
import hmac
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator.cli.background import work_off_queue
from orchestrator.service import supervisor, webhooks
from orchestrator.service.access_tokens import create_token
from orchestrator.service.submitting import cancel_study, find_submission, resume_study, submit_study
from orchestrator.service.webhooks import (
    MAX_TRIES,
    WebhookError,
    WebhookSender,
    check_receiver,
    pause_after,
    signature,
    webhook_target,
)
from orchestrator.settings import Settings, SettingsError, load_settings
from orchestrator.spec.study_file import StudySpec, make_spec
from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement, SubmissionRecord, WebhookRecord, WebhookTarget
from tests.service import TestClient, add_token, client_for, golden_settings, serving

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef" * 2).decode()
FILE = (
    "study: digits\ndata: {source: noise}\n"
    "stages: [{stage: screen, space: as-vit, num_trials: 2, proxies: [params], rank_by: [params]}]\n"
)


class Receiver:
    """A server that notes requests, and answers with statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.requests = list(statuses), list[tuple[dict[str, str], bytes]]()
        self.release = threading.Event()
        self.release.set()
        self.url = ""


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver = Receiver(*statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            receiver.release.wait(60)
            status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook?key=s3cr3t"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.release.set()
            server.shutdown()


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


@pytest.fixture
def settings() -> Settings:
    return load_settings()


def spec() -> StudySpec:
    stage = {"stage": "screen", "space": "as-vit", "num_trials": 2, "proxies": ["params"]}
    return make_spec({"study": "digits", "data": {"source": "noise"}, "stages": [stage]})


def submit(store: Store, url: str | None, **given: Any) -> SubmissionRecord:
    target = None if url is None else WebhookTarget(url=url, secret=SECRET)
    return submit_study(store, spec(), "study: digits\n", webhook=target, **given)


def run_to(store: Store, state: str, reason: str | None = None) -> SubmissionRecord:
    claimed = store.queue().claim("r", "box", lambda *_: Placement({}))
    assert claimed is not None
    return store.queue().end(claimed.uid, claimed.lease, state, reason)


def send(sender: WebhookSender) -> None:
    while threads := sender.start_due():
        for thread in threads:
            thread.join(60)


def only(store: Store, uid: str) -> WebhookRecord:
    (found,) = store.webhooks().of_submission(uid)
    return found


def test_the_end_of_a_study_is_sent_until_it_arrives_and_signed(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "pause_after", lambda _: 0.0)
    sender = WebhookSender(store, settings)
    with receiving(500, 307, 200) as receiver:
        submitted = submit(store, receiver.url)
        send(sender)
        assert receiver.requests == []  # it has not ended
        ended = run_to(store, "failed", "no images")
        send(sender)  # all three tries, since there is no pause
        assert [len(receiver.requests), only(store, submitted.uid).state] == [3, "delivered"]
    headers, body = receiver.requests[-1]
    assert {one["webhook-id"] for one, _ in receiver.requests} == {only(store, submitted.uid).uid}
    message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"0123456789abcdef" * 2, message, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert _documented_check()(headers, body, SECRET)
    assert not _documented_check()(headers, body + b" ", SECRET)
    told = json.loads(body)
    assert told["type"] == "study.ended"
    assert (
        told["data"]
        | {
            "uid": submitted.uid,
            "study": "digits",
            "state": "failed",
            "reason": "no images",
            "ended_at": ended.ended_at,
            "best": None,
        }
        == told["data"]
    )
    record = only(store, submitted.uid)
    assert (record.num_tries, record.target, record.error) == (3, None, None)
    event = store.audit_log().page(limit=1)[0]
    assert (event.action, event.subject, event.outcome, event.details["tries"]) == ("webhook", "digits", "done", 3)
    assert event.details["address"] == receiver.url.split("/hook")[0] + "/***"


def test_a_signature_is_that_of_standard_webhooks() -> None:
    # Example in the specification's libraries: identifier, time, content and secret with their signature.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    sent = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert sent == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_study_has_one_message_for_each_end_and_none_without_a_webhook(store: Store) -> None:
    first = submit(store, "http://localhost:1/")
    cancel_study(store, "digits")
    cancel_study(store, "digits")
    assert only(store, first.uid).content["state"] == "cancelled"
    resume_study(store, first.uid)
    run_to(store, "waiting", "its driver was stopped")
    assert len(store.webhooks().of_submission(first.uid)) == 1
    run_to(store, "complete")
    assert [one.content["state"] for one in store.webhooks().of_submission(first.uid)] == ["complete", "cancelled"]
    again = submit(store, None)
    assert store.queue().webhook_of(again.uid) == WebhookTarget(url="http://localhost:1/", secret=SECRET)
    store.queue().forget("digits")
    other = submit(store, None)
    run_to(store, "complete")
    assert store.webhooks().of_submission(other.uid) == []
    assert store.webhooks().num_due(within_s=0) == 2, "deleting a study loses no message"


def test_a_request_that_never_arrives_is_given_up_after_about_a_day(store: Store, settings: Settings) -> None:
    pauses = [pause_after(number) for number in range(1, MAX_TRIES)]
    assert pauses[:3] == [5, 10, 20]
    assert 18 * 3600 < sum(pauses) < 30 * 3600
    submitted = submit(store, "http://127.0.0.1:1/")  # nobody listens
    run_to(store, "complete")
    table = store.webhooks()
    claimed = table.claim()
    assert claimed is not None
    assert table.claim() is None, "another sender has it"
    sender = WebhookSender(store, settings)
    sender.send(claimed)
    waiting = only(store, submitted.uid)
    assert (waiting.state, waiting.num_tries) == ("waiting", 1)
    assert "could not be sent" in (waiting.error or "")
    assert (table.num_due(within_s=0), table.num_due(within_s=30)) == (0, 1)
    sender.send(claimed.model_copy(update={"num_tries": MAX_TRIES}))
    assert (only(store, submitted.uid).state, only(store, submitted.uid).target) == ("failed", None)


def test_a_receiver_that_is_gone_gets_no_more_requests(store: Store, settings: Settings) -> None:
    with receiving(410) as receiver:
        submitted = submit(store, receiver.url)
        run_to(store, "complete")
        send(WebhookSender(store, settings))
    assert only(store, submitted.uid).state == "failed"


def test_a_slow_receiver_holds_up_neither_studies_nor_others(store: Store, settings: Settings) -> None:
    sender = WebhookSender(store, settings)
    with receiving(200) as slow, receiving(200) as quick:
        slow.release.clear()
        submit(store, slow.url)
        run_to(store, "complete")
        waiting = sender.start_due()
        submit(store, quick.url)
        run_to(store, "complete")
        send(sender)
        assert len(quick.requests) == 1
        assert waiting[0].is_alive()
        slow.release.set()
        waiting[0].join(60)
    assert store.webhooks().num_due(within_s=1e6) == 0


def test_a_receiver_that_answers_byte_by_byte_does_not_keep_its_sender(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "DEADLINE_S", 0.5)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            while not over.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,), daemon=True)
        thread.start()
        submitted = submit(store, f"http://127.0.0.1:{server.getsockname()[1]}/")
        run_to(store, "complete")
        (sending,) = WebhookSender(store, settings).start_due()
        sending.join(60)
        assert not sending.is_alive()
        over.set()
        thread.join(60)
    record = only(store, submitted.uid)
    assert (record.state, record.num_tries) == ("waiting", 1)
    assert "no whole answer in 0.5 s" in (record.error or "")


def test_a_host_gets_one_request_at_a_time(store: Store, settings: Settings) -> None:
    sender = WebhookSender(store, settings)
    with receiving(200) as slow, receiving(200) as quick:
        slow.release.clear()
        for _ in range(6):
            submit(store, slow.url)
            run_to(store, "complete")
        submit(store, quick.url)
        run_to(store, "complete")
        started = sender.start_due()
        assert len(started) == 2
        assert sender.start_due() == []
        slow.release.set()
        for thread in started:
            thread.join(60)
        assert (len(slow.requests), len(quick.requests)) == (1, 1)
        send(sender)
        assert len(slow.requests) == 6


def test_a_request_that_meets_an_unexpected_error_is_put_off_and_then_given_up(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(webhooks, "study_line", fail)
    monkeypatch.setattr(webhooks, "MAX_TRIES", 2)
    sender, table = WebhookSender(store, settings), store.webhooks()
    submitted = submit(store, "http://127.0.0.1:1/")
    run_to(store, "complete")
    store.create_study("digits", spec={}, digest="d", data_digest="e", stage_names=[])
    send(sender)
    record = only(store, submitted.uid)
    assert (record.state, record.num_tries, table.num_due(within_s=0)) == ("waiting", 1, 0)
    assert "RuntimeError" in (record.error or "")
    table.put_off(record.uid, "", 0)
    send(sender)
    assert (only(store, submitted.uid).state, only(store, submitted.uid).num_tries) == ("failed", 2)


def test_a_claimed_request_whose_sender_died_is_sent_by_another(store: Store, settings: Settings) -> None:
    with receiving(200) as receiver:
        submitted = submit(store, receiver.url)
        run_to(store, "complete")
        assert store.webhooks().claim(claim_s=-1) is not None
        send(WebhookSender(store, settings))
        assert len(receiver.requests) == 1
    assert (only(store, submitted.uid).state, only(store, submitted.uid).num_tries) == ("delivered", 2)


@pytest.mark.parametrize(
    ("url", "single", "team"),
    [
        ("http://127.0.0.1:9000/x", True, False),
        ("http://localhost/x", True, False),
        ("http://[::1]:9/", True, False),
        ("https://hooks.example/a?b=c", True, True),
        ("http://HOOKS.example/", True, True),
        ("https://hooks.example:8443/", False, False),
        ("http://10.0.0.5:8080/", True, True),
        ("http://10.0.0.5/", False, False),
        ("http://169.254.169.254/latest/meta-data", False, False),
        ("http://127.1/", False, False),
        ("http://2130706433/", False, False),
        ("http://localhost.evil.example/", False, False),
        ("https://evil.example#@hooks.example/", False, False),
        ("https://evil.example/@hooks.example", False, False),
        ("https://hooks.example@evil.example/", False, False),
        ("https://user:password@hooks.example/", False, False),
        ("https://hooks.example\\@evil.example/", False, False),
        ("file:///etc/passwd", False, False),
        ("ftp://hooks.example/", False, False),
        ("https:///x", False, False),
        ("https://hooks.example/\r\nX: y", False, False),
        ("https://hooks.example/" + "a" * 2000, False, False),
        ("hooks.example", False, False),
    ],
)
def test_requests_go_to_allowed_hosts_only(url: str, *, single: bool, team: bool) -> None:
    settings = load_settings(webhook_hosts="hooks.example, 10.0.0.5:8080")
    for only_listed, is_allowed in ((False, single), (True, team)):
        with nullcontext() if is_allowed else pytest.raises(WebhookError) as refused:
            check_receiver(url, settings, only_listed=only_listed)
        assert "password@" not in str(refused)


def test_a_host_that_is_forbidden_later_gets_nothing(store: Store, settings: Settings) -> None:
    with receiving(200) as receiver:
        submitted = submit(store, receiver.url)
        create_token(store, "ann", "submitter", days=1)  # now it serves several people
        run_to(store, "complete")
        send(WebhookSender(store, settings))
        assert receiver.requests == []
    assert only(store, submitted.uid).state == "failed"
    assert "VITSEARCH_WEBHOOK_HOSTS" in (only(store, submitted.uid).error or "")


def test_a_webhook_needs_a_good_secret(store: Store, settings: Settings) -> None:
    url = "http://localhost:1/"
    assert webhook_target(None, "x", settings, store) is None
    assert webhook_target(url, SECRET, settings, store) == WebhookTarget(url=url, secret=SECRET)
    for wrong in (
        None,
        "short",
        SECRET.removeprefix("whsec_"),
        "whsec_not base64 at all",
        "whsec_c2hvcnQ=",
        SECRET + "x" * 3,
    ):
        with pytest.raises(WebhookError, match="secret") as refused:
            webhook_target(url, wrong, settings, store)
        assert wrong is None or wrong not in str(refused.value)
    for wrong in ("https://hooks.example", "*.example"):
        with pytest.raises(SettingsError, match="VITSEARCH_WEBHOOK_HOSTS"):
            load_settings(webhook_hosts=wrong)


def test_the_service_takes_a_webhook_and_shows_whether_it_arrived(tmp_path: Any) -> None:
    settings = golden_settings(tmp_path, webhook_hosts="127.0.0.1:9")
    token = add_token(settings, "ann", "submitter")
    file = tmp_path / "digits.yaml"
    file.write_text(FILE, encoding="utf-8")
    with serving(settings, needs_token=True) as requests:
        client = client_for(requests, token)
        refused = _post(requests, token, {"Webhook-URL": "http://169.254.169.254/", "Webhook-Secret": SECRET})
        assert (refused.status_code, "VITSEARCH_WEBHOOK_HOSTS" in refused.json()["detail"]) == (422, True)
        found = client.submit(file, webhook="http://127.0.0.1:9/hook?key=s3cr3t", webhook_secret=SECRET)
        assert found["webhook"] | {"address": "http://127.0.0.1:9/***", "state": None} == found["webhook"]
        client.cancel("digits")
        assert client.submission("digits")["webhook"]["state"] == "waiting"
        assert SECRET not in requests.get("/v1/studies/digits/submission", headers=_bearer(token)).text
        store = Store.open(settings.database_url)
        assert find_submission(store, "ann~digits").state == "cancelled"
        send(WebhookSender(store, settings))
        store.close()
        after = client.submission("digits")["webhook"]
        assert (after["state"], after["num_tries"]) == ("waiting", 1)
        assert "could not be sent" in after["error"]


def test_nobody_is_shown_the_secret_or_the_path_of_a_webhook(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = golden_settings(tmp_path, webhook_hosts="127.0.0.1:9")
    token = add_token(settings, "boss", "admin")
    url, name = "http://127.0.0.1:9/a-private-place?key=s3cr3t", "boss~digits"
    with serving(settings, needs_token=True) as requests:
        shown = [_post(requests, token, {"Webhook-URL": url, "Webhook-Secret": SECRET})]
        assert shown[0].status_code == 201
        shown.append(_post(requests, token, {"Webhook-URL": url, "Webhook-Secret": SECRET}))  # it is active
        shown.append(_post(requests, token, {"Webhook-URL": "x:" + url, "Webhook-Secret": SECRET[:-8]}))
        assert {answer.status_code for answer in shown[1:]} == {409, 422}
        paths = requests.get("/openapi.json").json()["paths"]
        read = [path.replace("{name}", name) for path, operations in paths.items() if "get" in operations]
        read += ["/", f"/studies/{name}", "/openapi.json"]
        endless = f"/v1/studies/{name}/events"
        shown += [requests.get(path, headers=_bearer(token)) for path in read if path != endless]
        assert sum(answer.status_code == 200 for answer in shown) > 10
        store = Store.open(settings.database_url)
        monkeypatch.setattr(webhooks, "MAX_TRIES", 1)
        cancel_study(store, name)
        send(WebhookSender(store, settings))  # nothing listens there
        assert "was given up" in caplog.text
        shown += [requests.get(path, headers=_bearer(token)) for path in read]
        target = store.queue().webhook_of(find_submission(store, name).uid)
        assert target == WebhookTarget(url=url, secret=SECRET)
        with store._engine.begin() as connection, pytest.raises(DBAPIError) as raised:
            connection.execute(text("SELECT :secret FROM nothing"), {"secret": SECRET})
        with store._engine.begin() as connection, pytest.raises(DBAPIError) as also:
            Prepared(text("SELECT :secret FROM nothing").columns()).first(connection, secret=SECRET)  # type: ignore[arg-type]
        store.close()
    told = "".join(answer.text for answer in shown) + caplog.text + f"{target!r} {target}{raised.value}{also.value}"
    for hidden in (SECRET, SECRET.removeprefix("whsec_")[:20], "s3cr3t", "a-private-place"):
        assert hidden not in told


def test_the_background_queue_announces_the_end_before_it_ends(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(home=tmp_path, tracking=False)
    monkeypatch.setattr(webhooks, "pause_after", lambda _: 0.0)
    monkeypatch.setattr(supervisor, "POLL_S", 0.05)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    with receiving(503, 200) as receiver:
        submit(store, receiver.url)
        cancel_study(store, "digits")
        work_off_queue(settings)
        assert len(receiver.requests) == 2
    store.close()


def test_the_secret_reaches_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_WEBHOOK_SECRET", SECRET)
    assert SECRET not in str(load_settings(webhook_hosts="a,b:1").environment())
    assert load_settings(webhook_hosts="a,b:1").environment()["VITSEARCH_WEBHOOK_HOSTS"] == "a,b:1"
    assert SECRET not in repr(load_settings())


def _documented_check() -> Any:
    """The function for receivers in our docs."""
    page = (Path(__file__).parents[2] / "docs" / "submit.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["is_genuine"]


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _post(requests: TestClient, token: str, headers: dict[str, str]) -> Any:
    given = {**_bearer(token), "Content-Type": "application/yaml", **headers}
    return requests.post("/v1/studies", content=FILE, headers=given)
