"""Who did what."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from orchestrator.api.auth import CallerOf, caller_of
from orchestrator.api.errors import RequestError
from orchestrator.api.schemas import AuditLine, AuditList

router = APIRouter(prefix="/v1/audit", tags=["operation"], dependencies=[Depends(caller_of)])


@router.get("", summary="Audit log")
def list_audit_events(
    request: Request,
    caller: CallerOf,
    after: Annotated[int | None, Query(ge=0, lt=10**18, description="`next` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="largest number of events")] = 100,
) -> AuditList:
    """Who did what, and what was refused, newest first. Only an admin may read it."""
    if caller.role != "admin":
        raise RequestError(
            403, "not-allowed", f"to read the audit log, the token must have the role admin, but it has {caller.role}."
        )
    store = request.app.state.home.store
    found = store.audit_log().page(before=after, limit=limit + 1) if store else []
    lines = [AuditLine(**one.model_dump(exclude={"id"})) for one in found[:limit]]
    return AuditList(events=lines, next=found[limit - 1].id if len(found) > limit else None)
