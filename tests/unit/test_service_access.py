"""Submitting over HTTP: who may do what, tokens, browser sessions, and what must be refused."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import sessions
from orchestrator.api.auth import COOKIE, Caller
from orchestrator.api.home import Home, VisibleStudies
from orchestrator.api.live import Cursor, StudyFollower
from orchestrator.api.routes import submitting
from orchestrator.api.server import check_service, keep_running, open_port
from orchestrator.client import Client, RequestRefusedError
from orchestrator.service.access_tokens import create_token, has_tokens, revoke_token
from orchestrator.service.submitting import log_file
from orchestrator.settings import Settings, SettingsError, load_settings
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Placement, SubmissionRecord
from orchestrator.store.study_names import home_owner
from orchestrator.study.lock import hold_study
from tests.service import TestClient, add_token, client_for, serving

STUDY = "study: {name}\ndata: {{source: digits}}\nstages: [{{stage: screen, num_trials: {trials}}}]\n"


class Service:
    """A service with tokens, and a client for each of its people."""

    def __init__(self, settings: Settings, folder: Path, requests: TestClient) -> None:
        self.settings, self.folder, self.requests = settings, folder, requests
        self.store = Store.open(settings.database_url, artifact_root=settings.artifact_root)

    def client(self, owner: str, role: Any = "submitter") -> Client:
        return client_for(self.requests, add_token(self.settings, owner, role))

    def page(self, client: Client, path: str) -> str:
        return self.requests.get(path, headers=client._headers).text

    def file(self, name: str, *, trials: int = 4) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(STUDY.format(name=name, trials=trials), encoding="utf-8")
        return path

    def audited(self) -> list[tuple[str, str, str, str]]:
        return [(one.actor, one.action, one.subject, one.outcome) for one in reversed(self.store.audit_log().page())]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = load_settings(home=tmp_path / "home", tracking=False)
    settings.home.mkdir()
    Store.open(settings.database_url).close()
    with serving(settings, needs_token=True) as requests:
        service = Service(settings, tmp_path, requests)
        yield service
        service.store.close()


def begin(service: Service, name: str) -> None:
    """Write the study of a submission, as its driver does."""
    service.store.create_study(
        name, spec={"seed": 0, "stages": [{}]}, digest="a", data_digest="b", stage_names=[("screen", "screen")]
    )


# --- submitting ---


def test_a_submitted_study_waits_with_a_reason_and_is_listed(service: Service) -> None:
    ann = service.client("ann")
    sent = ann.submit(service.file("digits"), priority=3)
    assert (sent["study"], sent["owner"], sent["state"], sent["priority"]) == ("ann~digits", "ann", "waiting", 3)
    assert "waits for its turn" in sent["reason"]
    assert ann.submission("digits") == ann.submission("ann~digits") == sent
    (line,) = ann.studies()
    assert (line["study"], line["state"], line["progress"]) == ("ann~digits", "waiting", 0.0)
    assert (line["stage"], line["reason"]) == ("screen", sent["reason"])
    view = ann.study("digits")
    assert [(stage["name"], stage["state"]) for stage in view["stages"]] == [("screen", "waiting")]
    assert list(ann.studies(state="waiting")) == [line]
    assert list(ann.studies(state="running")) == []
    assert service.audited() == [("ann", "submit", "ann~digits", "done")]


def test_a_request_repeated_with_its_key_submits_once(service: Service) -> None:
    ann = service.client("ann")
    first = ann.submit(service.file("digits"), key="k1")
    assert ann.submit(service.file("digits"), key="k1") == first
    with pytest.raises(RequestRefusedError) as again:
        ann.submit(service.file("digits", trials=9), key="k1")
    assert (again.value.status, again.value.problem["type"]) == (409, "urn:vitsearch:idempotency")
    with pytest.raises(RequestRefusedError, match="must not be submitted twice at a time"):
        ann.submit(service.file("digits"))


def begun_driver(service: Service, client: Client) -> SubmissionRecord:
    """A submitted study whose driver has begun."""
    uid = client.submit(service.file("digits"))["uid"]
    queue = service.store.queue()
    claimed = queue.claim("r", "here", lambda *_: Placement({}))
    assert claimed is not None
    return queue.begin(uid, claimed.lease, host="here", pid=1)


def test_a_study_that_failed_before_it_began_is_listed_with_its_reason(service: Service) -> None:
    ann = service.client("ann")
    claimed = begun_driver(service, ann)
    assert [one["reason"] for one in ann.studies()] == ["waits for its process to start"]
    service.store.queue().end(claimed.uid, claimed.lease, "failed", "data.source must be a folder")
    assert [(one["state"], one["reason"]) for one in ann.studies()] == [("failed", "data.source must be a folder")]
    assert ann.study("digits")["state"] == "failed"


def test_a_cancelled_study_is_resumed_when_it_has_stopped(service: Service) -> None:
    ann = service.client("ann")
    claimed = begun_driver(service, ann)
    assert ann.cancel("digits")["cancel_requested"]
    with pytest.raises(RequestRefusedError, match="must have stopped before it is resumed"):
        ann.resume("digits")
    service.store.queue().end(claimed.uid, claimed.lease, "interrupted", "it was cancelled")
    assert ann.resume("digits")["state"] == "waiting"


def test_a_shared_study_is_suggested_by_the_name_that_works(service: Service) -> None:
    ann, eve = service.client("ann"), service.client("eve")
    ann.submit(service.file("digits"), shared=True)
    begin(service, "ann~digits")
    with pytest.raises(RequestRefusedError, match=r"Did you mean 'ann~digits'\?"):
        eve.study("digits")
    with pytest.raises(RequestRefusedError, match=r"Did you mean 'digits'\?"):
        ann.study("digit")


def test_without_scripts_pages_name_the_command_instead_of_dead_buttons(service: Service) -> None:
    ann = service.client("ann")
    assert "<code>vitsearch submit FILE</code></p>" in service.page(ann, "/")
    assert '<form id="study-form" class="needs-script">' in service.page(ann, "/")
    ann.submit(service.file("digits"))
    assert "<code>vitsearch cancel ann~digits</code></p>" in service.page(ann, "/studies/digits")
    ann.cancel("digits")
    assert "<code>vitsearch resume ann~digits</code></p>" in service.page(ann, "/studies/digits")
    assert service.requests.get("/static/style.css").text.count(".script .without-script { display: none; }") == 1
    assert 'classList.add("script")' in service.requests.get("/static/app.js").text


def test_a_wrong_file_is_not_submitted(service: Service) -> None:
    file = service.file("digits")
    file.write_text(file.read_text(encoding="utf-8").replace("num_trials", "trials"), encoding="utf-8")
    with pytest.raises(RequestRefusedError, match=r"digits\.yaml:3: stages\[0\]\.trials: must be one of the keys"):
        service.client("ann").submit(file)
    assert list(service.client("ann").studies()) == []


def test_a_service_with_tokens_reads_no_data_outside_its_roots(service: Service) -> None:
    ann = service.client("ann")
    file = service.folder / "etc.yaml"
    file.write_text(STUDY.format(name="etc", trials=4).replace("digits", "/etc"), encoding="utf-8")
    with pytest.raises(RequestRefusedError, match=r"must be inside a data folder of this server \(none\)"):
        ann.submit(file)


def test_waiting_studies_and_others_are_listed_in_pages_without_a_gap(service: Service) -> None:
    ann = service.client("ann")
    for name in ("one", "two", "three"):
        ann.submit(service.file(name))
    ann.cancel("one")
    begin(service, "ann~one")
    begin(service, "ann~zero")
    for limit in (1, 2, 3, 4):
        found, after = [], {}
        while True:
            sent = service.requests.get("/v1/studies", params={"limit": limit, **after}, headers=ann._headers).json()
            found.append([one["study"] for one in sent["studies"]])
            if sent["next"] is None:
                break
            after = {"after": sent["next"]}
        assert [name for page in found for name in page] == ["ann~three", "ann~two", "ann~zero", "ann~one"], limit
        assert all(len(one) <= limit for one in found)


def test_cancelling_resuming_and_sharing(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    assert ann.cancel("digits")["state"] == "cancelled"
    assert ann.study("digits")["state"] == "cancelled"
    assert [(one["study"], one["reason"]) for one in ann.studies(state="cancelled")] == [("ann~digits", None)]
    assert list(ann.studies(state="interrupted")) == []
    assert list(ann.studies(state="waiting")) == []
    assert ann.resume("digits")["state"] == "waiting"
    assert ann.share("digits")["shared"]
    assert [one[1] for one in service.audited()] == ["submit", "cancel", "resume", "share"]


def test_a_study_grows_to_a_file_of_its_name(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    ann.cancel("digits")
    begin(service, "ann~digits")
    with pytest.raises(RequestRefusedError, match="must be that of the study to extend, 'ann~digits', but got 'other'"):
        ann.extend("digits", service.file("other"))
    with pytest.raises(RequestRefusedError, match="created by another version") as refused:
        ann.extend("digits", service.file("digits", trials=9))
    assert refused.value.status == 409


def test_a_study_that_never_began_is_extended_or_active(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"), shared=True)
    with pytest.raises(RequestRefusedError, match="it is waiting already"):
        ann.extend("digits", service.file("digits", trials=9))
    ann.cancel("digits")
    sent = ann.extend("digits", service.file("digits", trials=9))
    assert (sent["state"], sent["shared"]) == ("waiting", True)
    with pytest.raises(RequestRefusedError, match="there is no study 'other'"):
        ann.extend("other", service.file("other"))


def test_a_character_at_the_end_of_a_part_of_the_log_is_not_cut(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    path = log_file(service.settings, service.store.queue().find_latest("ann~digits"))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    path.write_bytes("a → b".encode())
    monkeypatch.setattr(submitting, "MAX_LOG_BYTES", 4)
    assert ann.log("digits") == ("a ", 2)
    assert ann.log("digits", offset=2) == ("→ ", 6)
    path.write_bytes(b"a\xff\xe2")
    assert ann.log("digits") == ("a\ufffd", 2)


def test_a_study_whose_driver_starts_is_not_deleted_and_no_success_is_told(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    ann.cancel("digits")
    ann.submit(service.file("digits"))
    assert service.store.queue().claim("r", "here", lambda *_: Placement({})) is not None
    with pytest.raises(RequestRefusedError, match="another process is running it") as refused:
        ann.delete("digits")
    assert refused.value.status == 409
    assert len(service.store.queue().page()) == 2


def test_the_log_is_read_in_parts(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    assert ann.log("digits") == ("", 0)
    path = log_file(service.settings, service.store.queue().find_latest("ann~digits"))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"one\ntwo\n")
    monkeypatch.setattr(submitting, "MAX_LOG_BYTES", 5)
    assert ann.log("digits") == ("one\nt", 5)
    assert ann.log("digits", offset=5) == ("wo\n", 8)


def test_an_owner_cannot_fill_the_queue(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "MAX_ACTIVE", 1)
    service.client("ann").submit(service.file("one"))
    with pytest.raises(RequestRefusedError, match="may have 1 studies that wait or run") as refused:
        service.client("ann").submit(service.file("two"))
    assert refused.value.status == 429
    assert service.client("bob").submit(service.file("two"))["study"] == "bob~two"
    service.client("ann").cancel("one")
    service.client("ann").submit(service.file("two"))
    for again in (lambda ann: ann.resume("one"), lambda ann: ann.extend("one", service.file("one", trials=9))):
        with pytest.raises(RequestRefusedError, match="may have 1 studies that wait or run"):
            again(service.client("ann"))


def test_a_deleted_study_is_gone(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"))
    ann.cancel("digits")
    begin(service, "ann~digits")
    assert ann.delete("digits") == {"study": "ann~digits", "keeps_runs": False}
    assert list(ann.studies()) == []
    with pytest.raises(RequestRefusedError, match="there is no study 'digits'"):
        ann.delete("digits")


def test_a_study_that_never_began_can_be_deleted(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("digits"), shared=True)
    with pytest.raises(RequestRefusedError, match="to delete, the study must be your own"):
        service.client("bob").delete("ann~digits")
    assert ann.delete("digits") == {"study": "ann~digits", "keeps_runs": False}
    assert list(ann.studies()) == []
    assert service.audited()[-1] == ("ann", "delete", "ann~digits", "done")


# --- who may do what ---


def test_everyone_has_names_of_their_own_and_sees_what_is_shared(service: Service) -> None:
    ann, bob = service.client("ann"), service.client("bob")
    ann.submit(service.file("digits"))
    bob.submit(service.file("digits"))
    assert [one["study"] for one in ann.studies()] == ["ann~digits"]
    with pytest.raises(RequestRefusedError) as hidden:
        ann.study("bob~digits")
    with pytest.raises(RequestRefusedError) as missing:
        ann.study("bob~other")
    assert hidden.value.status == missing.value.status == 404
    bob.share("digits")
    assert {one["study"] for one in ann.studies()} == {"ann~digits", "bob~digits"}
    assert ann.study("bob~digits")["owner"] == "bob"
    bob.share("digits", shared=False)
    assert [one["study"] for one in ann.studies()] == ["ann~digits"]
    root = service.client("root-of-all", "admin")
    assert {one["study"] for one in root.studies()} == {"ann~digits", "bob~digits"}


def test_a_study_run_in_a_terminal_belongs_to_the_user_of_the_home(service: Service) -> None:
    begin(service, "local")
    assert list(service.client("ann").studies()) == []
    assert [one["study"] for one in service.client("anyone", "admin").studies()] == ["local"]
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", home_owner()):
        assert service.client(home_owner(), "viewer").study("local")["owner"] == home_owner()


CHANGES = {
    "cancel": lambda client, _: client.cancel("ann~digits"),
    "resume": lambda client, _: client.resume("ann~digits"),
    "share": lambda client, _: client.share("ann~digits", shared=False),
    "delete": lambda client, _: client.delete("ann~digits"),
    "extend": lambda client, file: client.extend("ann~digits", file),
}


@pytest.mark.parametrize("action", CHANGES)
def test_only_the_owner_and_admins_change_a_study_that_others_see(action: str, service: Service) -> None:
    file = service.file("digits")
    service.client("ann").submit(file, shared=True)
    begin(service, "ann~digits")
    for owner, role in (("bob", "submitter"), ("ann", "viewer")):
        with pytest.raises(RequestRefusedError, match=f"to {action}, the") as refused:
            CHANGES[action](service.client(owner, role), file)
        assert refused.value.status == 403
        assert service.audited()[-1] == (owner, action, "ann~digits", "refused")
    assert service.store.queue().find_latest("ann~digits").state == "waiting"  # type: ignore[union-attr]


def test_a_viewer_cannot_submit(service: Service) -> None:
    with pytest.raises(RequestRefusedError, match="to submit, the token must have the role submitter, but it has the"):
        service.client("ann", "viewer").submit(service.file("digits"))


# --- tokens ---


def test_a_request_without_a_valid_token_is_refused_everywhere(service: Service) -> None:
    wrong = add_token(service.settings, "ann", "admin")[:-1] + "?"
    record, revoked = create_token(service.store, "ann", "admin", days=1)
    revoke_token(service.store, record.uid)
    _, expired = create_token(service.store, "ann", "admin", days=1e-9)
    for header in ("Bearer", "Bearer x", f"Bearer {wrong}", f"Bearer {revoked}", f"Bearer {expired}", "Basic YTpi"):
        answer = service.requests.get("/v1/studies", headers={"Authorization": header})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), header
        assert wrong not in answer.text
    document = service.requests.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            answer = service.requests.request(method, re.sub(r"\{[^}]+\}", "1", path))
            assert answer.status_code == (200 if path in ("/health", "/ready") else 401), path
    assert service.store.audit_log().page()[0].action == "token.use"


def test_tokens_appear_neither_in_logs_nor_in_the_audit(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    record, token = create_token(service.store, "ann", "submitter", days=1)
    ann = client_for(service.requests, token)
    ann.submit(service.file("digits"))
    revoke_token(service.store, record.uid)
    with pytest.raises(RequestRefusedError, match="it was revoked"):
        ann.study("digits")
    _, _, secret = token.split("_", 2)  # which may itself contain one
    written = caplog.text + str(service.store.audit_log().page())
    assert record.uid in written
    assert secret not in written


def test_a_service_without_tokens_has_one_user_and_serves_this_machine_only(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", tracking=False)
    file = tmp_path / "digits.yaml"
    file.write_text(STUDY.format(name="digits", trials=4), encoding="utf-8")
    with serving(settings) as requests:
        assert client_for(requests).submit(file)["study"] == "digits"
    store = Store.open(settings.database_url)
    assert not has_tokens(store)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_service(settings, host, needs_token=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(SettingsError, match=r"--host: must be an address of this machine.*vitsearch token create"):
            check_service(settings, host, needs_token=False)
        check_service(settings, host, needs_token=True)
    add_token(settings, "ann", "viewer", days=1e-9)
    assert has_tokens(store), "the service must not open itself when its last token expires"
    store.close()
    with pytest.raises(SettingsError, match="must be existing folders"):
        check_service(settings.model_copy(update={"data_roots": (tmp_path / "x",)}), "::1", needs_token=False)


def test_an_unexpected_error_does_not_end_the_queue_of_a_service(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()

    class Failing:
        runs = 0

        def run(self, should_stop: Callable[[], bool]) -> None:
            self.runs += 1
            if self.runs == 1:
                raise IndexError("a GPU that is gone")
            assert not should_stop()
            stop.set()

    supervisor: Any = Failing()
    keep_running(supervisor, stop, pause_s=0.0)
    assert supervisor.runs == 2
    assert "a GPU that is gone" in caplog.text


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with open_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert taken.proto == socket.IPPROTO_TCP
        with pytest.raises(
            SettingsError, match=f"port {port}, cannot be used: Address already in use. Use another one"
        ):
            open_port("127.0.0.1", port)
    with pytest.raises(SettingsError, match="must be an interface of this machine"):
        open_port("192.0.2.1", 8000)


def test_only_admins_read_the_audit_log(service: Service) -> None:
    ann = service.client("ann")
    ann.submit(service.file("one"))
    ann.submit(service.file("two"))
    assert service.requests.get("/v1/audit", headers=ann._headers).status_code == 403
    headers = service.client("root", "admin")._headers
    first = service.requests.get("/v1/audit?limit=1", headers=headers).json()
    rest = service.requests.get("/v1/audit", params={"after": first["next"]}, headers=headers).json()
    assert [(one["actor"], one["action"], one["subject"]) for one in first["events"] + rest["events"]] == [
        ("ann", "submit", "ann~two"),
        ("ann", "submit", "ann~one"),
    ]
    assert rest["next"] is None


# --- browser sessions ---


def log_in(service: Service, owner: str = "ann", role: Any = "submitter") -> str:
    """Log in as a browser does; returns the page that follows."""
    token = add_token(service.settings, owner, role)
    answer = service.requests.post("/login", data={"token": token, "to": "/"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert COOKIE in cookie
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    return service.requests.get("/").text


def test_a_browser_logs_in_with_a_token_and_out_again(service: Service) -> None:
    page = service.requests.get("/studies/x", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?to=%2Fstudies%2Fx")
    refused = service.requests.post("/login", data={"token": "x", "to": "/"})
    assert refused.status_code == 401
    assert "it is unknown" in refused.text
    assert "Log out" in log_in(service)
    assert service.requests.post("/logout").status_code == 303
    assert service.requests.get("/v1/studies").status_code == 401


@pytest.mark.parametrize("to", ["https://evil.example", "//evil.example", "/\\evil.example", "x", "/\nx"])
def test_logging_in_leads_to_this_site_only(to: str, service: Service) -> None:
    token = add_token(service.settings, "ann", "viewer")
    assert service.requests.post("/login", data={"token": token, "to": to}).headers["location"] == "/"
    assert sessions._local(to) == "/"


def test_a_session_changes_something_only_for_our_own_pages(service: Service) -> None:
    page = log_in(service)
    (csrf,) = re.findall(r'data-csrf="(\w+)"', page)
    body = STUDY.format(name="digits", trials=4)
    kind = {"Content-Type": "application/yaml"}
    for given in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": csrf[:-1] + "x"}, {"X-CSRF-Token": b"\xff"}):
        answer = service.requests.post("/v1/studies", content=body, headers=kind | given)
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:vitsearch:other-site")
    assert service.store.queue().page() == []
    assert service.requests.post("/v1/studies", content=body, headers=kind | {"X-CSRF-Token": csrf}).status_code == 201


def test_the_page_for_logging_in_says_why_a_session_has_ended(service: Service) -> None:
    log_in(service)
    assert "Your session has ended" not in service.requests.get("/login").text
    (token,) = service.store.tokens().all()
    revoke_token(service.store, token.uid)
    page = service.requests.get("/login").text
    assert "Your session has ended: the access token must be valid, but it was revoked." in page


def test_the_events_of_a_study_end_with_its_driver(service: Service) -> None:
    service.client("ann").submit(service.file("digits"))
    queue = service.store.queue()
    claimed = queue.claim("r", "here", lambda *_: Placement({}))
    assert claimed is not None
    begin(service, "ann~digits")
    study = service.store.find_study("ann~digits")
    assert study is not None
    execution = service.store.begin_execution(study.id)
    home = Home(service.settings)
    follower = StudyFollower(VisibleStudies(home, Caller(owner="ann", role="submitter")), "digits", Cursor())
    with hold_study(study.name, service.settings):  # as its driver does, which still sends events to MLflow
        service.store.end_execution(execution, "interrupted", reason="a stop was requested")
        follower.poll()
        assert not follower.has_ended
    queue.end(claimed.uid, claimed.lease, "interrupted", "it was cancelled")
    assert follower.poll()[-1].kind == "end"
    home.close()


def test_pages_offer_only_what_the_caller_may_do(service: Service) -> None:
    service.client("ann").submit(service.file("digits"), shared=True)
    assert 'id="study-submit"' in log_in(service)
    waiting = service.requests.get("/studies/digits").text
    assert 'data-do="cancel"' in waiting
    assert "submitted 20" in waiting, "it has not begun"
    assert "VITSEARCH_SERVER=http://testserver VITSEARCH_TOKEN=" in waiting
    service.requests.cookies.clear()
    assert 'id="study-submit"' not in log_in(service, "bob", "viewer")
    assert "data-do=" not in service.requests.get("/studies/ann~digits").text


@pytest.mark.parametrize(
    "name", ["..%2f..", "%00", "a" * 5000, "x~y~z", "~", "%0d%0aSet-Cookie:x", "𝕏", "'; DROP TABLE"]
)
def test_a_hostile_name_is_an_unknown_study(name: str, service: Service) -> None:
    root = service.client("root", "admin")
    for path in (f"/v1/studies/{name}", f"/v1/studies/{name}/log", f"/studies/{name}"):
        answer = service.requests.get(path, headers=root._headers)
        assert answer.status_code == 404
        assert "set-cookie" not in answer.headers
