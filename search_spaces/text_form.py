"""Parser for the text forms of topologies; errors name the position of the character."""

import re
from collections.abc import Callable, Collection
from typing import Any, NoReturn

MAX_NUMBER = 9999
"""Largest integer in a text form."""
MAX_BLOCKS = 1000
"""Largest number of blocks of a stage."""
NUM_DECIMALS = 4
"""Maximum number of decimals of a number."""

_WHOLE = re.compile(r"[0-9]{1,4}", re.ASCII)
_DECIMAL = re.compile(rf"[0-9]{{1,4}}(\.[0-9]{{1,{NUM_DECIMALS}}})?", re.ASCII)


def read_part(
    text: str,
    part: str,
    start: int,
    where: str,
    names: tuple[str, ...],
    num_required: int,
    check: Callable[[str, Any], str | None],
    *,
    decimals: Collection[str] = (),
) -> dict[str, Any]:
    """Parse the comma-separated numbers of one part.

    Args:
        text: The whole text form.
        part: The part to parse.
        start: Index of the part's first character in `text`.
        where: Name of the part in messages.
        names: Names of the numbers, in order.
        num_required: Number of required numbers; the remaining ones are optional.
        check: Called with a name and a number; returns the problem (`must be ..., but got ...`) or `None`.
        decimals: Names of the numbers that may have decimals. They become floats, the others integers.

    Raises:
        ValueError: The part is malformed, or `check` rejects a number; the message names the character.
    """
    pieces = part.split(",")
    if not num_required <= len(pieces) <= len(names):
        optional = "".join(f"[,{name}]" for name in names[num_required:])
        form = ",".join(names[:num_required]) + optional
        fail(text, start, where, f"must be written {form}, but got {shown(part)}.")
    found: dict[str, Any] = {}
    position = start
    for name, piece in zip(names, pieces, strict=False):
        pattern, kind, form = (
            (_DECIMAL, float, f"a number of up to 4 digits with up to {NUM_DECIMALS} decimals")
            if name in decimals
            else (_WHOLE, int, "a whole number of up to 4 digits")
        )
        if not pattern.fullmatch(piece.strip()):
            fail(text, position, f"{name} of {where}", f"must be {form}, but got {shown(piece)}.")
        found[name] = kind(piece)
        problem = check(name, found[name])
        if problem:
            fail(text, position, f"{name} of {where}", problem)
        position += len(piece) + 1
    return found


def fail(text: str, position: int, what: str, problem: str) -> NoReturn:
    """Raise ValueError at the character with index `position` in `text`."""
    raise ValueError(f"at character {position + 1} of {shown(text)}: {what} {problem}")


def shown(text: str) -> str:
    """Text for a message, quoted and shortened."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def decimal(value: float) -> str:
    """A number in a text form, such as `4` or `3.5`."""
    return f"{value:.{NUM_DECIMALS}f}".rstrip("0").rstrip(".")
