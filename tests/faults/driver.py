"""Runs `vitsearch` in processes that can be killed: forked from one that has imported everything, so that it is quick.

Each is a process of its own with its own exit status, files and connections, as if started from a shell.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from orchestrator.cli.main import main
from tests.blank_figures import blank_figures
from tests.places import Place

PRELOADED = (
    *("alembic.command", "matplotlib.pyplot", "mlflow", "optuna", "scipy.stats"),
    "trainers.worker",
    *(f"orchestrator.stages.{stage}" for stage in ("averaging", "correlate", "grow", "promote", "screen", "stopping")),
    *("orchestrator.reports.summary", "orchestrator.study.driver", "tests.faults.driver", "tests.faults.warmed"),
)
"""What the processes would import one after another."""
TIMEOUT_S = 900.0
"""A guard, far above the usual time of a process, for machines that are busy with other work."""
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kill:
    """A moment in a process at which it kills itself."""

    where: str
    """`module:function` or `module:Class.method`."""
    when: Literal["before", "after"]
    stage: str | None = None
    """Count calls from the beginning of this stage on."""
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.when} {self.where.partition(':')[2]} {self.nth} of {self.stage or 'the study'}"


class Driver:
    """A running `vitsearch run`."""

    def __init__(self, process: Any, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def err(self) -> str:
        """What it wrote to stderr and stdout."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def is_alive(self) -> bool:
        alive: bool = self.process.is_alive()
        return alive

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit status; negative where a signal ended it."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"the process did not end within {timeout_s:g} s: {self.err[-2000:]}")
        status: int = self.process.exitcode
        return status


def start(
    place: Place, *arguments: str | Path, kills: Sequence[Kill] = (), prepare: str | None = None, **environment: str
) -> Driver:
    """Start `vitsearch` with arguments.

    Args:
        place: Home and database.
        arguments: Of the command.
        kills: Moments at which it ends itself; the first that comes.
        prepare: `module:function`, called in the process before the command.
        environment: Further variables.
    """
    log = place.home.parent / f"driver-{time.monotonic_ns()}.log"
    given = {"VITSEARCH_TRACKING": "off", "COLUMNS": "200", **place.environment, **environment}
    process = _context().Process(
        target=_run, args=([str(one) for one in arguments], given, tuple(kills), prepare, str(log)), daemon=True
    )
    process.start()
    return Driver(process, log)


def run(place: Place, *arguments: str | Path, **given: Any) -> Driver:
    """Start a process and wait for its end."""
    driver = start(place, *arguments, **given)
    driver.wait()
    return driver


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with patch.dict(os.environ, {"PYTHONPATH": str(_ROOT)}):
        forkserver.ensure_running()
    return context


def _run(
    arguments: Sequence[str], environment: Mapping[str, str], kills: Sequence[Kill], prepare: str | None, log: str
) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.update(environment)
    os.setpgid(0, 0)
    for kill in kills:
        _arm(kill)
    if prepare is not None:
        module, _, function = prepare.partition(":")
        getattr(importlib.import_module(module), function)()
    sys.argv = ["vitsearch", *arguments]
    with blank_figures():
        main()


def _arm(kill: Kill) -> None:
    """Replace a function by one that kills the process at its nth call."""
    from orchestrator.store.repository import Store

    counting = [kill.stage is None]
    calls = [0]
    if kill.stage is not None:
        _wrap(Store, "begin_stage", after=lambda arguments: counting.__setitem__(0, arguments[1].name == kill.stage))

    def count(_: Sequence[Any]) -> None:
        if counting[0]:
            calls[0] += 1
            if calls[0] == kill.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    module, _, name = kill.where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, function = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    _wrap(owner, function, **{kill.when: count})


def _wrap(
    owner: Any,
    name: str,
    *,
    before: Callable[[Sequence[Any]], None] = lambda _: None,
    after: Callable[[Sequence[Any]], None] = lambda _: None,
) -> None:
    inner = getattr(owner, name)

    @wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        before(arguments)
        result = inner(*arguments, **named)
        after(arguments)
        return result

    setattr(owner, name, wrapped)
