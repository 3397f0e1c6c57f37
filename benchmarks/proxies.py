"""Milliseconds per topology, for each proxy alone and for all with shared passes, on spaces of published tables.

`python -m benchmarks.proxies` takes a few minutes on two cores. `--quick` takes a minute; `--device cuda` uses a GPU.
"""

import argparse
import dataclasses
import os
import platform
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import processor, waiting_for
from benchmarks._timing import measure, print_table, save_report
from plugins.protocols import Candidate, PoolProxy
from plugins.registry import available, create, create_space, setting_types
from search_spaces.base import ImageTask
from trainers.hardware.devices import describe_device, full_precision
from trainers.tasks.scoring import make_candidate

SPACES = ("autoformer", "pit")
TABLE = 100
"""Number of topologies in a published table."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    hardware = processor() if options.device.type == "cpu" else describe_device(options.device)
    print(f"{hardware}, {options.threads} threads, torch {torch.__version__}, {platform.system()}, float32")
    print(
        f"load average before the start {load:.1f}; {options.size} px, {options.batch_size} images, "
        f"{options.repeats} repeat(s)"
    )
    report: dict[str, Any] = {
        "processor": processor(),
        "device": describe_device(options.device),
        "threads": options.threads,
        "torch": torch.__version__,
        "load": load,
        "size": options.size,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
    }
    with full_precision():  # like `score_topology`
        for space in options.spaces:
            report[space] = _measure(space, options)
            save_report(options.json, report)


def _measure(space: str, options: argparse.Namespace) -> dict[str, Any]:
    candidates = _candidates(space, options)
    alone = [_alone(name, candidates, options) for name in options.proxies]
    print_table(f"{space}: each proxy alone, medians over {len(candidates)} topologies", alone, medians=False)
    together = _together(candidates, options)
    total = sum(row["ms"] for row in alone)
    print(
        f"{space}: all {len(options.proxies)} together: {together['ms']:.0f} ms per topology "
        f"({together['fastest ms']:.0f} to {together['slowest ms']:.0f}), {total / together['ms']:.1f} times "
        f"faster than one by one; {TABLE} topologies in {TABLE * together['ms'] / 60_000:.1f} min"
    )
    return {"alone": alone, "together": together, "sum of alone ms": total}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), metavar="NAME", help="search spaces")
    parser.add_argument("--proxies", nargs="+", metavar="NAME", help="proxies (all without required settings)")
    parser.add_argument("--topologies", type=int, default=5, help="number of random topologies per space (5)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, in pixels (224)")
    parser.add_argument("--batch-size", type=int, default=16, help="number of images (16)")
    parser.add_argument("--repeats", type=int, default=1, help="number of new networks per score (1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (2)")
    parser.add_argument("--quick", action="store_true", help="two topologies at 64 px")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    options.proxies = options.proxies or [name for name in available("proxies") if _is_scored_alone(name)]
    if options.quick:
        options.topologies, options.size = 2, 64
    return options


def _is_scored_alone(name: str) -> bool:
    return name != "expression" and not isinstance(create("proxies", name), PoolProxy)


def _candidates(space: str, options: argparse.Namespace) -> list[Candidate]:
    task = ImageTask(image_size=options.size, in_channels=3, num_classes=100)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, 3, options.size, options.size, generator=generator).to(options.device)
    found, rng = create_space(space), random.Random(0)
    return [make_candidate(found.sample(rng), images, task, seed=0) for _ in range(options.topologies)]


def _proxy(name: str, options: argparse.Namespace) -> Any:
    settings = {"repeats": options.repeats} if "repeats" in setting_types("proxies", name) else {}
    return create("proxies", name, settings)


def _alone(name: str, candidates: list[Candidate], options: argparse.Namespace) -> dict[str, Any]:
    proxy = _proxy(name, options)
    proxy.score(dataclasses.replace(candidates[0], shared={}))  # warm-up: sets up what is needed on first use
    wait = waiting_for(options.device)
    times = [
        measure(partial(proxy.score, dataclasses.replace(one, shared={})), 1, wait=wait).median for one in candidates
    ]
    return {"proxy": name, "ms": 1e3 * statistics.median(times), "slowest ms": 1e3 * max(times)}


def _together(candidates: list[Candidate], options: argparse.Namespace) -> dict[str, float]:
    proxies = tuple(_proxy(name, options) for name in options.proxies)

    def score(candidate: Candidate) -> None:
        fresh = dataclasses.replace(candidate, shared={}, companions=proxies)
        for proxy in proxies:
            proxy.score(fresh)

    wait = waiting_for(options.device)
    times = [measure(partial(score, one), 1, wait=wait).median for one in candidates]
    return {"ms": 1e3 * statistics.fmean(times), "fastest ms": 1e3 * min(times), "slowest ms": 1e3 * max(times)}


if __name__ == "__main__":
    main()
