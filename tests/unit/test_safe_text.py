"""Nothing that is shown, logged or stored contains a secret or controls a terminal."""

import io
import logging
from pathlib import Path

import pytest
from rich.text import Text

from orchestrator.cli.console import SafeConsole, message_lines
from orchestrator.safe_text import SafeFormatter, masked_address, printable, reason_of, without_secrets
from orchestrator.settings import SettingsError, load_settings
from orchestrator.store.database import open_database
from orchestrator.tracking.server import server_command

ADDRESSES = {
    "postgresql://me:hunter22@db.example:5432/studies": "postgresql://***@db.example:5432/studies",
    "postgresql://db.example/studies?password=hunter22": "postgresql://db.example/studies?***",
    "postgresql://me:hunter/22@db.example/studies": "postgresql://***@db.example/studies",
    "postgresql://me:hunter@22@db.example/studies": "postgresql://***@db.example/studies",
    "postgresql://me:hunter?22#x@db.example/studies": "postgresql://***@db.example/studies",
    "postgresql://me:hunter#/22@db.example/studies": "postgresql://***@db.example/studies",
    "https://hunter22@tracking.example": "https://***@tracking.example",
    "https://tracking.example/?token=hunter22#hunter22": "https://tracking.example/?***",
    "s3://key:hunter22@bucket/artifacts": "s3://***@bucket/artifacts",
    "sqlite:////home/a@b/studies.db": "sqlite:////home/a@b/studies.db",
    "http://127.0.0.1:5000/path": "http://127.0.0.1:5000/path",
    "me:hunter22@db.example/studies": "***",
}


@pytest.mark.parametrize(("address", "shown"), ADDRESSES.items())
def test_of_an_address_only_scheme_host_port_and_path_are_shown(address: str, shown: str) -> None:
    assert masked_address(address) == shown


@pytest.mark.parametrize("address", [one for one in ADDRESSES if "://" in one])
def test_addresses_in_a_text_are_masked(address: str) -> None:
    text = without_secrets(f"cannot connect to '{address}' (tried {address}, twice)", {})
    assert "hunter" not in text
    assert text.endswith(" twice)")


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter22 host=x",
        "{'api_token': 'hunter22'}",
        'PGPASSWORD = "hunter22"',
        "HF_TOKEN=hunter22",
        "my-secret-name=hunter22",
        "Bearer hunter22abc",
        "basic aHunter22abc=",
    ],
)
def test_settings_that_speak_of_a_secret_are_masked(text: str) -> None:
    assert "hunter22" not in without_secrets(text, {})


def test_values_of_secret_variables_are_masked_wherever_they_appear() -> None:
    environment = {
        "MLFLOW_TRACKING_TOKEN": "hunter22",
        "VITSEARCH_DATABASE_URL": "postgresql://me:my password@db.example/studies",
        "HF_TOKEN_PATH": "/home/me/token",
    }
    text = "hunter22; my password; postgresql://me:my password@db.example/studies; /home/me/token"
    assert without_secrets(text, environment) == "***; ***; postgresql://***@db.example/studies; /home/me/token"


def test_sentences_and_pages_of_mlflow_stay() -> None:
    for text in (
        "the token: it expired",
        "http://127.0.0.1:5000/#/experiments/1?searchFilter=a%40b",
        "passwords are 3",
        "token_stride=2, num_tokens=197 and class_token=true",
        '{"token_stride": 2, "tokens": 197}',
        "basic augmentation is used",
    ):
        assert without_secrets(text, {}) == text


def test_a_secret_that_contains_another_or_begins_like_a_path_is_masked_whole() -> None:
    environment = {"A_PASSWORD": "hunter22", "B_TOKEN": "hunter22-and-more", "C_SECRET": "/hunter+44/x"}
    assert without_secrets("hunter22-and-more or /hunter+44/x", environment) == "*** or ***"


@pytest.mark.parametrize("text", ["a" * 50_000, "a." * 25_000, "password" * 5_000, "basic " * 10_000, "a:" * 25_000])
def test_a_long_text_is_searched_once(text: str) -> None:
    """Patterns that begin with the name of a setting would take hours."""
    assert without_secrets(text, {}) == text


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:hunter22@localhost:port/x",
        "postgresql//me:hunter22@localhost/x",
        "mysql://me:hunter22@localhost/x",
        "postgresql://me:hunter22@127.0.0.1:9/x?application_name=hunter22",
    ],
)
def test_errors_of_a_database_address_do_not_show_its_password(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_database(address)
    assert "hunter22" not in str(caught.value)


def test_errors_of_settings_do_not_show_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSEARCH_ARTIFACT_ROOT", "s3://key:hunter22@bucket")
    with pytest.raises(SettingsError, match="bucket") as caught:
        load_settings()
    assert "hunter22" not in str(caught.value)


def test_the_arguments_of_the_mlflow_server_contain_no_password(tmp_path: Path) -> None:
    command = server_command("postgresql://me:hunter22@localhost/mlflow", tmp_path, port=5000)
    assert "hunter22" not in " ".join(command.argv)
    assert "hunter22" in command.env["MLFLOW_BACKEND_STORE_URI"]


def test_control_characters_become_escapes() -> None:
    assert printable("a\x1b[31mb\r\n\u202ec\x9b\udc80") == "a\\x1b[31mb\\r\\n\\u202ec\\x9b\\udc80"
    assert printable("Türöffner 猫 ½\u00a0", lines=True) == "Türöffner 猫 ½\u00a0"
    assert printable("a\nb\x07", lines=True) == "a\nb\\x07"


def test_the_reason_of_a_database_is_one_line_without_a_question() -> None:
    error = (
        'connection failed: connection to server at "127.0.0.1", port 5432 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    assert reason_of(error).endswith("port 5432 failed: Connection refused")
    assert reason_of("first\n  second postgresql://me:secret@db/x") == "first second postgresql://***@db/x"


def test_tables_and_messages_cannot_control_the_terminal() -> None:
    console = SafeConsole(file=io.StringIO(), force_terminal=True)
    console.print(Text("cat\x1b]0;title\x1b\\ dog", style="bold"))
    written = console.file.getvalue()
    assert "\x1b]" not in written
    assert "\\x1b]0;title" in written


def test_a_name_cannot_pass_for_a_message() -> None:
    lines = message_lines("class 'a\nvitsearch: all is well\x1b[0m' is empty").split("\n")
    assert [line.startswith("vitsearch") for line in lines] == [False, False]
    assert "\x1b" not in "".join(lines)


def test_log_messages_are_one_line_without_secrets() -> None:
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "%s\nb: password=hunter22\x1b[0m", ("x",), None)
    text = SafeFormatter().format(record)
    assert text.startswith("x\\nb: password=***")
    assert text.isprintable()
