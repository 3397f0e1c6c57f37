"""What the service tells about studies: lists, results, trials, plug-ins, events, errors and limits."""

import importlib
import json
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from sqlalchemy.exc import OperationalError

from orchestrator.api import limits, pages
from orchestrator.api.curves import curve_picture
from orchestrator.api.errors import HTTP_STATUS, PROBLEM_TYPE
from orchestrator.api.home import Home, VisibleStudies
from orchestrator.api.limits import MAX_BODY_BYTES, RateLimit
from orchestrator.cli.exit_status import STATUS
from orchestrator.client import Client, RequestRefusedError, ServerUnavailableError, parse_events
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import load_spec
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.study.access import find_champion, find_summary, find_trials
from orchestrator.study.differing import StudyDiff, diff_studies
from plugins import registry
from plugins.metrics.deciding import ACCURACY
from tests.service import TestClient, client_for, golden_settings, serving
from trainers.yaml_source import SpecError

WRONG = "study: X\ndata: {source: digits}\nstages:\n  - {stage: train, epoch: 3}\n"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return golden_settings(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def requests(settings: Settings) -> Iterator[TestClient]:
    with serving(settings) as requests:
        yield requests


@pytest.fixture(scope="module")
def client(requests: TestClient) -> Client:
    return client_for(requests)


# --- studies ---


def test_studies_are_listed_in_pages_newest_first(client: Client, requests: TestClient) -> None:
    assert [one["study"] for one in client.studies()] == ["interrupted", "finished"]
    first = requests.get("/v1/studies?limit=1").json()
    second = requests.get("/v1/studies", params={"limit": 1, "after": first["next"]}).json()
    assert [one["study"] for page in (first, second) for one in page["studies"]] == ["interrupted", "finished"]
    assert second["next"] is None


def test_studies_are_filtered_by_state_owner_and_name(client: Client) -> None:
    owner = next(client.studies())["owner"]
    assert [one["study"] for one in client.studies(state="complete")] == ["finished"]
    assert [one["study"] for one in client.studies(state="interrupted")] == ["interrupted"]
    assert list(client.studies(state="running")) == []
    assert [one["study"] for one in client.studies(text="inter")] == ["interrupted"]
    assert list(client.studies(text="%")) == []
    assert len(list(client.studies(owner=owner))) == 2
    assert list(client.studies(owner="nobody")) == []


def test_a_line_says_how_far_a_study_is(client: Client, settings: Settings) -> None:
    lines = {one["study"]: one for one in client.studies()}
    finished = lines["finished"]
    summary = find_summary("finished", settings)
    assert (finished["progress"], finished["stage"], finished["stages_done"]) == (1.0, None, 6)
    assert finished["best"] == summary["leaderboard"][0]["val_accuracy"]
    assert finished["test_accuracy"] == summary["champion"]["test_accuracy"]
    assert 0 < lines["interrupted"]["progress"] < 1
    assert lines["interrupted"]["stage"] is not None


def test_a_study_has_the_typed_results_of_its_stages(client: Client, settings: Settings) -> None:
    sent, known = client.study("finished"), find_summary("finished", settings)
    assert [stage["kind"] for stage in sent["stages"]] == [stage["kind"] for stage in known["stages"]]
    assert sent["leaderboard"] == known["leaderboard"]
    train = next(stage for stage in sent["stages"] if stage["kind"] == "train")
    assert train["result"]["best"]["topology"] == known["leaderboard"][0]["topology"]
    assert train["result"]["certainty"] is None  # a field that version 0.1.0 did not have


def test_trials_come_with_their_curves(client: Client, requests: TestClient, settings: Settings) -> None:
    rows = [row for row in find_trials("finished", settings)[0] if row["stage"] == "train"]
    sent = list(client.trials("finished", stage="train", curves=True))
    assert [trial["trial"] for trial in sent] == [row["trial"] for row in rows]
    assert [trial["topology"] for trial in sent] == [row["topology"] for row in rows]
    assert [point["epoch"] for point in sent[0]["curve"]] == list(range(1, len(sent[0]["curve"]) + 1))
    assert client.trial("finished", "train", 0)["curve"] == sent[0]["curve"]
    assert next(client.trials("finished"))["curve"] is None
    page = requests.get("/v1/studies/finished/trials?limit=3").json()
    rest = requests.get("/v1/studies/finished/trials", params={"after": page["next"], "limit": 500}).json()["trials"]
    assert len(page["trials"]) + len(rest) == len(find_trials("finished", settings)[0])


def test_trials_that_a_killed_driver_left_are_waiting(client: Client, requests: TestClient) -> None:
    states = {trial["state"] for trial in client.trials("interrupted")}
    assert "running" not in states
    for state in ("waiting", "complete"):
        found = requests.get(f"/v1/studies/interrupted/trials?state={state}").json()["trials"]
        assert {trial["state"] for trial in found} <= {state}
    assert requests.get("/v1/studies/interrupted/trials?state=running").json()["trials"] == []


def test_the_best_configuration_and_the_champions_files(client: Client, settings: Settings, tmp_path: Path) -> None:
    champion = find_champion("finished", settings)
    file = tmp_path / "best.yaml"
    file.write_text(client.best("finished"), encoding="utf-8")
    assert champion["configuration"]["topology"] in file.read_text(encoding="utf-8")
    folder = client.champion("finished", tmp_path / "model")
    original = Path(champion["folder"])
    assert {one.relative_to(folder): one.read_bytes() for one in folder.rglob("*") if one.is_file()} == {
        one.relative_to(original): one.read_bytes() for one in original.rglob("*") if one.is_file()
    }
    with pytest.raises(FileExistsError):
        client.champion("finished", folder)
    for place in (".", "..", "/"):
        with pytest.raises(FileExistsError):
            client.champion("finished", place)


@pytest.mark.parametrize("path", ["..%2f..%2f..%2f..%2fvitsearch.db", "%2fetc%2fpasswd", "model.safetensors%00"])
def test_only_files_of_the_champion_are_sent(path: str, requests: TestClient) -> None:
    answer = requests.get(f"/v1/studies/finished/champion/files/{path}")
    assert answer.status_code == 404
    assert "SQLite" not in answer.text


def test_trials_are_compared(client: Client, settings: Settings) -> None:
    found = client.compare("finished")
    assert [trial["trial"] for trial in found["trials"]] == [
        row["trial"] for row in find_summary("finished", settings)["leaderboard"][:4]
    ]
    assert [trial["trial"] for trial in client.compare("finished", [1, 0])["trials"]] == [1, 0]
    assert found["page"] is None


def test_two_studies_are_compared_as_by_the_command(client: Client, settings: Settings) -> None:
    sent = client.diff("finished", "interrupted")
    known = diff_studies("finished", "interrupted", settings)
    assert StudyDiff.from_json(sent) == StudyDiff.from_json(known.as_json()) == known
    assert sent["without_champion"] == ["interrupted"]
    for pair in (("finished", "finishd"), ("finishd", "finished")):
        with pytest.raises(RequestRefusedError, match="Did you mean 'finished'") as refused:
            client.diff(*pair)
        assert refused.value.status == 404


def test_a_home_without_a_database_has_no_studies(tmp_path: Path) -> None:
    with serving(load_settings(home=tmp_path / "home", tracking=False)) as requests:
        assert list(client_for(requests).studies()) == []
        assert requests.get("/ready").status_code == 200
        assert "No studies yet" in requests.get("/").text
        assert requests.get("/v1/studies/none").status_code == 404
    assert not (tmp_path / "home").exists()


# --- plug-ins ---


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind != "models"])  # functions
def test_every_plugin_has_a_card_and_a_schema_of_its_settings(kind: str, requests: TestClient) -> None:
    for line in requests.get(f"/v1/plugins/{kind}").json():
        view = requests.get(f"/v1/plugins/{kind}/{line['name']}").json()
        if view["settings"]:
            assert view["settings"].keys() == view["settings_schema"]["properties"].keys()
        assert view["about"]


