"""Downloads the packages that a machine with PyTorch, but without a network, lacks to run the parts.

    python -m benchmarks.gpu.wheels .gpu-wheels

The packages are the dependencies in pyproject.toml, with their own, in the versions of constraints.txt, and what runs
the tests. PyTorch, Ray and MLflow are left out: the machine has PyTorch, and no part needs the others. So is the usual
scientific software (`--has` names other packages that the machine has). It runs in the environment that `make install`
sets up, whose packages tell what each needs. `unpack` is called on the other machine.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = frozenset({"torch", "ray", "mlflow"})
"""Packages that the machine has, or that no part needs."""
USUAL = ("matplotlib", "numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy")
"""Large packages that a machine with PyTorch usually has."""
_TESTS = re.compile(r"pytest|hypothesis")
"""Names in the extra `dev` of packages that run the tests."""
_PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the wheels; those of other versions are removed")
    parser.add_argument(
        "--has", nargs="*", default=list(USUAL), metavar="NAME", help=f"packages of the machine ({', '.join(USUAL)})"
    )
    options = parser.parse_args()
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = read_pins((_ROOT / "constraints.txt").read_text(encoding="utf-8"))
    found = needed_packages(project, pins, has={*options.has, *LEFT_OUT})
    download(found, options.folder)
    files = sorted(options.folder.glob("*.whl"))
    print(f"{len(files)} wheels, {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB, in {options.folder}")


def read_pins(text: str) -> dict[str, str]:
    """Versions by normalised name, from the lines `name==version` of a constraints file."""
    pairs = (line.split("==") for line in text.splitlines() if "==" in line)
    return {_normalised(name): version.strip() for name, version in pairs}


def needed_packages(project: Mapping[str, Any], pins: Mapping[str, str], *, has: Collection[str]) -> dict[str, str]:
    """Packages that the machine lacks, with their versions, in alphabetical order.

    Args:
        project: The table `project` of pyproject.toml.
        pins: The versions, by normalised name.
        has: Packages of the machine. Their own dependencies are left out, unless another package needs them.

    Raises:
        ValueError: A package has no version among the pins.
    """
    from packaging.requirements import Requirement

    tests = [one for one in project["optional-dependencies"]["dev"] if _TESTS.match(one)]
    waiting = [Requirement(one) for one in [*project["dependencies"], *tests]]
    skipped, found = {_normalised(name) for name in has}, set[str]()
    while waiting:
        requirement = waiting.pop()
        name = _normalised(requirement.name)
        if name in skipped or name in found:
            continue
        if name not in pins:
            raise ValueError(f"constraints.txt must give the version of {name}, which the wheels need. Add it.")
        found.add(name)
        for line in metadata.requires(name) or ():
            own = Requirement(line)
            extras = {"", *requirement.extras}
            if own.marker is None or any(own.marker.evaluate({**_MACHINE, "extra": extra}) for extra in extras):
                waiting.append(own)
    return {name: pins[name] for name in sorted(found)}


_MACHINE = {
    "implementation_name": "cpython",
    "implementation_version": f"{_PYTHON}.0",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{_PYTHON}.0",
    "python_version": _PYTHON,
    "sys_platform": "linux",
}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def download(packages: Mapping[str, str], folder: Path) -> None:
    """Download wheels for the other machine with pip, and remove those of other packages and versions.

    Raises:
        SystemExit: pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform={name}_x86_64" for name in _PLATFORMS]
    python = [f"--python-version={_PYTHON}", "--implementation=cp", "--only-binary=:all:", *platforms]
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", *python, *wanted]
    if subprocess.run(command, check=False).returncode:
        sys.exit("error: pip could not download the wheels; it says why above.")
    for file in folder.glob("*.whl"):
        name, version = file.name.split("-")[:2]
        if packages.get(_normalised(name)) != version:
            file.unlink()


def unpack(folder: Path, target: Path) -> None:
    """Install the wheels of a folder into another one, which can then be put on Python's path.

    Raises:
        FileNotFoundError: There are no wheels.
        SystemExit: pip failed.
    """
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        raise FileNotFoundError(f"{folder} must hold the wheels that `make gpu-wheels` downloads, but has none.")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", f"--target={target}"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if subprocess.run([sys.executable, "-m", "pip", *install, *wheels], env=environment, check=False).returncode:
        sys.exit("error: pip could not install the wheels; it says why above.")


def declare_plugins(target: Path) -> None:
    """Write the metadata of vitsearch, by which plug-ins are found, into a folder on Python's path."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = target / f"vitsearch-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"]
    (folder / "METADATA").write_text("".join(lines), encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
