"""Renders pages from templates."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page_response(
    request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page as a response. Templates know the caller, if there is one."""
    caller = getattr(request.state, "caller", None)
    text = _environment.get_template(template).render(version=request.app.version, caller=caller, **values)
    return HTMLResponse(text, status_code=status, headers=dict(headers or {}))


def duration_text(seconds: float | None) -> str:
    """A time span for people."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _ago(moment: float) -> str:
    """A moment as its distance from now."""
    seconds = max(time.time() - moment, 0.0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _exact(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


_environment.filters.update(duration=duration_text, ago=_ago, moment=_moment, percent=_percent, exact=_exact)
