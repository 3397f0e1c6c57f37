"""Announces the ends of submitted studies to other services, with signed requests.

The requests follow Standard Webhooks (https://www.standardwebhooks.com): the headers `webhook-id`, `webhook-timestamp`
and `webhook-signature`. Each is sent until it is answered with a status of 2xx, possibly more than once.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import httpx2 as httpx

from orchestrator.reports.summary import study_line
from orchestrator.safe_text import MASK, masked_address, printable, without_secrets
from orchestrator.service.access_tokens import has_tokens
from orchestrator.service.submitting import SubmissionError
from orchestrator.settings import Settings
from orchestrator.store.errors import DatabaseUnavailableError
from orchestrator.store.repository import Store
from orchestrator.store.service_records import WebhookRecord, WebhookTarget

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_TRIES = 30
"""With the pauses of `pause_after`, a request is sent again for about a day."""
POLL_S = 1.0
TIMEOUT_S, DEADLINE_S = 10.0, 30.0
"""For one step of a request, and for all of it. The deadline is shorter than a claim: no other sender repeats it."""
MIN_KEY, MAX_KEY = 24, 64
"""Bytes of a secret, without its prefix and Base64."""
MAX_SECRET, MAX_ADDRESS = 256, 2000
_PREFIX = "whsec_"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AT_ONCE = 4
_GONE = 410
_OF_THE_STUDY = ("metric", "best", "best_text", "test_accuracy")

_logger = logging.getLogger(__name__)


class WebhookError(SubmissionError):
    """The address or the secret of a webhook is not allowed."""


def webhook_target(url: str | None, secret: str | None, settings: Settings, store: Store) -> WebhookTarget | None:
    """The webhook of a submission, checked; `None` without an address.

    Raises:
        WebhookError: The address or the secret is invalid, or requests must not be sent there.
    """
    if url is None:
        return None
    check_receiver(url, settings, only_listed=has_tokens(store))
    if secret is None:
        raise WebhookError(
            "webhook: its requests must be signed, but there is no secret. Set VITSEARCH_WEBHOOK_SECRET, or send the "
            "header Webhook-Secret."
        )
    if not secret.startswith(_PREFIX) or not MIN_KEY <= len(_key(secret)) <= MAX_KEY:
        raise WebhookError(
            f"webhook: the secret must be `{_PREFIX}` with {MIN_KEY} to {MAX_KEY} bytes in Base64 behind it, but this "
            f'one of {len(secret)} characters is not. Make one with: echo "{_PREFIX}$(openssl rand -base64 32)"'
        )
    return WebhookTarget(url=url, secret=secret)


def check_receiver(url: str, settings: Settings, *, only_listed: bool) -> None:
    """Check that requests may be sent to an address.

    Args:
        url: The address.
        settings: Settings of the installation, with the hosts that its administrator allows.
        only_listed: Whether this machine is allowed only if it is listed: in a service for several people.

    Raises:
        WebhookError: It is no address, or its host is not allowed.
    """
    try:
        parsed = httpx.URL(url) if len(url) <= MAX_ADDRESS and url.isprintable() else None
        host = "" if parsed is None else parsed.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, UnicodeError):
        parsed, host = None, ""
    if parsed is None or parsed.scheme not in _DEFAULT_PORTS or not host or parsed.userinfo:
        raise WebhookError(
            f"webhook: must be an address such as https://hooks.example/vitsearch, with at most {MAX_ADDRESS} "
            f"characters and without a user name, but got {printable(masked_address(url))[:200]!r}. Correct it."
        )
    port = parsed.port or _DEFAULT_PORTS[parsed.scheme]
    places = {_place(url), *([host] if port in _DEFAULT_PORTS.values() else [])}
    if not places.isdisjoint(settings.webhook_hosts) or (host in LOOPBACK and not only_listed):
        return
    allowed = ", ".join(settings.webhook_hosts) or ("none" if only_listed else "this machine")
    raise WebhookError(
        f"webhook: the host must be allowed by the administrator, but {host}:{port} is not (allowed: {allowed}). Ask "
        f"for VITSEARCH_WEBHOOK_HOSTS={host}:{port}, or use an allowed one."
    )


def shown_address(url: str) -> str:
    """The scheme, host and port of a webhook's address. The rest is often its only secret."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}/{MASK}"


def signature(secret: str, uid: str, sent_at: int, body: bytes) -> str:
    """The value of `webhook-signature`: HMAC-SHA256 of identifier, time and body."""
    signed = b".".join((uid.encode(), str(sent_at).encode(), body))
    return "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()


def pause_after(num_tries: int) -> float:
    """Seconds before the next try: 5 s after the first, twice as long after each, at most an hour."""
    return float(min(5 * 2 ** min(num_tries - 1, 20), 3600))


