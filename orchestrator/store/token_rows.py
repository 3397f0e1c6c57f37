"""Access tokens: only the digest of each secret is stored."""

from sqlalchemy import Engine, bindparam, insert, select, update

from orchestrator.store.database_time import database_time, read_time
from orchestrator.store.prepared_statements import Prepared
from orchestrator.store.reading import reading
from orchestrator.store.retrying import is_repeated, retry_on_outage
from orchestrator.store.service_records import Role, TokenRecord
from orchestrator.store.tables import tokens

_NOTE_USE_S = 60.0
_FIND = Prepared(select(tokens, database_time()).where(tokens.c.uid == bindparam("of_uid")))


@retry_on_outage
class TokenTable:
    """Reads and writes tokens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, uid: str, *, owner: str, role: Role, label: str, sha256: str, valid_s: float) -> TokenRecord:
        """Add a token that expires after `valid_s` seconds."""
        with self._engine.begin() as connection:
            now = read_time(connection)
            if not (is_repeated() and connection.execute(select(tokens.c.id).where(tokens.c.uid == uid)).first()):
                new = {"uid": uid, "owner": owner, "role": role, "label": label, "sha256": sha256}
                connection.execute(insert(tokens).values(**new, created_at=now, expires_at=now + valid_s))
            row = connection.execute(select(tokens).where(tokens.c.uid == uid)).mappings().one()
            return TokenRecord.model_validate(dict(row))

    def all(self) -> list[TokenRecord]:
        """All tokens, newest first, including expired and revoked ones."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(tokens).order_by(tokens.c.id.desc())).mappings()
            return [TokenRecord.model_validate(dict(row)) for row in rows]

    def find(self, uid: str) -> tuple[TokenRecord, str, float] | None:
        """A token, the SHA-256 of its secret, and the time of the database; `None` if there is none."""
        with reading(self._engine) as connection:
            row = _FIND.first(connection, of_uid=uid)
        if row is None:
            return None
        found = dict(zip(tokens.c.keys(), row, strict=False))
        return TokenRecord.model_validate(found), found["sha256"], float(row[-1])

    def note_use(self, token: TokenRecord, now: float) -> None:
        """Note that a token was used, at most once a minute."""
        if token.last_used_at is None or now - token.last_used_at >= _NOTE_USE_S:
            with self._engine.begin() as connection:
                connection.execute(update(tokens).where(tokens.c.uid == token.uid).values(last_used_at=now))

    def revoke(self, uid: str) -> bool:
        """Revoke a token; returns whether there is one."""
        with self._engine.begin() as connection:
            found = connection.execute(select(tokens.c.revoked_at).where(tokens.c.uid == uid)).one_or_none()
            if found is not None and found.revoked_at is None:
                revoked = {"revoked_at": read_time(connection)}
                connection.execute(update(tokens).where(tokens.c.uid == uid).values(**revoked))
            return found is not None
