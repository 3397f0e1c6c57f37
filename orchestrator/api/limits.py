"""Limits on requests: their size, the hosts that they name, and how many a client may send."""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from urllib.parse import quote

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.errors import RequestError, asks_for_page, problem_response

MAX_BODY_BYTES = 2 * 1024 * 1024
"""Largest body of a request; a study file may have half of it."""
_SAFE = ("GET", "HEAD", "OPTIONS")
PER_S, BURST = 50.0, 300
"""Requests of one client: per second, and at once."""
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RateLimit:
    """Limits how many requests each client sends: `burst` at once, and `per_s` per second on average.

    Args:
        per_s: Requests per second.
        burst: Requests that may come at once.
        clock: Gives the time in seconds.
        max_clients: Clients to remember; those that were silent for longest are forgotten, which only helps them.
    """

    def __init__(
        self, *, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic, max_clients: int = 10_000
    ) -> None:
        self._per_s, self._burst, self._clock, self._max_clients = per_s, burst, clock, max_clients
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Count a request of a client; returns the seconds to wait until the next one is allowed, or 0."""
        now = self._clock()
        left, before = self._left.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - before) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[client] = (left - 1 if wait_s == 0 else left, now)
        while len(self._left) > self._max_clients:
            self._left.popitem(last=False)
        return wait_s


class GuardRequests:
    """Middleware around the whole app: refuses bodies that are too large, answers errors, and adds security headers.

    Args:
        app: The app.
        hosts: Host names that requests may address; `None` for all. A page elsewhere cannot reach a service on this
            machine by a name that it controls.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None = None) -> None:
        self._app, self._hosts = app, hosts
        self._rate = RateLimit(per_s=PER_S, burst=BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        has_begun = False
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _too_large(received)
            return message

        async def secured(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_missing(SECURITY_HEADERS, names)]
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, limited, secured)
        except Exception as error:
            if has_begun:
                if _tells_that_the_client_left(error):
                    return
                raise
            await _answer(Request(scope), error)(scope, receive, secured)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _name_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise RequestError(
                421,
                "wrong-host",
                f"this service must be addressed as {' or '.join(sorted(self._hosts))}, but got {host[:80]!r}. "
                "Start it with --host to serve other machines.",
            )
        wait_s = self._rate.take(_client_of(scope, headers))
        if wait_s > 0:
            raise RequestError(
                429,
                "too-many-requests",
                f"a client may send {PER_S:g} requests per second, and {BURST} at once, but sends more. Wait.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:12]) > MAX_BODY_BYTES:
            raise _too_large(int(length[:12]))
        origin = headers.get("origin")
        if scope["method"] not in _SAFE and origin is not None and _host_of(origin) != headers.get("host", ""):
            raise RequestError(
                403,
                "other-site",
                f"a page may only change what its own site serves, but this one is of {origin[:80]!r}.",
            )


def _answer(request: Request, error: Exception) -> Response:
    """The answer to a failed request: what went wrong, or for a browser without a session the page to log in."""
    if asks_for_page(request) and isinstance(error, RequestError) and error.status == 401:
        return RedirectResponse(f"/login?to={quote(request.url.path, safe='')}", status_code=303)
    return problem_response(request, error)


def _tells_that_the_client_left(error: BaseException) -> bool:
    """Whether an error only means that the receiver of a stream has left."""
    if isinstance(error, BaseExceptionGroup):
        return all(_tells_that_the_client_left(one) for one in error.exceptions)
    return isinstance(error, anyio.BrokenResourceError | ClientDisconnect)


def _client_of(scope: Scope, headers: Headers) -> str:
    """What identifies a client: a digest of its token if it sends one, otherwise its address."""
    secret = headers.get("authorization") or headers.get("cookie")
    if secret:
        return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
    return str((scope.get("client") or ("",))[0])


def _too_large(size: int) -> RequestError:
    return RequestError(
        413, "too-large", f"a request must have at most {MAX_BODY_BYTES:,} bytes, but has {size:,} or more. Send less."
    )


def _missing(headers: Mapping[str, str], names: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode(), value.encode()) for name, value in headers.items() if name.lower().encode() not in names
    ]


def _host_of(origin: str) -> str:
    return origin.partition("://")[2]


def _name_of(host: str) -> str:
    """A host header without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
