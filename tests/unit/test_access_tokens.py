"""Access tokens and the audit log."""

import pytest
from sqlalchemy import text

from orchestrator.service.access_tokens import (
    TokenError,
    TokenRefusedError,
    check_token,
    create_token,
    list_tokens,
    revoke_token,
)
from orchestrator.store.database import connect
from orchestrator.store.repository import Store


@pytest.fixture
def store(empty_store: Store) -> Store:
    return empty_store


def test_a_token_identifies_its_owner_until_it_is_revoked(store: Store) -> None:
    record, secret = create_token(store, "alice", "submitter", days=30, label="laptop")
    assert check_token(store, secret).uid == record.uid
    (listed,) = list_tokens(store)
    assert (listed.owner, listed.role, listed.label) == ("alice", "submitter", "laptop")
    assert listed.last_used_at is not None
    assert listed.expires_at - listed.created_at == pytest.approx(30 * 86_400)
    revoke_token(store, record.uid)
    with pytest.raises(TokenRefusedError, match="revoked") as refused:
        check_token(store, secret)
    assert (refused.value.owner, refused.value.uid) == ("alice", record.uid)


def test_an_expired_unknown_or_altered_token_is_refused_without_repeating_it(store: Store) -> None:
    record, secret = create_token(store, "alice", "viewer", days=1e-9)
    with pytest.raises(TokenRefusedError, match="expired"):
        check_token(store, secret)
    for wrong in (
        "",
        "x",
        f"vst_{record.uid}_",
        f"vst_{record.uid}_wrong",
        f"{secret}x",
        "vst__a",
        "vst_\x00_\udc80",
        "ü" * 999,
    ):
        with pytest.raises(TokenRefusedError, match="unknown") as refused:
            check_token(store, wrong)
        assert wrong == "" or len(wrong) < 2 or wrong not in str(refused.value)
        assert refused.value.owner is None


def test_the_secret_is_stored_nowhere(store: Store, migrated_database: str) -> None:
    _, secret = create_token(store, "alice", "admin", days=1)
    check_token(store, secret)
    engine = connect(migrated_database)
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM tokens"))
    engine.dispose()
    assert secret.split("_", 2)[2] not in str(row)


def test_wrong_tokens_are_not_created(store: Store) -> None:
    for owner, days in (("", 1), ("Alice Doe", 1), ("a~b", 1), ("alice", 0), ("alice", 1e9), ("alice", float("nan"))):
        with pytest.raises(TokenError, match="must be"):
            create_token(store, owner, "viewer", days=days)
    assert list_tokens(store) == []
    _, secret = create_token(store, "alice", "viewer", days=1)
    with pytest.raises(TokenError, match="token list") as refused:
        revoke_token(store, secret)
    assert secret not in str(refused.value)


def test_the_audit_log_is_read_in_pages_newest_first(store: Store) -> None:
    log = store.audit_log()
    for number in range(3):
        log.add("alice", "submit", f"s{number}", token="t1", details={"priority": number})
    log.add("anonymous", "cancel", "s0\x00\n", outcome="refused")
    newest, second = log.page(limit=2)
    assert (newest.actor, newest.outcome, newest.subject) == ("anonymous", "refused", "s0\\x00\n")
    assert (second.subject, second.details, second.token) == ("s2", {"priority": 2}, "t1")
    assert [event.subject for event in log.page(before=second.id)] == ["s1", "s0"]
