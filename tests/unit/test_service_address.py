"""What the client says about an address at which no vitsearch service answers."""

import socket
import ssl
from pathlib import Path

import httpx2 as httpx
import pytest

from orchestrator.cli.exit_status import status_of
from orchestrator.cli.remote import client_of
from orchestrator.client import Client, ServerUnavailableError
from orchestrator.service_address import checked_address
from tests.service import golden_settings, serving


@pytest.mark.parametrize(
    ("answer", "start_page", "what"),
    [
        (httpx.Response(200, html="<html>"), "", "another web server answers there, with status 200"),
        (
            httpx.Response(404, html="none"),
            "<html><title>MLflow</title>",
            "an MLflow server answers there, with status",
        ),
        (
            httpx.Response(500, text="oh", headers={"Server": "nginx"}),
            "<TITLE>\n A &amp; B </TITLE>",
            "a web server with the page 'A & B' answers there, with status 500",
        ),
        (httpx.Response(403, json={"type": "x"}, headers={"Server": "nginx"}), "", r"a web server \(nginx\) answers"),
        (httpx.Response(200, json=[1]), "", "another web server answers there"),
        (httpx.Response(200, json={"a": 1}), "", "another web server answers there"),
    ],
)
def test_the_client_names_the_server_at_an_address_that_is_not_the_service(
    answer: httpx.Response, start_page: str, what: str
) -> None:
    def answers(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/":
            return answer
        assert "Authorization" not in request.headers
        return httpx.Response(200, html=start_page)

    http = httpx.Client(transport=httpx.MockTransport(answers))
    with (
        Client("http://x", "secret", http=http) as client,
        pytest.raises(ServerUnavailableError, match=f"^http://x is not a vitsearch service: {what}") as caught,
    ):
        list(client.studies())
    assert "Correct the address (`--server` or VITSEARCH_SERVER), or start" in str(caught.value)
    assert status_of(caught.value) == 2


def test_all_requests_notice_another_server(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("study: a")
    page = httpx.MockTransport(lambda _: httpx.Response(200, html="<title>MLflow</title>"))
    with Client("http://x", http=httpx.Client(transport=page)) as client:
        for call in (
            lambda: client.study("y"),
            lambda: list(client.trials("y")),
            client.plugins,
            lambda: client.submission("y"),
            lambda: client.log("y"),
            lambda: client.validate(file),
            lambda: client.submit(file),
            lambda: client.cancel("y"),
        ):
            with pytest.raises(ServerUnavailableError, match="http://x is not a vitsearch service: an MLflow server"):
                call()
    nothing = httpx.MockTransport(lambda _: httpx.Response(404, text="nothing"))
    with Client("http://x", http=httpx.Client(transport=nothing)) as client:
        with pytest.raises(ServerUnavailableError, match="is not a vitsearch service"):
            list(client.events("y"))
        with pytest.raises(ServerUnavailableError, match="is not a vitsearch service"):
            client.submit(file)


def test_the_client_names_an_address_that_leads_elsewhere_or_has_a_path_of_the_service(tmp_path: Path) -> None:
    elsewhere = httpx.MockTransport(lambda _: httpx.Response(301, headers={"Location": "https://x/"}))
    with (
        Client("http://x", http=httpx.Client(transport=elsewhere)) as client,
        pytest.raises(ServerUnavailableError, match=r"http://x must be the address .* but leads to https://x/"),
    ):
        client.study("y")
    with (
        serving(golden_settings(tmp_path)) as requests,
        pytest.raises(ServerUnavailableError, match=r"nothing at /studies\. Use: http://testserver$"),
    ):
        Client("http://testserver/studies", http=requests).study("y")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (ConnectionRefusedError(111, "refused"), "but nothing answers there (connection refused). Correct"),
        (socket.gaierror(-2, "unknown"), "but its host name 'x' is unknown. Correct"),
        (ssl.SSLError(1, "wrong version number"), "but it offers no secure connection: write http:// instead of"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "but the certificate of x is not valid ("),
        (TimeoutError("timed out"), "but it has not answered in time. Correct"),
        (OSError("reset"), "but it does not answer as a web server does (broken). Correct"),
    ],
)
def test_the_client_says_why_no_server_answers(cause: OSError, why: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("broken") from cause

    with (
        Client("https://x", http=httpx.Client(transport=httpx.MockTransport(fail))) as client,
        pytest.raises(ServerUnavailableError) as caught,
    ):
        client.study("y")
    assert str(caught.value).startswith(f"the service at https://x must answer, {why}")


@pytest.mark.parametrize(
    ("given", "must"),
    [
        ("127.0.0.1:5000", "begins with http:// or https://, such as http://127.0.0.1:5000"),
        ("ftp://x", "begins with http:// or https://, such as http://127.0.0.1:8000"),
        ("http://", "a host and, if one is given, a port"),
        ("http://x:port", "a host and, if one is given, a port"),
        ("http://x:99999", "a host and, if one is given, a port"),
    ],
)
def test_an_address_without_scheme_host_or_valid_port_is_rejected(
    given: str, must: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=must):
        checked_address(given)
    with pytest.raises(SystemExit, match="2"):
        client_of(given)
    assert f"--server: must be an address {'that ' if 'begins' in must else 'with '}" in capsys.readouterr().err
