"""Converts names, values and addresses to the form that MLflow accepts."""

import math
import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from orchestrator.tracking.events import ParamValue

REPORT_FILE = "report.html"
"""Name of the report on a study, in its folder and in MLflow."""
_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_MAX_NAME_LENGTH = 250
_FOUR_DIGITS = 1000


def clean_name(name: str) -> str:
    """A metric, parameter or tag name that MLflow accepts: no brackets, and no path that leads elsewhere."""
    cleaned = posixpath.normpath(re.sub(r"[^\w.\- /]", "_", name.strip()) or "_").lstrip("/")
    return (f"_{cleaned}" if cleaned.startswith("..") or cleaned in {"", "."} else cleaned)[:_MAX_NAME_LENGTH]


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with names that MLflow accepts, and values cut to its limit."""
    return {clean_name(name): value[:_MAX_TAG_LENGTH] for name, value in tags.items()}


def param_text(value: "ParamValue") -> str:
    """A value as short text for a table; a trial's tag `vitsearch.point` and its configuration file have all digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{short(value):.12g}" if isinstance(value, float) else str(value)[:_MAX_PARAM_LENGTH]


def short(value: float) -> float:
    """A number with four significant digits, for a table. Whole numbers, and the whole part of others, are kept."""
    if not math.isfinite(value) or value == int(value):
        return value
    return float(round(value)) if abs(value) >= _FOUR_DIGITS else float(f"{value:.4g}")


def same_text(one: str, other: str) -> bool:
    """Whether two texts of a parameter are equal, except for digits that `short` leaves out."""
    if one == other:
        return True
    try:
        return short(float(one)) == short(float(other))
    except ValueError:
        return False


def trial_name(
    number: int,
    *,
    result: str | None = None,
    parameters: float | None = None,
    is_champion: bool = False,
) -> str:
    """The name of a trial's run, such as `05 · 99.2 % · 332k`; a star marks the champion.

    Args:
        number: Number of the trial.
        result: How it ended, such as `99.2 %` or `failed`.
        parameters: Number of parameters of its model.
        is_champion: Whether the champion comes from it.
    """
    parts = [f"{number:02d}", *([result] if result else []), *([count_text(parameters)] if parameters else [])]
    return ("★ " if is_champion else "") + " · ".join(parts)


def count_text(count: float) -> str:
    """A large count as short text, such as `332k` or `3.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.0f}{letter}" if scaled >= 100 or letter == "k" else f"{scaled:.3g}{letter}"
    return f"{count:.0f}"


def slug(name: str) -> str:
    """A name in the form of a folder name."""
    return quote(name, safe=" ").replace(" ", "-").replace("%", "_").strip(".")[:150] or "experiment"


def is_http(uri: str) -> bool:
    """Whether the address is a tracking server, not a database."""
    return uri.startswith(("http://", "https://"))
