"""Describes the machine, and checks that it can run the other parts."""

import argparse
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import chosen_device, processor, product_tflops
from benchmarks._timing import save_report
from benchmarks.gpu.wheels import LEFT_OUT, USUAL
from trainers.hardware.devices import describe_device, describe_devices

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="cpu or cuda (the best one)")
    parser.add_argument("--json", type=Path, help="write the facts to this file")
    options = parser.parse_args()
    missing = missing_packages()
    if missing:
        large = " ".join(name for name in USUAL if _is_installed(name))
        sys.exit(
            f"error: this machine must have the packages of pyproject.toml, but lacks {', '.join(missing)}. Run `make "
            f'gpu-wheels HAS="{large}"` on a machine with a network, and bring the folder .gpu-wheels here.'
        )
    facts = describe(chosen_device(options.device))
    for name, value in facts.items():
        print(f"{name}: {value}")
    save_report(options.json, facts)


def missing_packages() -> list[str]:
    """Packages that vitsearch depends on and that are not installed, except those that no part needs."""
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[\[<>=!~ ]", requirement)[0] for requirement in project["dependencies"]]
    return [name for name in names if name not in LEFT_OUT and not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe(device: torch.device) -> dict[str, Any]:
    """Facts about the machine, and the rates of large matrix products on its device."""
    devices = describe_devices()
    facts: dict[str, Any] = {
        "device": describe_device(device),
        "processor": processor(),
        "cores": devices.cores,
        "memory_gib": round(devices.memory_gib, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["multiprocessors"] = properties.multi_processor_count
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["cuda"] = torch.version.cuda
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        facts[f"{name}_tflops"] = product_tflops(device, dtype)
    return facts


if __name__ == "__main__":
    main()
