"""Checks that the nodes of a Ray cluster can run trials: that they have the same vitsearch and the same files."""

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.pools.code_digest import code_digest
from plugins.registry import KINDS
from trainers.storage.addresses import address_of
from trainers.storage.probing import mark

_logger = logging.getLogger(__name__)
_ANSWER_S = 300.0
"""A living node that does not answer within this time is unusable. Ray notices a lost node after a minute.

Workers of Ray have a low priority (`RAY_worker_niceness`), so a node that is busy with other work needs minutes.
"""
_PATIENCE_S = 15.0
"""After this time, a message names the nodes that have not answered."""
_APPEAR_S = 10.0
"""Time that a new file may take to appear on another node, because network file systems cache folders."""
_WORKER_CODE = ("orchestrator.engines.ray.worker", "orchestrator.engines.ray.trainable", "trainers.worker")
_TEXT = "vitsearch checks that every node of the cluster can see this folder\n"


def check_nodes(nodes: Sequence[Mapping[str, Any]], *, folder: Path | None, sources: Sequence[Path]) -> None:
    """Check all nodes at the same time.

    Args:
        nodes: Living nodes, as `ray.nodes()` describes them.
        folder: Driver and workers must be able to write to it; made, and removed again if it remains empty.
        sources: Files and folders that every node must be able to read.

    Raises:
        EngineUnavailableError: Some nodes cannot run trials; the message says which, why and what to do.
    """
    with _marker(folder) as marker:
        address = None if folder is None else address_of(folder)
        places = (str(marker) if marker else None, [str(source) for source in sources], _APPEAR_S, address)
        answers = _ask(nodes, places)
    wrong: dict[str, list[str]] = {}
    for node, problems in zip(nodes, answers, strict=True):
        if problems:
            wrong.setdefault("; ".join(problems), []).append(_name(node))
    if wrong:
        described = ". ".join(f"{' and '.join(names)} {problem}" for problem, names in wrong.items())
        raise EngineUnavailableError(
            f"every node of the Ray cluster must be able to run trials, but {sum(map(len, wrong.values()))} of "
            f"{len(nodes)} cannot: {described}. Fix that, or run `ray stop` on such a node to remove it, and run the "
            "same command again."
        )


@contextmanager
def _marker(folder: Path | None) -> Iterator[Path | None]:
    """Make a new file in the folder while the nodes are checked."""
    if folder is None:
        yield None
        return
    if address_of(folder) is not None:
        with mark(folder) as key:
            yield folder / key.rpartition("/")[2]
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seen-{uuid.uuid4().hex}"
    path.write_text(_TEXT, encoding="utf-8")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()


def _ask(nodes: Sequence[Mapping[str, Any]], places: tuple[Any, ...]) -> list[list[str]]:
    """Ask each node for problems with running trials. Nodes that left meanwhile are skipped."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    code = (list(_WORKER_CODE), code_digest(_WORKER_CODE), metadata.version("vitsearch"), _plugin_packages())
    check = ray.remote(_make_check())
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = check.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked.append(task.remote(code, places))
    answered = _wait({answer: _name(node) for node, answer in zip(nodes, asked, strict=True)})
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = []
    for node, answer in zip(nodes, asked, strict=True):
        problems = [f"did not answer for {_ANSWER_S / 60:g} minutes"]
        if answer in answered:
            try:
                problems = ray.get(answer)
            except ray.exceptions.RayError as error:
                problems = [f"could not run a task: {str(error).strip().splitlines()[-1]}"]
        found.append(problems if node["NodeID"] in living else [])
    return found


def _wait(asked: Mapping[Any, str]) -> Sequence[Any]:
    """The answers that come in time. Nodes that take longer than others are named, with how long we wait for them."""
    import ray

    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE_S)
    if silent:
        names = ", ".join(asked[answer] for answer in silent)
        _logger.warning("Waiting up to %g minutes for nodes that have not answered yet: %s", _ANSWER_S / 60, names)
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S - _PATIENCE_S)
    return list(answered)


def _plugin_packages() -> dict[str, str]:
    """Installed packages with plug-ins, and their versions."""
    found = metadata.entry_points()  # each call reads all packages
    points = [point for kind in KINDS for point in found.select(group=f"vitsearch.{kind}")]
    return {point.dist.name: point.dist.version for point in points if point.dist is not None}


def _name(node: Mapping[str, Any]) -> str:
    host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return host if host == address else f"{host} ({address})"


def _make_check() -> Callable[..., list[str]]:
    """Make the function that runs on a node. Ray sends inner functions whole, so it runs even without vitsearch."""
    import pathlib
    import sys
    import time

    def code_problems(modules: list[str], digest: str, version: str, packages: dict[str, str]) -> Iterator[str]:
        from importlib import metadata, util

        try:
            from orchestrator.engines.pools import code_digest as code_version

            is_same = code_version.code_digest(modules) == digest
            theirs = f"{metadata.version('vitsearch')}, in {pathlib.Path(code_version.__file__).parent}"
        except ImportError:
            yield f"has no vitsearch for {sys.executable}: install version {version}"
            return
        if not is_same:
            yield f"has another vitsearch ({theirs}) than the driver ({version}): install the same"
        if util.find_spec("torch") is None:
            yield f"has no torch for {sys.executable}: install it"
        for name, wanted in packages.items():
            try:
                has = metadata.version(name)
            except metadata.PackageNotFoundError:
                has = "none"
            if has != wanted:
                yield f"has version {has} of the plug-in package {name}, but the driver has {wanted}: install the same"

    def object_problems(marker: str, address: str) -> Iterator[str]:
        try:
            from trainers.storage.probing import check_store, sees_mark
        except ImportError:
            return  # reported as missing code
        root = pathlib.Path(marker).parent
        try:
            if not sees_mark(root, f"{address.partition('://')[2]}/{pathlib.Path(marker).name}"):
                yield (
                    f"does not see what the driver has written to {address}: `ray start` must have the same endpoint "
                    "in its environment as the driver"
                )
                return
            check_store(root)
            pathlib.Path(root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            yield f"cannot write to {error.filename or address}: {error.strerror}"

    def place_problems(marker: str | None, sources: list[str], appear_s: float, address: str | None) -> Iterator[str]:
        import os

        if marker is not None and address is not None:
            yield from object_problems(marker, address)
        elif marker is not None:
            marker_file, own_file = pathlib.Path(marker), pathlib.Path(f"{marker}-{os.getpid()}")
            give_up = time.monotonic() + appear_s
            try:
                while not marker_file.exists() and time.monotonic() < give_up:
                    time.sleep(0.1)
                marker_file.stat()
                own_file.touch()
                own_file.unlink()
            except FileNotFoundError:
                yield (
                    f"does not see what the driver has written to {marker_file.parent}: VITSEARCH_ARTIFACT_ROOT (or "
                    "VITSEARCH_HOME) must name a folder that all nodes share"
                )
            except OSError as error:
                yield f"cannot write to {marker_file.parent}: {error.strerror}"
        for source in sources:
            if not os.access(source, os.R_OK):
                yield f"cannot read {source}, which every node needs under that path"

    def check(code: tuple[Any, ...], places: tuple[Any, ...]) -> list[str]:
        return [*code_problems(*code), *place_problems(*places)]

    return check
