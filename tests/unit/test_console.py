"""Messages of the command line: wrapped between words in a terminal, with commands that can be copied."""

import io

import pytest

from orchestrator.cli import console
from orchestrator.cli.console import wrapped


def test_a_short_message_is_left_alone() -> None:
    assert wrapped("vitsearch: interrupted", 80) == "vitsearch: interrupted"


def test_a_long_message_is_wrapped_between_words_with_an_indent() -> None:
    lines = wrapped(f"vitsearch: {'a word ' * 30}".strip(), 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert all(line.startswith(("  a ", "  word")) for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"vitsearch: {'a word ' * 30}".strip()


def test_a_command_at_the_end_stays_on_one_line() -> None:
    command = "vitsearch run studies/photos.yaml --data /a/long/path/to/the/photos"
    text = f"interrupted; every finished trial and epoch is kept. Resume with: {command}"
    assert wrapped(text, 60).splitlines() == [
        "interrupted; every finished trial and epoch is kept. Resume",
        "  with:",
        f"  {command}",
    ]


def test_a_path_is_never_broken_and_each_mistake_begins_a_line() -> None:
    path = "/home/somebody/studies/of/last/year/photos.yaml:12:"
    text = f"vitsearch: {path} must be a number, but got 'x'.\n{path} must be text, but got 3."
    lines = wrapped(text, 40).splitlines()
    assert sum(path in line for line in lines) == 2
    assert lines[0] == "vitsearch:"
    assert path in lines


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_result_is_wrapped_in_a_terminal_only(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.stdout, "width", 30)
    monkeypatch.setattr(console.stdout, "_force_terminal", is_terminal)
    console.out("study 'digits' stops after its current step")
    lines = capsys.readouterr().out.splitlines()
    assert lines == (
        ["study 'digits' stops after its", "  current step"]
        if is_terminal
        else ["study 'digits' stops after its current step"]
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_shows_what_a_command_is_doing(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "stderr", console.SafeConsole(file=written, force_terminal=is_terminal))
    with console.busy("exporting [a] ..."):
        pass
    assert ("exporting [a] ..." in written.getvalue()) == is_terminal
    assert is_terminal or not written.getvalue()
