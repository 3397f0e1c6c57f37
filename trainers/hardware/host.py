"""CPU cores and memory available to this process, within the limits of its container or job."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GIB = 2.0**30


def available_cores(root: Path = Path("/")) -> int:
    """Number of cores this process may run on, within the CPU quota of its control groups; at least 1.

    Args:
        root: Directory that contains `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, math.floor(min([float(cores), *quotas])))


def available_memory_gib(root: Path = Path("/")) -> float:
    """Memory in GiB that this process may still allocate, within the limits of its control groups.

    Args:
        root: Directory that contains `proc` and `sys`.
    """
    left = [_memory_left(folder) for folder in _groups(root, "memory")]
    return min([_machine_memory(root), *(value for value in left if value is not None)]) / GIB


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups (version 2, else version 1) of this process, innermost first."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = base
        elif controller in controllers.split(","):
            top = base / controller
        else:
            continue
        inner = Path(path.lstrip("/"))
        yield from (top / part for part in (inner, *inner.parents) if ".." not in part.parts)


def _cpu_quota(folder: Path) -> float | None:
    """Number of cores that a control group may use; `None` if it has no limit."""
    words = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    quota, period = (int(word) if word.isdigit() else 0 for word in words)
    return quota / period if quota and period else None


def _memory_left(folder: Path) -> float | None:
    """Bytes that a control group may still allocate; `None` if it has no limit."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
        if most.isdigit() and taken.isdigit():
            return max(0.0, float(most) - float(taken))
    return None


def _machine_memory(root: Path) -> float:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # not Linux, or the other version of control groups
        return ""
