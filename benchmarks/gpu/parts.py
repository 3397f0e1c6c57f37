"""The parts of a run on a GPU: what each executes, and for how long."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOTAL_S = 480.0
"""Seconds of a whole run."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a run: a program that writes its figures to the file given by `--json`."""

    name: str
    title: str
    command: tuple[str, ...]
    """The program and its arguments."""
    limit_s: float
    """Seconds after which it is ended. Time that earlier parts did not use is added."""
    environment: Mapping[str, str] = field(default_factory=dict)


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}", *arguments)


def parts_on_gpu(data: Path | None) -> list[Part]:
    """The parts of a run on a CUDA GPU, in their order; together they have `TOTAL_S` seconds.

    Args:
        data: Folder of CIFAR-10 for the study; `None` uses scikit-learn's digits.
    """
    scoring = ("--device", "cuda", "--threads", "8", "--runs", "5", "--no-memory", "--topologies", *_TOPOLOGIES)
    training = ("--device", "cuda", "--images", "16384", "--batch-size", "512", "--repeats", "3")
    images = () if data is None else ("--data", str(data))
    return [
        Part(name="machine", title="The machine", command=_module("gpu.machine", "--device", "cuda"), limit_s=15),
        Part(
            name="tests",
            title="Tests that need a GPU",
            command=_module("gpu.checking", "--device", "cuda", "--processes", "6"),
            limit_s=60,
        ),
        Part(
            name="scoring-224",
            title="Scoring at 224 px",
            command=_module("scoring", "--size", "224", "--width", "32", *scoring),
            limit_s=50,
        ),
        Part(
            name="scoring-32",
            title="Scoring at 32 px",
            command=_module("scoring", "--size", "32", "--width", "16", *scoring),
            limit_s=25,
        ),
        Part(
            name="packing",
            title="16 small trials: packed, one after the other, and in 4 processes",
            command=_module("packing", "--device", "cuda", "--epochs", "4", "--repeats", "1"),
            limit_s=65,
        ),
        Part(
            name="training",
            title="Training against a plain loop",
            command=_module("training", *training, "--sections", "plain", "--sizes", "372 k", "1.5 M", "23 M"),
            limit_s=45,
        ),
        Part(
            name="compile",
            title="Training with and without `torch.compile`",
            command=_module("training", *training, "--sections", "compile", "--sizes", "1.5 M", "23 M", "372 k"),
            limit_s=70,
        ),
        Part(
            name="proxies",
            title="All proxies at 224 px",
            command=_module("proxies", "--device", "cuda", "--threads", "8", "--topologies", "3"),
            limit_s=40,
        ),
        Part(
            name="sharing",
            title="Trainings that share the GPU",
            command=_module("gpu.sharing", "--device", "cuda", "--sizes", "1.5 M", "23 M", "--batch-size", "512"),
            limit_s=65,
        ),
        Part(name="study", title="A short study from end to end", command=_module("gpu.study", *images), limit_s=45),
    ]


def parts_on_cpu(data: Path | None) -> list[Part]:
    """The same parts with tiny sizes, to rehearse a run without a GPU. Their figures mean nothing.

    Args:
        data: Folder of images for the study; `None` uses scikit-learn's digits.
    """
    scoring = ("--size", "32", "--threads", "1", "--runs", "1", "--no-memory", "--topologies", _TOPOLOGIES[0])
    training = ("--device", "cpu", "--threads", "1", "--images", "64", "--epochs", "1", "--repeats", "1")
    proxies = ("--spaces", "autoformer", "--proxies", "snip", "synflow", "--topologies", "1", "--size", "32")
    tiny: dict[str, tuple[str, ...]] = {
        "machine": _module("gpu.machine", "--device", "cpu"),
        "tests": _module("gpu.checking", "--device", "cpu"),
        "scoring-224": _module("scoring", "--width", "4", *scoring),
        "scoring-32": _module("scoring", "--width", "8", *scoring),
        "packing": _module("packing", "--device", "cpu", "--quick", "--threads", "2"),
        "training": _module("training", *training, "--sections", "plain", "--sizes", "25 k"),
        "compile": _module("training", *training, "--sections", "compile", "--sizes", "25 k"),
        "proxies": _module("proxies", *proxies, "--threads", "1"),
        "sharing": _module(
            "gpu.sharing", "--device", "cpu", "--sizes", "25 k", "--batch-size", "16", "--images", "64", "--most", "2"
        ),
        "study": _module("gpu.study", "--quick", *(() if data is None else ("--data", str(data)))),
    }
    # Compiling takes a minute of CPU time; without it, `torch.compile` returns the model.
    environments = {"compile": {"TORCHDYNAMO_DISABLE": "1"}}
    return [
        Part(
            name=part.name,
            title=part.title,
            command=tiny[part.name],
            limit_s=600,
            environment=environments.get(part.name, {}),
        )
        for part in parts_on_gpu(data)
    ]


_TOPOLOGIES = ("5,2,5|4,2,5|2,2,3|3,1,2|32", "7,8,4|3,2,5|2,2,4|3,1,6|16", "8,2,6|2,4,6|3,2,3|2,1,4|16")
"""Three of those that `benchmarks.scoring` measures on a CPU, with a fast, a middle and a slow literal reference."""
