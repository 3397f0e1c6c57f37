"""Checks that tensors from a file are the weights of a model, before the model is built."""

from collections.abc import Mapping

import torch
from torch import Tensor

from plugins.registry import load, parse_topology
from search_spaces.base import ImageTask
from trainers.models.building import build_model, space_of, topology_costs

MAX_WEIGHT_BYTES = 16 * 1024**3
"""Largest file with weights that is read."""
_MOST_OVERHEAD = 8 * 1024**2
"""Bytes of a file's header and of tensors that are not parameters."""
_SHOWN = 3


def expected_tensors(topology: str, task: ImageTask) -> Mapping[str, Tensor]:
    """The state dict of a model without values, on the device `meta`. It needs hardly any memory.

    Args:
        topology: `space:text`.
        task: Image size, channels and classes.

    Raises:
        ValueError: There is no such topology, or it cannot be built for the task, or has more than `MAX_WEIGHT_BYTES`
            of weights.
    """
    parsed = parse_topology(topology)
    problem = load("spaces", space_of(topology)).problem(parsed, task)
    if problem is not None:
        raise ValueError(problem)
    num_bytes = 4 * topology_costs(topology, task).parameters
    if num_bytes > MAX_WEIGHT_BYTES:
        raise ValueError(
            f"a model may have at most {MAX_WEIGHT_BYTES:,} bytes of weights, but {topology:.60} has {num_bytes:,}."
        )
    return build_model(topology, task, seed=0, device=torch.device("meta")).state_dict()


def largest_file(expected: Mapping[str, Tensor]) -> int:
    """Size that a safetensors file with these tensors cannot exceed, in bytes."""
    return sum(tensor.nbytes for tensor in expected.values()) + _MOST_OVERHEAD


def tensor_problem(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the names, shapes, types or values of a model's tensors; `None` if nothing.

    Args:
        tensors: The tensors of a file.
        expected: Those of the model; only their names, shapes and types matter.
    """
    missing, unknown = _listed(expected.keys() - tensors.keys()), _listed(tensors.keys() - expected.keys())
    if missing:
        return f"the model needs {missing}, but the file lacks it"
    if unknown:
        return f"the file has {unknown}, but the model does not"
    for name, tensor in tensors.items():
        other = expected[name]
        if tensor.shape != other.shape:
            return f"{name} must have the shape {tuple(other.shape)}, but has {tuple(tensor.shape)}"
        if tensor.dtype != other.dtype:
            return f"{name} must have the type {_type(other)}, but has {_type(tensor)}"
    return not_finite(tensors)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Which tensor has values that are NaN or infinite; `None` if all values are finite."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            return f"all weights must be finite, but {name} contains NaN or infinity"
    return None


def _listed(names: set[str]) -> str:
    first = sorted(names)[:_SHOWN]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
