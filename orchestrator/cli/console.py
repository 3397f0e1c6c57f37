"""Output of the command line: results on stdout, everything else on stderr."""

import json
import re
import sys
import textwrap
from collections.abc import Iterable
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.segment import Segment

from orchestrator.reports.finite import finite
from orchestrator.safe_text import printable, without_secrets

_COMMAND = re.compile(r"(?<=: )(vitsearch|pip|make|python) .*$")
"""A command at the end of a line."""


class SafeConsole(Console):
    """A console that shows no secrets, and escapes for the characters with which names could control a terminal."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(_safe(segment.text), segment.style) for segment in buffer
        )


stdout = SafeConsole(highlight=False, soft_wrap=False)
stderr = SafeConsole(stderr=True, highlight=False)


def plugins_print_on_stderr() -> AbstractContextManager[object]:
    """Inside the context, what plug-ins print goes to stderr, since stdout has the results for programs."""
    return redirect_stdout(sys.stderr)


def out(value: Any) -> None:
    """Print a result for people: a rich renderable, or text, which is wrapped between words in a terminal."""
    if isinstance(value, str):
        text = _safe(value)
        stdout.print(wrapped(text, stdout.width) if stdout.is_terminal else text, markup=False, soft_wrap=True)
    else:
        stdout.print(value, crop=False)


def print_json(value: Any) -> None:
    """Print a result for programs as one JSON document; non-finite numbers become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False)
    escaped = (one if one == "\n" or one.isprintable() else json.dumps(one)[1:-1] for one in text)
    sys.stdout.write((text if text.isascii() else "".join(escaped)) + "\n")


def print_text(text: str) -> None:
    """Print the content of a file, such as a table of comma-separated values. On a terminal, it is made printable."""
    sys.stdout.write(printable(text, lines=True) if sys.stdout.isatty() else text)


def busy(message: str) -> AbstractContextManager[object]:
    """Inside the context, a terminal shows what the command is doing."""
    return stderr.status(escape(_safe(message)))


def note(message: str) -> None:
    """Print a message, such as progress, on stderr."""
    _say(message)


def fail(*messages: str, status: int) -> NoReturn:
    """Print errors on stderr and exit with a status."""
    for index, message in enumerate(messages):
        _say(message if index else f"vitsearch: {message}")
    sys.exit(status)


def message_lines(message: str) -> str:
    """A message in which only its first line begins at the left edge, so that no name in it can pass for a message."""
    first, *others = _safe(message).split("\n")
    return "\n".join([first, *(line if line.startswith(" ") else f"  {line}" for line in others)])


def _safe(text: str) -> str:
    return without_secrets(printable(text, lines=True))


def _say(message: str) -> None:
    """Print a message on stderr: wrapped between words in a terminal, one line for each of its lines elsewhere."""
    lines = message_lines(message)
    text = wrapped(lines, stderr.width) if stderr.is_terminal else lines
    stderr.print(text, markup=False, soft_wrap=True)


def wrapped(message: str, width: int) -> str:
    """Wrap each line of a message between words, with an indent. A command at its end stays whole, to be copied."""
    return "\n".join(part for line in message.split("\n") for part in _wrapped_line(line, width))


def _wrapped_line(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    command = _COMMAND.search(line)
    text = line if command is None else line[: command.start()]
    parts = textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return parts if command is None else [*parts, f"  {command.group()}"]
