"""Output of the command line: results on stdout, everything else on stderr."""

import json
import math
import re
import sys
import textwrap
from typing import Any, NoReturn

from rich.console import Console

_COMMAND = re.compile(r"(?<=: )(vitsearch|pip|make|python) .*$")
"""A command at the end of a line."""

stdout = Console(highlight=False, soft_wrap=False)
stderr = Console(stderr=True, highlight=False)


def out(value: Any) -> None:
    """Print a result for people: text or a rich renderable."""
    if isinstance(value, str):
        stdout.print(value, markup=False, soft_wrap=True)
    else:
        stdout.print(value, crop=False)


def print_json(value: Any) -> None:
    """Print a result for programs as one JSON document; non-finite numbers become null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def note(message: str) -> None:
    """Print a message, such as progress, on stderr."""
    _say(message)


def fail(message: str, *, status: int) -> NoReturn:
    """Print an error on stderr and exit with a status."""
    _say(f"vitsearch: {message}")
    sys.exit(status)


def _say(message: str) -> None:
    """Print a message on stderr: wrapped between words in a terminal, one line for each of its lines elsewhere."""
    text = wrapped(message, stderr.width) if stderr.is_terminal else message
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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
