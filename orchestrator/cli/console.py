"""Output of the command line: results on stdout, everything else on stderr."""

import json
import math
import sys
from typing import Any, NoReturn

from rich.console import Console

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
    stderr.print(message, markup=False, soft_wrap=True)


def fail(message: str, *, status: int) -> NoReturn:
    """Print an error on stderr and exit with a status."""
    stderr.print(f"vitsearch: {message}", markup=False, soft_wrap=True)
    sys.exit(status)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
