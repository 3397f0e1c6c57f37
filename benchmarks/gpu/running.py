"""Runs parts one after another, each as its own process with a time limit, and writes what each found at once."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks._timing import save_report
from benchmarks.gpu.parts import Part, parts_on_gpu

State = Literal["complete", "failed", "out of time"]
_GRACE_S = 3.0
_LEAST_S = 1.0
_ROOT = Path(__file__).resolve().parents[2]


class Finished(NamedTuple):
    """The end of a part."""

    part: str
    title: str
    command: list[str]
    """The command, without the path of Python."""
    state: State
    reason: str | None
    """Why it is not complete."""
    seconds: float
    limit_s: float
    figures: dict[str, Any]
    """What it measured, as far as it came."""
    run: str = ""
    """Identifies the run, so that those of several are not taken for one."""
    device: str = ""
    """`cuda`, or `cpu` for a rehearsal."""


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    environment: Mapping[str, str],
    *,
    total_s: float,
    device: str,
    say: Callable[[str], None],
) -> list[Finished]:
    """Run all parts. Whatever happens to one, the others run.

    Only if the first one fails, which describes the machine, the others are not tried.

    Args:
        parts: What to run.
        folder: Receives `PART.json` when the part ends, and `PART.log` with its output.
        environment: Environment of the processes.
        total_s: Seconds for all parts together.
        device: Device that the parts use, `cuda` or `cpu`.
        say: Prints a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = secrets.token_hex(4)
    end, saved, done = time.monotonic() + total_s, 0.0, list[Finished]()
    for number, part in enumerate(parts):
        limit_s = min(part.limit_s + saved, end - time.monotonic())
        if limit_s > _LEAST_S:
            found = run_part(part, folder, environment, limit_s=limit_s)
        else:
            reason = f"the parts before it took all of the {total_s:g} s"
            found = Finished(part.name, part.title, _shown(part), "out of time", reason, 0.0, 0.0, {})
        found = found._replace(run=run, device=device)
        save_report(folder / f"{part.name}.json", found._asdict())
        done.append(found)
        saved = max(0.0, limit_s - found.seconds)
        say(f"{part.name}: {found.state} after {found.seconds:.0f} s" + (f": {found.reason}" if found.reason else ""))
        if number == 0 and found.state != "complete":
            say("the other parts need the same machine, so they are not run")
            break
    return done


def run_part(part: Part, folder: Path, environment: Mapping[str, str], *, limit_s: float) -> Finished:
    """Run one part in its own process group, and end the whole group after the limit."""
    file, log = folder / f"{part.name}.figures", folder / f"{part.name}.log"
    file.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*part.command, "--json", str(file)],
            cwd=_ROOT,
            env={**environment, **part.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(process)
    state, reason = _judge(status, limit_s, log)
    figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.unlink(missing_ok=True)
    if state == "complete" and not figures:
        state, reason = "failed", "it ended without figures"
    return Finished(part.name, part.title, _shown(part), state, reason, time.monotonic() - started, limit_s, figures)


def _shown(part: Part) -> list[str]:
    return ["python", *part.command[1:]]


def _judge(status: int | None, limit_s: float, log: Path) -> tuple[State, str | None]:
    if status == 0:
        return "complete", None
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = f"; its last line: {lines[-1][:300]}" if lines else ""
    if status is None:
        return "out of time", f"it must end within {limit_s:.0f} s{last}"
    return "failed", (f"signal {-status}" if status < 0 else f"exit status {status}") + last


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started and left behind."""
    for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)


def read_results(folder: Path) -> list[Finished]:
    """The parts of a run in their order, of which there may be none.

    Raises:
        ValueError: A file holds something else, or the files come from several runs.
    """
    found = list[Finished]()
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(Finished(**json.loads(file.read_text(encoding="utf-8"))))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} must be what `python -m benchmarks.gpu run` wrote: {error}") from error
    runs: dict[str, list[str]] = {}
    for one in found:
        runs.setdefault(one.run, []).append(one.part)
    if len(runs) > 1:
        told = "; ".join(f"{run or 'unknown'}: {', '.join(parts)}" for run, parts in sorted(runs.items()))
        raise ValueError(f"{folder} must hold the results of one run, but holds {told}. Move the older files away.")
    order = [part.name for part in parts_on_gpu(None)]
    return sorted(found, key=lambda one: order.index(one.part) if one.part in order else len(order))
