"""Client of the service, for Python and for the command line."""

import errno
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import httpx2 as httpx

from orchestrator.service_address import CORRECT, PROXY_FAILURES, no_service_text, unreachable_text

_TIMEOUT_S = 60.0
_REPORT_TIMEOUT_S = 600.0
"""A report on a large study is drawn for a while, after others that wait."""
_STREAM_TIMEOUT_S = 45.0
"""The service sends a comment to a silent stream every 15 seconds."""
_RECONNECT_S = (0.2, 1.0, 2.0, 5.0, 10.0, 20.0)
_PAGE_BYTES = 65536
"""How much of another server's start page is read for its title."""
_PAGE_S = 5.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestRefusedError(ValueError):
    """The service refused a request. The text is that of the command line.

    Attributes:
        status: HTTP status.
        problem: The problem document (RFC 9457): `type`, `detail`, for a study file also `errors`.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status, self.problem = status, dict(problem)
        super().__init__(str(problem.get("detail") or f"the service answered with status {status}"))


class ServerUnavailableError(RuntimeError):
    """The service does not answer, or cannot serve the request now."""


class NoServiceError(ServerUnavailableError):
    """The address is not that of a vitsearch service: another server answers there."""


class ServerEvent(NamedTuple):
    """An event of a study: `study`, `stage`, `trial`, `report` or `end`."""

    kind: str
    id: str
    """Send it as `after` to continue behind this event."""
    data: dict[str, Any]


class Client:
    """Talks to one service. Use it as a context manager, or call `close`.

    Args:
        url: Address of the service, such as `https://vitsearch.example`.
        token: Access token; a service on this machine that serves a single user needs none.
        http: The HTTP client to use instead of a new one.

    Raises:
        RequestRefusedError: By all methods, if the service refuses a request.
        ServerUnavailableError: By all methods, if it does not answer.
    """

    def __init__(self, url: str, token: str | None = None, *, http: httpx.Client | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http or httpx.Client(timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def has_token(self) -> bool:
        """Whether requests are sent with an access token, to a service for several people."""
        return bool(self._headers)

    @property
    def is_local(self) -> bool:
        """Whether the address is that of this machine, so that the service sees the same files."""
        return urlsplit(self.url).hostname in _LOOPBACK

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- reading ---

    def studies(
        self, *, state: str | None = None, owner: str | None = None, text: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """The studies, newest first, as in `vitsearch list --format json`.

        Args:
            state: Only studies in this state.
            owner: Only studies of this owner.
            text: Only studies whose names contain this text.
        """
        yield from self._pages("/v1/studies", "studies", {"state": state, "owner": owner, "text": text})

    def study(self, name: str) -> dict[str, Any]:
        """The state and results of a study, as in `vitsearch status --format json`."""
        return self._json("GET", _path(name))

    def trials(self, name: str, *, stage: str | None = None, curves: bool = False) -> Iterator[dict[str, Any]]:
        """The trials of a study in the order in which they began.

        Args:
            name: The study.
            stage: Only trials of this stage.
            curves: Whether to include their learning curves.
        """
        yield from self._pages(f"{_path(name)}/trials", "trials", {"stage": stage, "curves": curves, "limit": 500})

    def trial(self, name: str, stage: str, number: int) -> dict[str, Any]:
        """One trial with its learning curve."""
        return self._json("GET", f"{_path(name)}/stages/{quote(stage, safe='')}/trials/{number}")

    def best(self, name: str) -> str:
        """The champion's configuration as a file for `vitsearch train`."""
        return self._request("GET", f"{_path(name)}/best.yaml").text

    def compare(self, name: str, trials: Sequence[int] = ()) -> dict[str, Any]:
        """Trained trials side by side, with the address of MLflow's page; by default the best four."""
        return self._json("GET", f"{_path(name)}/compare", params={"trial": list(trials)})

    def diff(self, name: str, other: str) -> dict[str, Any]:
        """What differs between two studies, as in `vitsearch diff --format json`."""
        return self._json("GET", f"{_path(name)}/diff", params={"other": other})

    def champion(self, name: str, folder: str | Path) -> Path:
        """Copy the champion's files into a new folder, from which `vitsearch.load_model` loads it.

        The folder gets its name when all files are there.

        Raises:
            FileExistsError: The folder exists.
        """
        target = Path(folder)
        _require_new(target)
        part = target.with_name(f"{target.name}.part")
        _require_new(part)
        found = self._json("GET", f"{_path(name)}/champion")
        part.mkdir(parents=True)
        try:
            for file in found["files"]:
                place = (part / file["path"]).resolve()
                if not place.is_relative_to(part.resolve()):
                    raise RequestRefusedError(200, {"detail": f"the service named a file outside its folder: {place}"})
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self._request("GET", file["url"]).content)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return target

    def report(self, name: str) -> str:
        """The report on a study: one HTML page, which contains all that it shows."""
        return self._request("GET", f"/studies/{quote(name, safe='')}/report", timeout=_REPORT_TIMEOUT_S).text

    def plugins(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The plug-ins that the service has installed."""
        answer = self._request("GET", f"/v1/plugins/{kind}" if kind else "/v1/plugins")
        found: list[dict[str, Any]] = self._content(answer)
        return found

    def recommend(
        self,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        max_params: int | None = None,
        space: str | None = None,
        budget_s: float | None = None,
    ) -> dict[str, Any]:
        """Configurations that finished studies of similar data found, the nearest first.

        Args:
            data: What is known of the data, as `vitsearch data --format json` prints it.
            config: The `data` block for the configurations.
            max_params: Most parameters of the model.
            space: Search space of its topology.
            budget_s: Longest time of the earlier study, in seconds.
        """
        limits = {"max_params": max_params, "space": space, "budget_s": budget_s}
        return self._json("POST", "/v1/recommend", json={"data": data, "config": config, **limits})

    def events(self, name: str, *, after: str | None = None) -> Iterator[ServerEvent]:
        """Follow a study until it ends. A stream that is cut off is taken up again without a gap.

        Args:
            name: The study.
            after: Id of the last event that is known; by default all events are sent.
        """
        failures = 0
        while True:
            try:
                for event in self._stream(name, after):
                    failures, after = 0, event.id or after
                    yield event
                    if event.kind == "end":
                        return
            except httpx.TransportError as error:
                if failures >= len(_RECONNECT_S):
                    raise self._unavailable(error) from None
            except ServerUnavailableError as error:  # a proxy answers while the service is started again
                if failures >= len(_RECONNECT_S) or (after is None and isinstance(error, NoServiceError)):
                    raise
            time.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
            failures += 1

    # --- submitting ---

    def validate(self, file: str | Path) -> dict[str, Any]:
        """Check a study file on the service, where its plug-ins and data are; nothing starts."""
        return self._send_file("/v1/validate", file)

    def submit(
        self,
        file: str | Path,
        *,
        priority: int = 0,
        shared: bool = False,
        retry_failed: bool = False,
        key: str | None = None,
        webhook: str | None = None,
        webhook_secret: str | None = None,
    ) -> dict[str, Any]:
        """Submit a study file. An existing study of that name is resumed, or grows to the file.

        Args:
            file: The study file.
            priority: From -10 to 10, among your waiting studies.
            shared: Whether others may see the study.
            retry_failed: Whether failed trials of an existing study run once more.
            key: Idempotency key; a request that is sent again with it returns the first submission. By default one is
                made, so that the call can be retried after a lost connection without submitting twice.
            webhook: Address that gets a signed request when the study ends.
            webhook_secret: Secret with which it is signed.

        Returns:
            The submission: `uid`, `study`, `state`, `reason` and more.
        """
        given = {"Webhook-URL": webhook, "Webhook-Secret": webhook_secret if webhook else None}
        headers = {
            "Idempotency-Key": key or uuid.uuid4().hex,
            **{name: value for name, value in given.items() if value is not None},
        }
        params = {"priority": priority, "shared": shared, "retry_failed": retry_failed}
        try:
            return self._send_file("/v1/studies", file, params=params, headers=headers)
        except NoServiceError:
            raise
        except ServerUnavailableError:
            time.sleep(_RECONNECT_S[1])
            return self._send_file("/v1/studies", file, params=params, headers=headers)

    def submission(self, name: str) -> dict[str, Any]:
        """The newest submission of a study: its state in the queue, and why it waits."""
        return self._json("GET", f"{_path(name)}/submission")

    def extend(self, name: str, file: str | Path, *, retry_failed: bool = False) -> dict[str, Any]:
        """Let a study grow to a file with more trials, epochs or stages; returns the submission."""
        return self._send_file(f"{_path(name)}/extend", file, params={"retry_failed": retry_failed})

    def cancel(self, name: str) -> dict[str, Any]:
        """Stop a study after its current step, or take it out of the queue; returns the submission."""
        return self._json("POST", f"{_path(name)}/cancel")

    def resume(self, name: str, *, retry_failed: bool = False) -> dict[str, Any]:
        """Let a study that was cancelled, was interrupted or has failed wait again; returns the submission."""
        return self._json("POST", f"{_path(name)}/resume", params={"retry_failed": retry_failed})

    def share(self, name: str, *, shared: bool = True) -> dict[str, Any]:
        """Let others see a study, or no longer; returns the submission."""
        return self._json("POST", f"{_path(name)}/share", params={"shared": shared})

    def delete(self, name: str) -> dict[str, Any]:
        """Delete a study with all its files."""
        return self._json("DELETE", _path(name))

    def log(self, name: str, *, offset: int = 0) -> tuple[str, int]:
        """What the drivers of a study wrote after `offset` bytes, and the offset for what follows."""
        answer = self._request("GET", f"{_path(name)}/log", params={"offset": offset})
        if "Next-Offset" not in answer.headers:
            raise self._no_service(answer)
        return answer.text, int(answer.headers["Next-Offset"])

    # --- requests ---

    def _send_file(
        self,
        path: str,
        file: str | Path,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        given: dict[str, Any] = {"file": str(file), **(params or {})}
        if self.is_local:  # the service sees the same files
            given["folder"] = str(Path(file).absolute().parent)
        kind = "application/json" if str(file).endswith(".json") else "application/yaml"
        sent = {"Content-Type": kind, **(headers or {})}
        return self._json("POST", path, params=given, headers=sent, content=Path(file).read_bytes())

    def _pages(self, path: str, key: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        given = {name: value for name, value in params.items() if value is not None}
        while True:
            answer = self._request("GET", path, params=given)
            page = self._content(answer)
            if not isinstance(page, dict) or not page.keys() >= {key, "next"}:
                raise self._no_service(answer)
            yield from page[key]
            if page["next"] is None:
                return
            given["after"] = page["next"]

    def _json(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        answer = self._request(method, path, **given)
        found = self._content(answer)
        if not isinstance(found, dict):
            raise self._no_service(answer)
        return found

    def _content(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise self._no_service(response) from None

    def _request(self, method: str, path: str, **given: Any) -> httpx.Response:
        headers = {**self._headers, **given.pop("headers", {})}
        try:
            response = self._http.request(method, f"{self.url}{path}", headers=headers, **given)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(error) from None
        self._raise_for(response)
        return response

    def _stream(self, name: str, after: str | None) -> Iterator[ServerEvent]:
        headers = {**self._headers, **({"Last-Event-ID": after} if after else {})}
        address = f"{self.url}{_path(name)}/events"
        with self._http.stream("GET", address, headers=headers, timeout=_STREAM_TIMEOUT_S) as response:
            if response.is_error:
                response.read()
            self._raise_for(response)
            yield from parse_events(response.iter_lines())

    def _raise_for(self, response: httpx.Response) -> None:
        if not response.is_error:
            if response.is_redirect:
                raise NoServiceError(
                    f"{self.url} must be the address of a vitsearch service, but leads to "
                    f"{response.headers.get('location')}. {CORRECT}"
                )
            return
        problem = _problem_of(response)
        if problem is None:
            if response.status_code not in PROXY_FAILURES:
                raise self._no_service(response)
            raise ServerUnavailableError(
                f"the service at {self.url} must answer, but failed with status {response.status_code}, which a web "
                "server in front of it sends while it does not run. Start it, or tell its administrator."
            )
        if problem["type"] == "urn:vitsearch:not-found" and urlsplit(self.url).path:
            parts = urlsplit(self.url)
            raise NoServiceError(
                f"{self.url} must be the address of the service alone, but it has nothing at {parts.path}. Use: "
                f"{parts.scheme}://{parts.netloc}"
            )
        if response.status_code >= 500:
            raise ServerUnavailableError(str(problem.get("detail")))
        raise RequestRefusedError(response.status_code, problem)

    def _no_service(self, response: httpx.Response) -> NoServiceError:
        """The error about another server, which its start page may name. The token is not sent again."""
        page = ""
        try:
            with self._http.stream("GET", f"{self.url}/", headers={"Accept": "text/html"}, timeout=_PAGE_S) as start:
                page = next(start.iter_text(_PAGE_BYTES), "")
        except httpx.HTTPError:
            pass
        server = response.headers.get("Server")
        return NoServiceError(no_service_text(self.url, page=page, server=server, status=response.status_code))

    def _unavailable(self, error: Exception) -> ServerUnavailableError:
        return ServerUnavailableError(unreachable_text(self.url, error))


def _problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """The problem document of the service; `None` if another server has answered."""
    try:
        problem = response.json()
    except ValueError:
        return None
    is_ours = isinstance(problem, dict) and str(problem.get("type")).startswith("urn:vitsearch:")
    return problem if is_ours else None


def parse_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Parse a stream of server-sent events."""
    kind, last_id, data = "message", "", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield ServerEvent(kind, last_id, json.loads("\n".join(data)))
            kind, data = "message", []
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value
        elif name == "data":
            data.append(value)


def _require_new(folder: Path) -> None:
    if folder.exists():
        raise FileExistsError(errno.EEXIST, "it exists already", str(folder))


def _path(study: str) -> str:
    return f"/v1/studies/{quote(study, safe='')}"
