"""`vitsearch token`: the access tokens of the service."""

from datetime import UTC, datetime

from rich.table import Table

from orchestrator.cli.console import note, out, print_json
from orchestrator.cli.submitting import opened_store
from orchestrator.settings import load_settings
from orchestrator.store.service_records import Role, TokenRecord


def create_token_command(owner: str, role: Role, *, days: float, label: str, as_json: bool) -> None:
    """Create a token and print it. This is the only time that it can be read."""
    from orchestrator.service.access_tokens import create_token
    from orchestrator.store.study_names import home_owner

    with opened_store(load_settings()) as store:
        record, text = create_token(store, owner, role, days=days, label=label)
        details = {"owner": owner, "role": role, "days": days}
        store.audit_log().add(home_owner(), "token.create", record.uid, details=details)
    if as_json:
        print_json({**record.model_dump(mode="json"), "token": text})
        return
    out(text)
    note(f"The token is shown only now. It identifies {owner} as {role} until {_day(record.expires_at)}.")
    note(f"Revoke it with: vitsearch token revoke {record.uid}")


def list_tokens_command(*, as_json: bool) -> None:
    """Print all tokens, without their secrets."""
    from orchestrator.service.access_tokens import list_tokens

    settings = load_settings()
    with opened_store(settings) as store:
        found, now = list_tokens(store), store.now()
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        out("No tokens yet. Create one with: vitsearch token create OWNER")
        if settings.server:
            note(f"This command does not ask {settings.server}, whose tokens are managed on its machine")
        return
    table = Table("id", "owner", "role", "state", "expires", "last used", "label", box=None, pad_edge=False)
    for one in found:
        used = "never" if one.last_used_at is None else _day(one.last_used_at)
        table.add_row(one.uid, one.owner, one.role, _state(one, now), _day(one.expires_at), used, one.label)
    out(table)


def revoke_token_command(uid: str) -> None:
    """Revoke a token."""
    from orchestrator.service.access_tokens import revoke_token
    from orchestrator.store.study_names import home_owner

    with opened_store(load_settings()) as store:
        revoke_token(store, uid)
        store.audit_log().add(home_owner(), "token.revoke", uid)
    out(f"token {uid} is revoked")


def _state(token: TokenRecord, now: float) -> str:
    return "revoked" if token.revoked_at is not None else "expired" if now >= token.expires_at else "valid"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d")
