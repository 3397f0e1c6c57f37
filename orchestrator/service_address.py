"""What an address that should be a vitsearch service must look like, and what was found there instead."""

import re
import socket
import ssl
from collections.abc import Iterator
from html import unescape
from urllib.parse import urlsplit

CORRECT = "Correct the address (`--server` or VITSEARCH_SERVER), or start the service with: vitsearch serve"
PROXY_FAILURES = frozenset({502, 503, 504})
"""Statuses with which a web server answers in place of the service behind it."""
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_SHOWN = 60


def checked_address(given: str) -> str:
    """The address of a service, without a slash at its end.

    Raises:
        ValueError: It has no scheme, host or valid port. The message says what it must be.
    """
    if not given.startswith(("http://", "https://")):
        example = f"http://{given}" if re.fullmatch(r"[\w.\-]+(:\d+)?/?", given) else "http://127.0.0.1:8000"
        raise ValueError(f"must be an address that begins with http:// or https://, such as {example}")
    try:
        parts = urlsplit(given)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError("must be an address with a host and, if one is given, a port, such as http://127.0.0.1:8000")
    return given.rstrip("/")


def no_service_text(url: str, *, page: str, server: str | None, status: int) -> str:
    """One sentence about a server that is not a vitsearch service, and what to do.

    Args:
        url: The address.
        page: The beginning of its start page; empty if it has none.
        server: The software that it names in its answers.
        status: Status of its answer to the request.
    """
    found = _TITLE.search(page)
    title = " ".join(unescape(found[1]).split())[:_SHOWN] if found else ""
    if title.lower().startswith("mlflow"):
        what = "an MLflow server"
    elif title:
        what = f"a web server with the page {title!r}"
    else:
        what = f"a web server ({server[:_SHOWN]})" if server else "another web server"
    return f"{url} is not a vitsearch service: {what} answers there, with status {status}. {CORRECT}"


def unreachable_text(url: str, error: BaseException) -> str:
    """One sentence about an address at which no web server answers, and what to do."""
    causes = list(_causes(error))
    host = urlsplit(url).hostname
    if any(isinstance(one, socket.gaierror) for one in causes):
        why = f"its host name {host!r} is unknown"
    elif any(isinstance(one, ssl.SSLCertVerificationError) for one in causes):
        why = f"the certificate of {host} is not valid ({causes[-1]})"
    elif any(isinstance(one, ssl.SSLError) for one in causes):
        why = "it offers no secure connection: write http:// instead of https://, or enable HTTPS there"
    elif any(isinstance(one, ConnectionRefusedError) for one in causes):
        why = "nothing answers there (connection refused)"
    elif any(isinstance(one, TimeoutError) for one in causes):
        why = "it has not answered in time"
    else:
        why = f"it does not answer as a web server does ({str(error).rstrip('.') or type(error).__name__})"
    return f"the service at {url} must answer, but {why}. {CORRECT}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