def test_an_unknown_plugin_is_reported_with_the_nearest_name(client: Client, requests: TestClient) -> None:
    assert requests.get("/v1/plugins/proxies/ntk-conditon").json()["nearest"] == "ntk-condition"
    with pytest.raises(RequestRefusedError, match=r"Did you mean 'proxies'\?"):
        client.plugins("proxie")
    assert len(client.plugins()) > 50


# --- checking ---


def test_a_study_file_is_checked_without_being_started(client: Client, requests: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("study: x\ndata: {source: digits}\nstages: [{stage: screen, num_trials: 4}]\n", encoding="utf-8")
    found = client.validate(file)
    assert (found["study"], found["stages"]) == ("x", ["screen"])
    assert found["spec"] == load_spec(file).model_dump(mode="json")
    body = {"study": "x", "data": {"source": "digits"}, "stages": [{"stage": "screen", "num_trials": 4}]}
    assert requests.post("/v1/validate", json=body).json() == found
    assert [one["study"] for one in client.studies()] == ["interrupted", "finished"]


def test_a_service_has_loaded_what_it_needs_before_its_first_request(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from orchestrator.api.routes.checking import EXAMPLE
        from tests.service import load_settings, serving
        with serving(load_settings(home=Path(sys.argv[1]))) as requests:
            before = set(sys.modules)
            answer = requests.post("/v1/validate", content=EXAMPLE, headers={"Content-Type": "application/yaml"})
        print(answer.status_code, [name for name in sys.modules if name not in before and name != "pwd"])
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.stdout == "200 []\n", done.stderr


def test_all_mistakes_of_a_file_come_with_the_text_of_the_command_line(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG, encoding="utf-8")
    with pytest.raises(SpecError) as here:
        load_spec(file)
    with pytest.raises(RequestRefusedError) as there:
        client.validate(file)
    assert str(there.value) == str(here.value)
    assert there.value.status == 422
    problem = there.value.problem
    assert problem["type"] == "urn:vitsearch:spec"
    assert [(one["line"], one["path"]) for one in problem["errors"]] == [
        (one.line, one.path) for one in (here.value, *here.value.others)
    ]
    assert len(problem["errors"]) > 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff", "must be text in UTF-8"),
        (b"a: " + b"[" * 100, "nest at most 40 levels"),
        (b"a: &x [1]\nb: &y [*x,*x,*x,*x,*x,*x,*x,*x]\n" + b"c: [*y]\n" * 1, "must be one of the keys|must be given"),
        (b"x" * 1_100_000, "must have at most 1,048,576 bytes"),
        (b"", "must be a mapping"),
    ],
)
def test_a_hostile_file_is_refused(body: bytes, said: str, requests: TestClient) -> None:
    answer = requests.post("/v1/validate", content=body, headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422
    assert any(part in answer.json()["detail"] for part in said.split("|"))


def test_an_anchor_bomb_is_refused(requests: TestClient) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    answer = requests.post("/v1/validate", content="\n".join(lines), headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 422
    assert "after aliases are expanded" in answer.json()["detail"]


def test_paths_lie_in_the_data_roots(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    settings = load_settings(home=tmp_path / "home", tracking=False, data_roots=(tmp_path / "root",))
    text = "study: x\ndata: {source: /etc}\nstages: [{stage: screen, num_trials: 4}]\n"
    with serving(settings) as requests:
        answer = requests.post("/v1/validate", content=text, headers={"Content-Type": "application/yaml"})
        elsewhere = requests.post(
            "/v1/validate",
            params={"folder": "/etc"},
            content=text.replace("/etc", "ssl"),
            headers={"Content-Type": "application/yaml"},
        )
        nobody = requests.post(
            "/v1/validate",
            content=text.replace("/etc", "~nobody-of-that-name/x"),
            headers={"Content-Type": "application/yaml"},
        )
    assert "must be inside a data folder of this server" in answer.json()["detail"]
    assert "must be inside a data folder of this server" in elsewhere.json()["detail"]
    assert "data.source: must name images in" in nobody.json()["detail"]


# --- errors and limits ---


def test_an_error_has_a_status_like_that_of_the_command_line() -> None:
    for name, status in HTTP_STATUS.items():
        if name in STATUS:  # tests/unit/test_access.py imports these
            assert status in ((404, 409, 422) if STATUS[name] == 2 else (409, 503)), name
        else:
            module, _, kind = name.partition(":")
            assert issubclass(getattr(importlib.import_module(module), kind), Exception)


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/v1/studies/finishd", 404, "unknown-study"),
        ("/v1/studies/finished/stages/trian/trials/0", 404, "unknown-stage"),
        ("/v1/studies/finished/stages/train/trials/99", 404, "unknown-trial"),
        ("/v1/studies/finished/stages/train/trials/x", 422, "wrong-request"),
        ("/v1/studies/finished/stages/train/trials/" + "9" * 20, 422, "wrong-request"),
        ("/studies/finished/mlflow", 404, "not-in-mlflow"),
        ("/v1/studies/finished/compare?trial=99", 404, "no-trials"),
        ("/v1/studies/interrupted/best", 409, "no-champion"),
        ("/v1/studies?after=x", 422, "wrong-request"),
        ("/v1/studies?limit=0", 422, "wrong-request"),
        ("/v1/studies?text=%00", 422, "wrong-request"),
        ("/?text=%00", 422, "wrong-request"),
        ("/v1/studies?limit=" + "9" * 5000, 422, "wrong-request"),
        ("/v1/studies/finishd/events", 404, "unknown-study"),
        ("/nothing", 404, "not-found"),
    ],
)
def test_a_failed_request_gets_a_problem_document(path: str, status: int, kind: str, requests: TestClient) -> None:
    answer = requests.get(path)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM_TYPE)
    assert (problem["type"], problem["status"]) == (f"urn:vitsearch:{kind}", status)
    assert problem["detail"]
    if "finishd" in path:
        assert problem["nearest"] == "finished"


