"""Prepares a service before its first request.

FastAPI builds its routes, and we load plug-ins, when they are needed first. A service does both when it starts, so that
the first person does not wait for them.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from orchestrator.api.routes.checking import EXAMPLE
from orchestrator.spec.study_file import parse_spec


async def warm_up(app: FastAPI) -> None:
    """Build the routes, and load what checks a study file."""
    scope: Scope = {"type": "http", "method": "GET", "path": "/health", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(scope)
    await run_in_threadpool(parse_spec, EXAMPLE.encode(), "example.yaml", folder=Path.cwd())
