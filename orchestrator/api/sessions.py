"""Browser sessions: a cookie that is made from a token and ends with it."""

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from orchestrator.api.auth import COOKIE, token_caller
from orchestrator.api.errors import RequestError
from orchestrator.api.rendering import page_response
from orchestrator.service.access_tokens import TokenRefusedError, check_token

SESSION_S = 12 * 3600
_MAX_FORM_BYTES = 4096

router = APIRouter(include_in_schema=False)


@router.get("/login")
def login_page(request: Request, to: str = "/") -> Response:
    """Asks for a token, and says why a session has ended."""
    return page_response(request, "login.html", problem=_end_of_session(request), to=_local(to))


@router.post("/login")
async def begin_session(request: Request) -> Response:
    """Begin a session with the token of a form. The cookie is sent to this site only, and scripts cannot read it."""
    raw = await request.body()
    form = parse_qs(raw[:_MAX_FORM_BYTES].decode("utf-8", "replace"))
    to = _local(form.get("to", ["/"])[0])
    token = form.get("token", [""])[0].strip()
    try:
        await run_in_threadpool(token_caller, request.app.state.home.store, token)
    except RequestError as error:
        return page_response(request, "login.html", status=401, problem=str(error), to=to)
    response = RedirectResponse(to, status_code=303)
    is_secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, token, max_age=SESSION_S, httponly=True, samesite="strict", secure=is_secure)
    return response


@router.post("/logout")
def end_session() -> Response:
    """End a session."""
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _end_of_session(request: Request) -> str | None:
    """Why the session of a request has ended; `None` if it has not, or has none."""
    store, token = request.app.state.home.store, request.cookies.get(COOKIE)
    if store is None or token is None:
        return None
    try:
        check_token(store, token)
    except TokenRefusedError as error:
        return f"Your session has ended: {error}"
    return None


def _local(path: str) -> str:
    """A path of this site; the start page for anything else."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_local else "/"
