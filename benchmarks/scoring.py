"""Speed of scoring, compared with literal implementations of the formulas with the same weights, inputs and values.

`python -m benchmarks.scoring` takes about fifteen minutes on two cores, most of them for the literal references, which
run once per topology. `--quick` takes a minute; `--device cuda` runs everything on a GPU.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._machine import Rates, count_work, measure_rates, processor, waiting_for
from benchmarks._references import kernel_by_image, kernel_by_sample, velocity_by_coordinate
from benchmarks._timing import measure, print_table, save_report
from plugins.protocols import Candidate
from plugins.proxies.circle_scores import curves_of_models
from plugins.proxies.input_circle import circle_angles, circle_basis, curve_derivatives, length_distortion
from plugins.proxies.repeats import STACKED_PIXELS, repeat_seeds
from plugins.proxies.tangent_kernel import condition_number, tangent_kernel
from plugins.registry import create, parse_topology
from search_spaces.base import ImageTask
from trainers.hardware.devices import describe_device, full_precision
from trainers.tasks.dry_run import peak_gib
from trainers.tasks.scoring import make_candidate

TOPOLOGIES = (
    "5,2,5|4,2,5|2,2,3|3,1,2|32",
    "4,2,4|3,4,3|3,2,6|4,1,2|32",
    "7,8,4|3,2,5|2,2,4|3,1,6|16",
    "8,2,6|2,4,6|3,2,3|2,1,4|16",
    "8,2,3|4,1,2|4,1,4|4,1,6|32",
    "4,8,3|2,1,5|2,2,2|4,1,6|16",
)
"""Topologies without width, with depths 1, 1, 1, 1. The default width is 32."""
NUM_POINTS, BATCH, REPEATS, SCREEN = 10, 16, 5, 500
PROXIES = ("length-distortion", "extrinsic-curvature", "gauss-length", "ntk-condition")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    if options.peak:
        _print_peak(options)
        return
    with full_precision():  # like `score_topology`
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    size, width = options.size, options.width
    load = os.getloadavg()[0]
    hardware = processor() if options.device.type == "cpu" else describe_device(options.device)
    print(f"{hardware}, {options.threads} threads, torch {torch.__version__}, {platform.system()}, float32")
    print(f"load average before the start {load:.1f}; medians of {options.runs} runs, literal: {options.literal_runs}")
    rates = measure_rates(options.device)
    print(
        f"matrix products {rates.gemm_gflops:.0f} GFLOP/s, copies {rates.copy_gb_per_s:.0f} GB/s from memory, "
        f"{rates.cached_gb_per_s:.0f} GB/s from cache"
    )
    _warm_up(options)
    report: dict[str, Any] = {
        "processor": processor(),
        "device": describe_device(options.device),
        "threads": options.threads,
        "torch": torch.__version__,
        "rates": rates._asdict(),
        "runs": options.runs,
        "literal_runs": options.literal_runs,
        "load": load,
    }
    save_report(options.json, report)
    report["length-distortion"] = [_length(text, options, rates) for text in options.topologies]
    print_table(
        f"length distortion, one network, {size} px, width {width}, {NUM_POINTS} points", report["length-distortion"]
    )
    save_report(options.json, report)
    report["ntk-condition"] = [_kernel(text, options, rates) for text in options.topologies]
    print_table(f"NTK condition number, one network, {size} px, width {width}, {BATCH} images", report["ntk-condition"])
    shapes = list(dict.fromkeys([(size, width), (32, 16)]))
    report["screen"] = [_screen(text, shape, options) for shape in shapes for text in options.topologies]
    for shape in shapes:
        rows = [row for row in report["screen"] if (row["px"], row["width"]) == shape]
        print_table(f"screen: length distortion and NTK condition number, {REPEATS} repeats each", rows)
        mean = statistics.fmean(row["s"] for row in rows)
        minutes = SCREEN * mean / 60
        print(f"{shape[0]} px, width {shape[1]}: {1 / mean:.2f} topologies per s, {SCREEN} in {minutes:.1f} min")
    report["screen against literal"] = _against_literal(report, shapes[0])
    save_report(options.json, report)
    if options.memory:
        report["memory"] = [_peak(options.topologies[0], name, options) for name in PROXIES]
        print_table(
            f"peak memory of a process that scores one topology, {REPEATS} repeats, {size} px", report["memory"]
        )
        save_report(options.json, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--topologies",
        nargs="+",
        default=list(TOPOLOGIES),
        metavar="TEXT",
        help="topologies in text form, without width",
    )
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, in pixels (224)")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage (32)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (2)")
    parser.add_argument("--runs", type=int, default=7, help="runs of the fast implementations (7)")
    parser.add_argument("--literal-runs", type=int, default=1, help="runs of the literal references (1)")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave out peak memory, which takes four processes"
    )
    parser.add_argument("--quick", action="store_true", help="two topologies at 64 px, width 16, three runs")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.topologies, options.size, options.width, options.runs = options.topologies[:2], 64, 16, 3
    return options


def _candidate(text: str, size: int, width: int, device: torch.device) -> Candidate:
    task = ImageTask(image_size=size, in_channels=3, num_classes=10)
    images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return make_candidate(parse_topology(f"as-vit:{text},{width}"), images, task, seed=0)


def _warm_up(options: argparse.Namespace) -> None:
    """Load and set up what is needed on first use, with small images."""
    small = argparse.Namespace(**{**vars(options), "size": 32, "width": 16, "runs": 1})
    rates = Rates(1, 1, 1)
    _length(options.topologies[0], small, rates)
    _kernel(options.topologies[0], small, rates)


def _length(text: str, options: argparse.Namespace, rates: Rates) -> dict[str, Any]:
    candidate, wait = _candidate(text, options.size, options.width, options.device), waiting_for(options.device)
    (seed,) = repeat_seeds(0, 1)
    model = candidate.build(seed=seed, normalization=False)
    generator = torch.Generator().manual_seed(seed)
    basis = circle_basis(candidate.images.shape[1:], generator=generator).to(candidate.images)
    angles = circle_angles(NUM_POINTS, like=basis)

    def ours() -> Tensor:
        (derivatives,) = curves_of_models([model], [basis], angles[:-1], order=1)
        return torch.cat([derivatives[0], derivatives[0, :1]])

    features: Any = model.forward_features
    literal = measure(lambda: velocity_by_coordinate(model, angles, basis), options.literal_runs, wait=wait)
    autograd = measure(lambda: curve_derivatives(features, angles, basis, order=1), options.literal_runs, wait=wait)
    fast = measure(ours, options.runs, warm=True, wait=wait)
    expected = float(length_distortion(literal.result))
    for value in (length_distortion(fast.result), length_distortion(autograd.result[1])):
        assert abs(float(value) / expected - 1) < 1e-4, f"{float(value)} must be {expected}"
    work = count_work(ours)
    bound = work.gflops / rates.gemm_gflops
    return {
        "topology": text,
        "literal s": literal.median,
        "torch.func s": autograd.median,
        "ours s": fast.median,
        "spread s": fast.spread,
        "faster": literal.median / fast.median,
        "in CPU time": literal.cpu_s / fast.cpu_s,
        "GFLOP": work.gflops,
        "GB": work.gigabytes,
        "bound s": bound,
        "of bound": fast.median / bound,
    }


def _kernel(text: str, options: argparse.Namespace, rates: Rates) -> dict[str, Any]:
    candidate, wait = _candidate(text, options.size, options.width, options.device), waiting_for(options.device)
    (seed,) = repeat_seeds(0, 1)
    model, images = candidate.build(seed=seed), candidate.images
    literal = measure(lambda: kernel_by_sample(model, images), options.literal_runs, wait=wait)
    by_image = measure(lambda: kernel_by_image(model, images), max(3, options.runs // 2), wait=wait)
    fast = measure(lambda: tangent_kernel(model, images), options.runs, warm=True, wait=wait)
    expected = condition_number(literal.result)
    for value in (condition_number(fast.result), condition_number(by_image.result)):
        assert abs(value / expected - 1) < 1e-3, f"{value} must be {expected}"
    work = count_work(lambda: tangent_kernel(model, images))
    bound = work.gflops / rates.gemm_gflops
    return {
        "topology": text,
        "literal s": literal.median,
        "by image s": by_image.median,
        "ours s": fast.median,
        "spread s": fast.spread,
        "faster": literal.median / fast.median,
        "in CPU time": literal.cpu_s / fast.cpu_s,
        "than by image": by_image.median / fast.median,
        "GFLOP": work.gflops,
        "GB": work.gigabytes,
        "bound s": bound,
        "of bound": fast.median / bound,
    }


def _screen(text: str, shape: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    proxies = [create("proxies", name, {"repeats": REPEATS}) for name in ("length-distortion", "ntk-condition")]

    candidate = _candidate(text, *shape, options.device)
    alone = dataclasses.replace(candidate, build_stack=None)

    def score(one: Candidate) -> list[float]:
        fresh = dataclasses.replace(one, shared={})
        return [proxy.score(fresh).value for proxy in proxies]

    wait, runs = waiting_for(options.device), max(3, options.runs // 2)
    is_short = shape[0] < 100 or options.device.type != "cpu"
    found = measure(lambda: score(candidate), runs, warm=is_short, wait=wait)
    row = {
        "topology": text,
        "px": shape[0],
        "width": shape[1],
        "s": found.median,
        "spread s": found.spread,
        "topologies per s": 1 / found.median,
    }
    if 2 * shape[0] ** 2 <= STACKED_PIXELS:
        single = measure(lambda: score(alone), runs, warm=True, wait=wait)
        for value, expected in zip(found.result, single.result, strict=True):
            assert abs(value / expected - 1) < 1e-3, f"{value} must be {expected}"
        row |= {"one network at a time s": single.median, "spread of it s": single.spread}
        row |= {"faster": single.median / found.median, "in CPU time": single.cpu_s / found.cpu_s}
    return row


def _against_literal(report: dict[str, Any], shape: tuple[int, int]) -> dict[str, float]:
    """Topologies per second, for our implementation and, extrapolated, for the literal references."""
    ours = [row["s"] for row in report["screen"] if (row["px"], row["width"]) == shape]
    pairs = zip(report["length-distortion"], report["ntk-condition"], strict=True)
    literal = [REPEATS * (length["literal s"] + kernel["literal s"]) for length, kernel in pairs]
    found = {"ours per s": 1 / statistics.fmean(ours), "literal per s": 1 / statistics.fmean(literal)}
    found["faster"] = found["ours per s"] / found["literal per s"]
    print(
        f"{shape[0]} px, width {shape[1]}: {found['literal per s']:.3g} topologies per s with the literal references, "
        f"{found['faster']:.0f} times as many with ours"
    )
    return found


def _peak(text: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a separate process that scores one topology with one proxy."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--peak", name, "--topologies", text]
    for key in ("size", "width", "device", "threads"):
        command += [f"--{key}", str(getattr(options, key))]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"proxy": name, **json.loads(shown.stdout)}


def _print_peak(options: argparse.Namespace) -> None:
    candidate = _candidate(options.topologies[0], options.size, options.width, options.device)
    before = peak_gib(options.device)
    create("proxies", options.peak, {"repeats": REPEATS}).score(candidate)
    print(json.dumps({"GiB": peak_gib(options.device), "GiB before": before}))


if __name__ == "__main__":
    main()
