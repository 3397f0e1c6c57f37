"""Access tokens: `vst_UID_SECRET`. The secret is shown once, when the token is created."""

import hashlib
import hmac
import secrets

from orchestrator.store.repository import Store
from orchestrator.store.service_records import Role, TokenRecord
from orchestrator.store.study_names import check_owner

PREFIX = "vst"
DAY_S = 86_400.0
MAX_DAYS = 3_650


class TokenError(ValueError):
    """A token cannot be created or revoked as asked."""


class TokenRefusedError(PermissionError):
    """A token is unknown, revoked or expired. The message does not contain it.

    Attributes:
        uid: Identifier of the token if there is one, for the audit log.
        owner: Its owner.
    """

    def __init__(self, why: str, *, uid: str | None = None, owner: str | None = None) -> None:
        self.uid, self.owner = uid, owner
        super().__init__(f"the access token must be valid, but {why}. Ask an admin for another one.")


def create_token(store: Store, owner: str, role: Role, *, days: float, label: str = "") -> tuple[TokenRecord, str]:
    """Create a token; returns its record and its text, which is stored nowhere.

    Args:
        store: The store.
        owner: Whom it identifies.
        role: `viewer` reads, `submitter` also submits and changes own studies, `admin` may do everything.
        days: Days until it expires.
        label: What it is for.

    Raises:
        TokenError: The owner or the number of days is invalid.
    """
    try:
        check_owner(owner)
    except ValueError as error:
        raise TokenError(str(error)) from None
    if not 0 < days <= MAX_DAYS:
        raise TokenError(f"days: must be above 0 and at most {MAX_DAYS}, but got {days:g}. Change it.")
    uid, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    valid_s = days * DAY_S
    record = store.tokens().add(uid, owner=owner, role=role, label=label, sha256=_digest(secret), valid_s=valid_s)
    return record, f"{PREFIX}_{uid}_{secret}"


def list_tokens(store: Store) -> list[TokenRecord]:
    """All tokens, newest first, including expired and revoked ones."""
    return store.tokens().all()


def has_tokens(store: Store) -> bool:
    """Whether access tokens were ever created. When the last one expires, a service does not open itself to all."""
    return bool(list_tokens(store))


def revoke_token(store: Store, uid: str) -> None:
    """Revoke a token at once.

    Raises:
        TokenError: There is none with that identifier.
    """
    if not store.tokens().revoke(uid):
        raise TokenError(
            f"there must be a token {_shown(uid)}, but there is none. `vitsearch token list` shows all identifiers."
        )


def check_token(store: Store, text: str) -> TokenRecord:
    """The record of a valid token; its use is noted.

    Raises:
        TokenRefusedError: It is unknown, revoked or expired.
    """
    prefix, _, rest = text.partition("_")
    uid, _, secret = rest.partition("_")
    found = store.tokens().find(uid) if prefix == PREFIX and secret and uid.isalnum() else None
    digest = _digest(secret)
    if found is None or not hmac.compare_digest(found[1], digest):
        raise TokenRefusedError("it is unknown")
    token, _, now = found
    if token.revoked_at is not None:
        raise TokenRefusedError("it was revoked", uid=token.uid, owner=token.owner)
    if now >= token.expires_at:
        raise TokenRefusedError("it has expired", uid=token.uid, owner=token.owner)
    store.tokens().note_use(token, now)
    return token


def is_valid_token(store: Store, uid: str) -> bool:
    """Whether a token is neither revoked nor expired."""
    found = store.tokens().find(uid)
    return found is not None and found[0].revoked_at is None and found[2] < found[0].expires_at


def _digest(secret: str) -> str:
    # A random secret of 256 bits needs no slow hash.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(uid: str) -> str:
    """An identifier for a message. A whole token given by mistake is not repeated."""
    return repr(uid) if len(uid) <= 12 else f"{uid[:4]!r}..."
