"""Figures of the service for Prometheus."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.home import Home

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class RequestFigures:
    """Counts requests and their times, by path and status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "path", "status"]
        self._count = Counter("vitsearch_requests", "Answered requests", labels, registry=self.registry)
        self._time = Histogram(
            "vitsearch_request_seconds",
            "Time until the response began",
            ["method", "path"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def add(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._count.labels(method, path, status).inc()
        self._time.labels(method, path).observe(seconds)


class StudyFigures(Collector):
    """Number of studies in each state, read when Prometheus asks."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("vitsearch_studies", "Studies, by the state in their rows", labels=["state"])
        store = self._home.store
        counts = store.pages().study_counts() if store else {}
        for state in ("waiting", "running", "interrupted", "complete", "failed"):
            family.add_metric([state], counts.get(state, 0))
        yield family


class CountRequests:
    """Middleware that counts requests. Paths are those of the routes, so that names of studies make no new series."""

    def __init__(self, app: ASGIApp, figures: RequestFigures) -> None:
        self._app, self._figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = scope.get("route")
                path = getattr(known, "path", "other")
                self._figures.add(_method(scope["method"]), path, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counted)


def _method(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS") else "other"
