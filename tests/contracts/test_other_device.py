"""Scores, trainings and predictions on another device: all tensors are moved, and results are equal."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

from plugins.protocols import Signal
from tests.device_cases import CASES, FEW, differences
from tests.other_device import WITHOUT_FLOAT64

ROOT = Path(__file__).resolve().parents[2]
Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Runs a case here and there, in a process of its own: torch gets such a device for good."""
    command = [sys.executable, "-m", "tests.other_device"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(name: str) -> dict[str, Any]:
            stdin.write(f"{name}\n")
            stdin.flush()
            line = stdout.readline()
            assert line, f"torch ended the process with {process.wait()}, as it may where tensors are on two devices"
            answer: dict[str, Any] = json.loads(line)
            return answer

        yield ask
        stdin.close()


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no devices in Python",
)
@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_device_computes_the_same_and_no_tensor_is_on_another(ask: Ask, name: str) -> None:
    answer = ask(name)
    assert answer["error"] is None, answer["error"]
    assert answer["here"]
    assert differences(answer["here"], answer["there"]) == []


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no devices in Python",
)
@pytest.mark.parametrize("name", ["train as-vit dropout", "signals as-vit"])
def test_a_training_needs_no_float64_on_its_device(ask: Ask, name: str) -> None:
    answer = ask(name + WITHOUT_FLOAT64)
    assert answer["error"] is None, answer["error"]
    assert differences(answer["here"], answer["there"]) == []


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_computes_the_same(name: str) -> None:
    here, there = CASES[name](torch.device("cpu")), CASES[name](torch.device("cuda", 0))
    for key in [key for key in here if "accuracy" in key or key == Signal.CHANGED_PREDICTIONS.value]:
        del here[key], there[key]  # shares of 30 images, of which bf16 may turn one
    assert differences(here, there, tolerance=0.02) == []