class WebhookSender:
    """Sends the requests that are due. Several may share a database.

    Args:
        store: The store.
        settings: Settings of the installation.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._table = store.webhooks()
        self._slots = threading.Semaphore(_AT_ONCE)
        self._busy = set[str]()

    def run(self, stop: threading.Event) -> None:
        """Send requests until `stop`. A receiver that is slow holds up neither studies nor other receivers."""
        while not stop.wait(POLL_S):
            try:
                self.start_due()
            except DatabaseUnavailableError as error:
                _logger.warning("%s", error)
            except Exception:
                _logger.exception("requests of webhooks met an unexpected error")

    def start_due(self) -> list[threading.Thread]:
        """Start to send what is due, each request in a thread of this process, and one at a time to each host."""
        started = []
        while self._slots.acquire(blocking=False):
            record = None
            try:
                record = self._table.claim(may_send=lambda target: _place(target.url) not in self._busy)
            finally:
                if record is None:
                    self._slots.release()
            if record is None or record.target is None:
                break
            place = _place(record.target.url)
            self._busy.add(place)
            thread = threading.Thread(target=self._send_claimed, args=(record, place), name="webhook", daemon=True)
            thread.start()
            started.append(thread)
        return started

    def _send_claimed(self, record: WebhookRecord, place: str) -> None:
        try:
            try:
                self.send(record)
            except DatabaseUnavailableError:
                raise
            except Exception as error:
                _logger.exception("the webhook of study %s met an unexpected error", record.content.get("name"))
                self._not_arrived(record, f"met an unexpected error: {type(error).__name__}")
        except DatabaseUnavailableError as error:
            _logger.warning("%s", error)
        finally:
            self._busy.discard(place)
            self._slots.release()

    def send(self, record: WebhookRecord) -> None:
        """Send a claimed request, and note whether it arrived."""
        assert record.target is not None, "a request that waits has one"
        try:
            check_receiver(record.target.url, self._settings, only_listed=has_tokens(self._store))
            status = asyncio.run(_post(record, record.target, self._body(record)))
            why = f"was answered with status {status}"
        except WebhookError as error:  # the administrator has forbidden the host meanwhile
            self._give_up(record, str(error))
            return
        except httpx.HTTPError as error:
            status, why = 0, f"could not be sent: {error or type(error).__name__}"
        if 200 <= status < 300:
            self._table.delivered(record.uid)
            self._note(record, outcome="done")
            return
        self._not_arrived(record, without_secrets(printable(why)), is_gone=status == _GONE)

    def _not_arrived(self, record: WebhookRecord, why: str, *, is_gone: bool = False) -> None:
        if is_gone or record.num_tries >= MAX_TRIES:
            self._give_up(record, f"it {why}, in {record.num_tries} tries")
        else:
            self._table.put_off(record.uid, f"it {why}", pause_after(record.num_tries))

    def _body(self, record: WebhookRecord) -> bytes:
        content = dict(record.content)
        name = content.pop("name")
        study = self._store.find_study(name)
        line: dict[str, Any] = {} if study is None else study_line(self._store, study)
        data = {"study": name, **content, **{key: line.get(key) for key in _OF_THE_STUDY}}
        ended = datetime.fromtimestamp(record.created_at, UTC).isoformat()
        return json.dumps({"type": "study.ended", "timestamp": ended, "data": data}).encode()

    def _give_up(self, record: WebhookRecord, why: str) -> None:
        self._table.failed(record.uid, why)
        self._note(record, outcome="refused", why=why)
        _logger.warning("the webhook of study %s was given up: %s", record.content["name"], why)

    def _note(self, record: WebhookRecord, *, outcome: Any, **more: str) -> None:
        assert record.target is not None
        details = {"address": shown_address(record.target.url), "tries": record.num_tries, **more}
        name = record.content["name"]
        self._store.audit_log().add(record.owner, "webhook", name, outcome=outcome, details=details)


async def _post(record: WebhookRecord, target: WebhookTarget, body: bytes) -> int:
    sent_at = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "vitsearch",
        "webhook-id": record.uid,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": signature(target.secret, record.uid, sent_at, body),
    }
    # The answer's body is not read, and redirects are not followed: they could lead to a host that is not allowed.
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("POST", target.url, content=body, headers=headers) as response,
        ):
            return response.status_code
    except TimeoutError:
        raise httpx.ReadTimeout(f"there was no whole answer in {DEADLINE_S:g} s") from None


def _place(url: str) -> str:
    """Host and port of an address."""
    parsed = httpx.URL(url)
    return f"{parsed.raw_host.decode('ascii').lower()}:{parsed.port or _DEFAULT_PORTS[parsed.scheme]}"


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        return b""
