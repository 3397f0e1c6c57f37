"""The tables. A change here needs a migration in `migrations/versions/`; a test compares them."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)


class Words(TypeDecorator[str]):
    """Arbitrary text, such as an exception's. Characters that a database cannot store are escaped."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite increments row numbers only for a plain INTEGER primary key.
_Id = BigInteger().with_variant(Integer, "sqlite")
_RUN_STATES = "('waiting', 'running', 'interrupted', 'complete', 'failed')"

studies = Table(
    "studies",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("spec", JSON, nullable=False),
    Column("spec_digest", String(64), nullable=False),
    Column("data_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Words),
    Column("owner", String(128), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint(f"state IN {_RUN_STATES}", name="state"),
)

executions = Table(
    "executions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Words),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("code_version", String(64), nullable=False),
    Column("setup", JSON),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    UniqueConstraint("study_id", "number"),
    CheckConstraint(f"state IN {_RUN_STATES[:-1]}, 'lost')", name="state"),
)

stages = Table(
    "stages",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Words),
    Column("result", JSON, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    UniqueConstraint("study_id", "position"),
    CheckConstraint(f"state IN {_RUN_STATES}", name="state"),
)

_IS_OPEN = "state IN ('waiting', 'running')"
_OPEN = text(_IS_OPEN)
OPEN_TRIALS = text(f"trials.{_IS_OPEN}")
"""As in the index: SQLite does not use it for a condition whose values are bound."""

trials = Table(
    "trials",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("stage_id", ForeignKey("stages.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("point", JSON, nullable=False),
    Column("sampler_state", JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("details", JSON, nullable=False),
    Column("reason", Words),
    Column("error", String(16)),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    UniqueConstraint("stage_id", "number"),
    CheckConstraint("state IN ('waiting', 'running', 'complete', 'stopped', 'failed')", name="state"),
    Index("ix_trials_stage_id", "stage_id", "id"),
    Index("ix_trials_open", "stage_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("trial_id", ForeignKey("trials.id", ondelete="CASCADE"), nullable=False),
    Column("execution_id", ForeignKey("executions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    UniqueConstraint("trial_id", "number"),
    CheckConstraint("state IN ('running', 'complete', 'stopped', 'failed', 'interrupted', 'lost')", name="state"),
)

reports = Table(
    "reports",
    metadata,
    Column("trial_id", ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("values", JSON, nullable=False),
    Column("reported_at", Float, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("trial_id", ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
)

# Almost all events were delivered; the queries for the others must not read those.
_OWED = text("delivered_at IS NULL")

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("study_id", ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("event", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("delivered_at", Float),
    Column("num_tries", Integer, nullable=False, default=0),
    Column("error", Words),
    Column("rejected", Integer, nullable=False, default=0),
    Index("ix_outbox_owed", "study_id", "rejected", "id", sqlite_where=_OWED, postgresql_where=_OWED),
)

tracked_runs = Table(
    "tracked_runs",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("run_id", String(64), nullable=False),
)

# Belongs to no study: all studies share the scores.
proxy_scores = Table(
    "proxy_scores",
    metadata,
    Column("topology", Text, primary_key=True),
    Column("data", String(64), primary_key=True),
    Column("seed", BigInteger, primary_key=True, autoincrement=False),
    Column("proxy", String(128), primary_key=True),
    Column("settings", String(64), primary_key=True),
    Column("code", String(64), primary_key=True),
    Column("value", Float),
    Column("spread", Float),
    Column("reason", Words),
    Column("wall_time_s", Float, nullable=False),
    Column("created_at", Float, nullable=False),
)

# --- the service ---

_ACTIVE = text("state IN ('waiting', 'running')")

# A study file that someone submitted. The driver creates the study of its name when it first runs.
submissions = Table(
    "submissions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("owner", String(128), nullable=False),
    Column("name", String(64), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_text", Words, nullable=False),
    Column("wants", JSON, nullable=False),
    Column("retry_failed", Boolean, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("idempotency_key", String(128)),
    Column("request_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Words),
    Column("cancel_requested", Boolean, nullable=False),
    Column("pool", String(255)),
    Column("devices", JSON),
    Column("replica", String(64)),
    Column("lease", Integer, nullable=False),
    Column("lease_until", Float),
    Column("heartbeat_at", Float),
    Column("host", String(255)),
    Column("pid", Integer),
    Column("num_deaths", Integer, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("device_time_s", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("webhook", JSON(none_as_null=True)),
    UniqueConstraint("owner", "idempotency_key"),
    CheckConstraint(f"state IN {_RUN_STATES[:-1]}, 'cancelled')", name="state"),
    Index("ix_submissions_waiting", "state", "owner", "priority", "id"),
    Index("ix_submissions_name", "name"),
    Index("uq_submissions_active", "name", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
)

# Requests about submissions that have ended. They outlive the submissions, so that deleting a study loses none.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("submission", String(32), nullable=False, index=True),
    Column("owner", String(128), nullable=False),
    Column("target", JSON(none_as_null=True)),
    Column("content", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("due_at", Float, nullable=False),
    Column("num_tries", Integer, nullable=False),
    Column("error", Words),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    CheckConstraint("state IN ('waiting', 'delivered', 'failed')", name="state"),
    Index("ix_webhooks_due", "state", "due_at"),
)

owners = Table(
    "owners",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("weight", Float, nullable=False),
    Column("used_s", Float, nullable=False),
    Column("used_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("owner", String(128), nullable=False),
    Column("role", String(16), nullable=False),
    Column("label", Words, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("last_used_at", Float),
    CheckConstraint("role IN ('viewer', 'submitter', 'admin')", name="role"),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("token", String(32)),
    Column("action", String(64), nullable=False),
    Column("subject", Words, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("details", JSON, nullable=False),
    CheckConstraint("outcome IN ('done', 'refused')", name="outcome"),
)
