"""Who sends a request, and what they may do."""

import hashlib
import hmac
import logging
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.errors import RequestError
from orchestrator.service.access_tokens import TokenRefusedError, check_token
from orchestrator.store.repository import Store
from orchestrator.store.service_records import Role
from orchestrator.store.study_names import home_owner

COOKIE = "vitsearch_session"
CSRF_HEADER = "X-CSRF-Token"
_SAFE = ("GET", "HEAD", "OPTIONS")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    owner: str
    role: Role
    token: str | None = None
    """The `uid` of the token; `None` for the single user of a service without tokens."""
    csrf: str = ""
    """What a page must send with a request that changes something."""

    def may_see(self, owner: str) -> bool:
        """Whether a study of an owner is visible although it is not shared."""
        return self.role == "admin" or owner == self.owner

    def may_submit(self) -> bool:
        """Whether studies can be submitted."""
        return self.role != "viewer"

    def may_change(self, owner: str) -> bool:
        """Whether a study of an owner can be cancelled, extended, shared and deleted."""
        return self.role == "admin" or (self.role == "submitter" and owner == self.owner)


def caller_of(request: Request) -> Caller:
    """The caller of a request, from its token or from the cookie of a browser session.

    Raises:
        RequestError: There is no valid token, or a page did not prove that it is ours.
    """
    known: Caller | None = getattr(request.state, "caller", None)
    if known is None:
        known = request.state.caller = _identify(request)
    return known


CallerOf = Annotated[Caller, Depends(caller_of)]


def csrf_of(text: str) -> str:
    """What a page of a session with a token must send. Pages of other sites cannot know it."""
    return hmac.new(text.encode("utf-8", "surrogatepass"), b"csrf", hashlib.sha256).hexdigest()[:32]


def token_caller(store: Store | None, text: str) -> Caller:
    """The caller with a token.

    Raises:
        RequestError: The token is not valid.
    """
    try:
        if store is None:
            raise TokenRefusedError("there are none yet")
        token = check_token(store, text)
    except TokenRefusedError as error:
        if store is not None and error.uid is not None:  # unknown ones are not stored: anyone could fill the log
            store.audit_log().add(
                error.owner or "anonymous", "token.use", error.uid, outcome="refused", token=error.uid
            )
        _logger.warning("a request was refused: %s", error)
        raise RequestError(401, "not-authenticated", str(error), headers={"WWW-Authenticate": "Bearer"}) from None
    return Caller(owner=token.owner, role=token.role, token=token.uid, csrf=csrf_of(text))


def _identify(request: Request) -> Caller:
    if not request.app.state.needs_token:
        return Caller(owner=home_owner(), role="admin")
    store = request.app.state.home.store
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme:
        if scheme.lower() != "bearer":
            raise RequestError(
                401,
                "not-authenticated",
                "the Authorization header must be `Bearer TOKEN`, but has another scheme. Correct it.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return token_caller(store, given.strip())
    session = request.cookies.get(COOKIE)
    if session is None:
        raise RequestError(
            401,
            "not-authenticated",
            "a request must have an access token, but this one has none. Set VITSEARCH_TOKEN, or send the header "
            "`Authorization: Bearer TOKEN`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    caller = token_caller(store, session)
    sent = request.headers.get(CSRF_HEADER, "").encode("utf-8", "surrogateescape")
    if request.method not in _SAFE and not hmac.compare_digest(sent, caller.csrf.encode()):
        raise RequestError(
            403,
            "other-site",
            "a page that changes something must be one of this service, but did not prove it. Reload it.",
        )
    return caller
