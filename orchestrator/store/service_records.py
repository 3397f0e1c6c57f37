"""Rows of the service's tables as plain data. Times are seconds since 1970, UTC, by the clock of the database."""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SubmissionState = Literal["waiting", "running", "interrupted", "complete", "failed", "cancelled"]
ACTIVE: frozenset[str] = frozenset({"waiting", "running"})
"""States in which a submission is not over."""
Role = Literal["viewer", "submitter", "admin"]
Outcome = Literal["done", "refused"]
WebhookState = Literal["waiting", "delivered", "failed"]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class WantedDevices(_Row):
    """The devices that a study file asks for; `None` leaves the choice to the driver."""

    gpus_per_trial: float | None = None
    num_trials: int | None = None
    """Maximum number of concurrent trials."""
    needs_cluster: bool = False
    """Whether it runs on the Ray cluster, where the service has one."""


class WebhookTarget(_Row):
    """Where the end of a study is announced, and with what the message is signed."""

    url: str = Field(repr=False)
    """Its path is often a secret, too."""
    secret: str = Field(repr=False)


def state_words(state: str, reason: str | None) -> str:
    """The state of a submission as a verb with its reason, such as `is running` or `waits for its turn`."""
    if reason and reason.startswith("waits "):
        return reason
    return f"is {state}: {reason}" if reason else f"is {state}"


class SubmissionRecord(_Row):
    """A study file that someone submitted, and what became of it."""

    id: int
    uid: str
    """Identifies the submission; a study has several if its file is submitted again to extend it."""
    owner: str
    name: str
    """Name of the study in the database: `OWNER~NAME`, or `NAME` if it belongs to the owner of the home."""
    wants: WantedDevices
    retry_failed: bool
    shared: bool
    """Whether other owners may see the study."""
    priority: int
    idempotency_key: str | None
    request_digest: str
    state: SubmissionState
    reason: str | None
    """Why it waits, failed or was interrupted."""
    cancel_requested: bool
    pool: str | None
    """The machine or cluster that runs it, or ran it last."""
    devices: dict[str, float] | None
    """Share of each GPU of the pool that it has, by index; `{"*": n}` counts n GPUs of a cluster."""
    replica: str | None
    lease: int
    """Counts the claims: the fencing token of the current one."""
    lease_until: float | None
    heartbeat_at: float | None
    host: str | None
    pid: int | None
    num_deaths: int
    """Number of drivers that died one after another without any progress."""
    progress: int
    """Id of the newest execution of the study when the lease began."""
    device_time_s: float
    has_webhook: bool
    """Whether its end is announced."""
    created_at: float
    started_at: float | None
    ended_at: float | None
    num_ahead: int | None = None
    """Waiting submissions of the same owner that came first when it was added; `None` if they were not counted."""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    @property
    def num_gpus(self) -> float:
        """GPUs that it has now."""
        return sum((self.devices or {}).values())


class NewSubmission(NamedTuple):
    """What a new submission consists of."""

    uid: str
    owner: str
    name: str
    spec: dict[str, Any]
    spec_text: str
    wants: WantedDevices
    request_digest: str
    """Digest of everything that a request with the same idempotency key must repeat."""
    priority: int = 0
    idempotency_key: str | None = None
    retry_failed: bool = False
    shared: bool = False
    webhook: WebhookTarget | None = None


class WebhookRecord(_Row):
    """A request about the end of a study, and whether it arrived."""

    uid: str
    """Identifies the message, which may be sent more than once."""
    submission: str
    owner: str
    target: WebhookTarget | None
    """`None` when nothing more will be sent."""
    content: dict[str, Any]
    """The submission when it ended."""
    state: WebhookState
    num_tries: int
    error: str | None
    """Why the newest try failed."""
    created_at: float
    ended_at: float | None


class Placement(NamedTuple):
    """The GPUs that a study gets; see `SubmissionRecord.devices`."""

    devices: dict[str, float]


class PoolFull(NamedTuple):
    """No study can start in a pool, whatever it needs."""

    pool: str
    max_studies: int

    @property
    def beginning(self) -> str:
        """What the reasons of this pool begin with, whatever its limit is."""
        return f"waits for its turn: {self.pool} runs at most "

    @property
    def reason(self) -> str:
        """Why all studies wait. It contains nothing that changes while they do."""
        number = "one study" if self.max_studies == 1 else f"{self.max_studies} studies"
        return f"{self.beginning}{number} at a time"


class TokenRecord(_Row):
    """An access token. The secret itself is stored nowhere."""

    uid: str
    owner: str
    role: Role
    label: str
    created_at: float
    expires_at: float
    revoked_at: float | None
    last_used_at: float | None


class Actor(NamedTuple):
    """Who does something, for the audit log."""

    owner: str
    """`anonymous` without a valid token."""
    action: str
    """What, such as `submit` or `token.create`."""
    token: str | None = None
    """The `uid` of the token that is used; never its secret."""


class AuditRecord(_Row):
    """Something that someone did, or tried to do."""

    id: int
    at: float
    actor: str
    token: str | None
    """The `uid` of the token that was used."""
    action: str
    subject: str
    outcome: Outcome
    details: dict[str, Any]