def test_a_request_does_not_wait_long_for_a_database_that_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(settings, wait_s=0.0)
    assert home.store is not None

    def refuse() -> None:
        raise OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked"))

    with monkeypatch.context() as away:
        away.setattr(home.store._engine, "connect", refuse)
        with pytest.raises(DatabaseUnavailableError, match="must answer, but did not for 0 s"):
            home.store.find_study("finished")
    home.close()


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_a_page_with_trained_models_leads_to_the_report(requests: TestClient, name: str) -> None:
    page = requests.get(f"/studies/{name}").text
    assert "<h2>Leaderboard</h2>" in page
    assert f'href="/studies/{name}/report">Report</a>' in page


def test_reports_do_not_occupy_all_threads(requests: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_report_places", threading.Semaphore(0))
    answer = requests.get("/studies/finished/report")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:vitsearch:too-many-reports")
    assert answer.headers["retry-after"] == "10"


def test_our_own_mistake_is_logged_and_not_shown(
    requests: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(VisibleStudies, "summary", fail)
    answer = requests.get("/v1/studies/finished")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret" in caplog.text
    with pytest.raises(ServerUnavailableError, match="unexpected error"):
        client_for(requests).study("finished")


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(requests: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 100_000 + 2):
            yield b"x" * 100_000

    for content in (b"x" * (MAX_BODY_BYTES + 1), parts()):
        answer = requests.post("/v1/validate", content=content, headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 413
    assert requests.post("/v1/validate", content=b"x", headers={"Content-Type": "image/png"}).status_code == 415


def test_a_page_of_another_site_can_neither_post_nor_reach_the_service_by_its_own_name(settings: Settings) -> None:
    with serving(settings, hosts={"localhost"}) as requests:
        own = {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Content-Type": "application/yaml"}
        for origin in ("http://evil.example", "null", "http://localhost:9000"):
            answer = requests.post("/v1/validate", headers={**own, "Origin": origin}, content=WRONG)
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:vitsearch:other-site")
        assert requests.post("/v1/validate", headers=own, content=WRONG).status_code == 422
        assert requests.get("/v1/studies", headers={"Host": "evil.example"}).status_code == 421


def test_responses_forbid_scripts_of_other_sites(requests: TestClient) -> None:
    for path in ("/", "/v1/studies", "/nothing", "/static/app.js"):
        headers = requests.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_a_client_may_send_a_burst_and_then_so_many_per_second() -> None:
    now = [0.0]
    limit = RateLimit(per_s=2, burst=3, clock=lambda: now[0], max_clients=2)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.take("b") == 0
    now[0] = 0.5
    assert limit.take("a") == 0
    assert limit.take("a") == 0.5
    now[0] = 100.0
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    for name in "bcdef":
        limit.take(name)
    assert len(limit._left) == 2


def test_a_client_that_sends_too_much_must_wait(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BURST", 2)
    monkeypatch.setattr(limits, "PER_S", 1e-3)
    with serving(settings) as requests:
        answers = [requests.get("/health", headers={"Authorization": "Bearer a"}) for _ in range(4)]
        other = requests.get("/health", headers={"Authorization": "Bearer b"})
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    assert (answers[3].status_code, answers[3].headers["retry-after"]) == (429, "1000")
    assert other.status_code == 200


# --- operation ---


def test_figures_name_routes_and_not_studies(requests: TestClient) -> None:
    requests.get("/v1/studies/finished")
    text = requests.get("/metrics").text
    assert 'vitsearch_requests_total{method="GET",path="/v1/studies/{name}",status="200"}' in text
    assert 'vitsearch_studies{state="complete"} 1.0' in text
    assert "finished" not in text


def test_health_and_readiness(requests: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requests.get("/health").json()["status"] == "ok"
    assert requests.get("/ready").status_code == 200


def test_the_openapi_document_describes_every_path_with_problems_and_examples(requests: TestClient) -> None:
    document = requests.get("/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) >= 14
    assert all(operation["summary"] and "4XX" in operation["responses"] for operation in operations)
    body = document["paths"]["/v1/validate"]["post"]["requestBody"]["content"]
    example = body["application/yaml"]["example"]
    for content, kind in (
        (example, "application/yaml"),
        (json.dumps(body["application/json"]["example"]), "application/json"),
    ):
        assert requests.post("/v1/validate", content=content, headers={"Content-Type": kind}).status_code == 200
    names = document["components"]["schemas"]
    assert {"TrainResult", "ScreenResult", "PromoteResult"} <= names.keys()


# --- pages ---


def test_pages_show_the_studies_and_escape_what_people_wrote(tmp_path: Path) -> None:
    settings = golden_settings(tmp_path)
    store = Store.find(settings.database_url)
    assert store is not None
    stages = [("<i>train", "train")]
    store.create_study("<b>x", spec={"seed": 0}, digest="a", data_digest="b", stage_names=stages)
    store.close()
    with serving(settings) as requests:
        start = requests.get("/").text
        study = requests.get("/studies/%3Cb%3Ex").text
        finished = requests.get("/studies/finished").text
        filtered = requests.get("/", params={"text": '"><script>', "state": "complete"}).text
        missing = requests.get("/studies/none")
    assert "&lt;b&gt;x" in start
    assert "<b>x" not in start + study
    assert "<i>train" not in study
    assert "<script>" not in filtered.replace('<script src="/static/app.js" defer></script>', "")
    assert '<svg xmlns="http://www.w3.org/2000/svg"' in finished
    assert "★" in finished
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("path", "told"), [("/studies/finishd", "Did you mean &#39;finished&#39;?"), ("/x", "nothing at")]
)
def test_a_browser_shows_what_went_wrong_as_a_page(path: str, told: str, requests: TestClient) -> None:
    page = requests.get(path, headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert told in page.text
    assert "All studies" in page.text
    assert requests.get(path).headers["content-type"] == "application/problem+json"


def test_pages_load_nothing_from_other_machines(requests: TestClient) -> None:
    texts = [requests.get(path).text for path in ("/", "/studies/finished", "/static/app.js", "/static/style.css")]
    for text in texts:
        rest = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in rest
        assert "https://" not in rest
        assert "//cdn" not in rest


def test_the_limits_are_those_that_the_docs_name() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert f"{limits.MAX_BODY_BYTES // 2**20} MiB" in page


# --- the client ---


def test_the_client_parses_a_stream_and_keeps_the_last_id() -> None:
    lines = [": comment", "event: report", "id: 3;5:1", 'data: {"a":', "data: 1}", "", "id: 4", 'data: {"b": 2}', ""]
    first, second = parse_events(iter(lines))
    assert first == ("report", "3;5:1", {"a": 1})
    assert second == ("message", "4", {"b": 2})


def test_the_client_follows_a_study_while_the_service_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.client._RECONNECT_S", (0.0, 0.0))
    event = 'event: end\nid: 1\ndata: {"state": "complete"}\n\n'
    answers = [httpx.Response(503), httpx.Response(502), httpx.Response(200, text=event)]
    with Client("http://x", http=httpx.Client(transport=httpx.MockTransport(lambda _: answers.pop(0)))) as client:
        assert [one.kind for one in client.events("y")] == ["end"]
    always = httpx.MockTransport(lambda _: httpx.Response(503))
    with (
        Client("http://x", http=httpx.Client(transport=always)) as client,
        pytest.raises(ServerUnavailableError, match="failed with status 503"),
    ):
        list(client.events("y"))


def test_a_service_that_does_not_answer_is_named() -> None:
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(ServerUnavailableError, match=r"the service at http://127\.0\.0\.1:1 must answer, but"),
    ):
        client.study("x")


def test_a_curve_has_round_labels_and_a_title_that_names_its_trial() -> None:
    picture = curve_picture({"trial <1>": [(1, 0.55), (2, 0.8), (12, 0.91)], "trial 2": [(1, 0.6)]}, ACCURACY)
    assert "<title>trial &lt;1&gt;: 91.0 % after epoch 12</title>" in picture
    assert re.findall(r">([\d.]+ %)</text>", picture) == ["60.0 %", "70.0 %", "80.0 %", "90.0 %"]
    assert re.findall(r">(\d+)</text>", picture) == ["1", "2", "4", "6", "8", "10", "12"]
    assert picture.count("<circle") == 1
    assert "<polyline" not in curve_picture({"trial 1": [(1, 0.5)]}, ACCURACY)
    assert "polyline" not in curve_picture({}, ACCURACY)
