"""Converts names, values and addresses to the form that MLflow accepts."""

import posixpath
import re
from collections.abc import Mapping
from urllib.parse import quote

from orchestrator.tracking.events import ParamValue

_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 8000
_MAX_NAME_LENGTH = 250


def clean_name(name: str) -> str:
    """A metric, parameter or tag name that MLflow accepts: no brackets, and no path that leads elsewhere."""
    cleaned = posixpath.normpath(re.sub(r"[^\w.\- /]", "_", name.strip()) or "_").lstrip("/")
    return (f"_{cleaned}" if cleaned.startswith("..") or cleaned in {"", "."} else cleaned)[:_MAX_NAME_LENGTH]


def column(name: str) -> str:
    """A column such as `metrics.val_accuracy`, as MLflow's page writes it."""
    group, _, column = name.partition(".")
    return f"{group}.`{clean_name(column)}`"


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with names that MLflow accepts, and values cut to its limit."""
    return {clean_name(name): value[:_MAX_TAG_LENGTH] for name, value in tags.items()}


def param_text(value: ParamValue) -> str:
    """A value as text for a table. Floats have six digits; the configuration file of the run has all."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:_MAX_PARAM_LENGTH]


def slug(name: str) -> str:
    """A name in the form of a folder name."""
    return quote(name, safe=" ").replace(" ", "-").replace("%", "_").strip(".")[:150] or "experiment"


def is_http(uri: str) -> bool:
    """Whether the address is a tracking server, not a database."""
    return uri.startswith(("http://", "https://"))


def shown(text: str) -> str:
    """The text without user names and passwords in its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)
