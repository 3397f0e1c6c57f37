"""A simulated device for machines without a GPU: it computes on the CPU but enforces a GPU's rules.

An operation must not combine tensors of the CPU and of the device, unless CUDA allows it. Random numbers on the device
need a generator of the device, and NumPy cannot read its tensors. Code that mixes up devices therefore fails here as on
a GPU. Memory, streams, kernels, mixed precision and code that requests `cuda` by name are not simulated.

Torch can register such a device only for a whole process: `python -m tests.other_device` starts one. It reads names of
`tests.device_cases`, one per line, and answers each with a line of JSON: the numbers on the CPU and on the device.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from trainers.hardware import devices

aten = torch.ops.aten
_CPU = torch.device("cpu")
_COPIES = {aten.copy_.default, aten._to_copy.default}
_READS = {aten.index.Tensor, aten._unsafe_index.Tensor}
_WRITES = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations on the device that accept indices on the CPU."""


WITHOUT_FLOAT64 = " without float64"
"""Suffix of a case that runs on a device without float64, such as Apple's GPU."""


class _Backend(backend_registration._DummyBackendModule):
    lacks_float64 = False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]


class OnDevice(torch.Tensor):
    """A tensor whose `device` is the simulated one; `inner` has its values on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnDevice":
        layout = (inner.shape, inner.stride(), inner.storage_offset(), torch.contiguous_format)
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, *layout, inner.dtype, torch.strided, torch.device("other", 0), False, inner.requires_grad
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    # Torch calls these without `__torch_dispatch__`.

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=dtype or self.dtype).to(self.device)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = _flat((*args, *kwargs.values()))
    is_there = any(isinstance(one, OnDevice) for one in given)
    if is_there:
        _check_places(operation, args, given)
    goes_there = is_there
    if kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]).type == "other"
    elif operation is aten.copy_.default:
        goes_there = isinstance(args[0], OnDevice)
    if goes_there and any(isinstance(one, torch.Generator) and one.device.type == "cpu" for one in given):
        raise RuntimeError(f"{operation}: expected a generator of the device, but found one of the CPU")
    if operation is aten._fused_sdp_choice.default:
        return 0  # the implementation by plain operations
    args_here, kwargs_here = _mapped(_here, args), {name: _mapped(_here, one) for name, one in kwargs.items()}
    result = _mapped(_dense, operation(*args_here, **kwargs_here))
    if not goes_there:
        return result
    if _Backend.lacks_float64 and any(
        isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in _flat((result,))
    ):
        raise TypeError(f"{operation}: the device has no float64")
    if is_there and _writes_to_its_first(operation):
        return args[0]
    result = _mapped(_there, result)
    if not is_there or operation is aten._to_copy.default:
        return result
    return return_and_correct_aliasing(operation, args, kwargs, result)


# Arguments and results are nested only in lists and tuples. Torch's functions for any tree would take most of the time.
_NESTED = (list, tuple)


def _flat(nested: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for one in nested:
        if isinstance(one, _NESTED):
            found += _flat(one)
        else:
            found.append(one)
    return found


def _mapped(change: Callable[[Any], Any], nested: Any) -> Any:
    if isinstance(nested, _NESTED):
        changed = [_mapped(change, one) if isinstance(one, _NESTED) else change(one) for one in nested]
        return changed if isinstance(nested, list) else tuple(changed)
    return change(nested)


@cache
def _writes_to_its_first(operation: Any) -> bool:
    """Whether an operation writes to its first argument, whose shape it keeps, and returns it."""
    schema = operation._schema
    if len(schema.returns) != 1 or torch.Tag.inplace_view in operation.tags:
        return False
    first, returned = (part.alias_info for part in (schema.arguments[0], schema.returns[0]))
    return returned is not None and first is not None and returned.is_write and first.before_set == returned.before_set


def _check_places(operation: Any, args: Any, given: list[Any]) -> None:
    if operation in _COPIES:
        return
    if operation in _READS | _WRITES:
        allowed = isinstance(args[0], OnDevice)
        if operation in _WRITES:
            allowed = allowed and (isinstance(args[2], OnDevice) or args[2].ndim == 0)
    else:
        tensors = [one for one in given if isinstance(one, torch.Tensor)]
        allowed = all(isinstance(one, OnDevice) or one.ndim == 0 for one in tensors)
    if not allowed:
        places = [(tuple(one.shape), str(one.device)) for one in given if isinstance(one, torch.Tensor)]
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, but found {places}")


def _here(one: Any) -> Any:
    if isinstance(one, OnDevice):
        return one.inner
    return _CPU if type(one) is torch.device else one


def _there(one: Any) -> Any:
    return OnDevice(one) if isinstance(one, torch.Tensor) else one


def _dense(one: Any) -> Any:
    """The tensor with memory; forward-mode differentiation creates zeros that have none."""
    return torch.zeros(one.shape, dtype=one.dtype) if isinstance(one, torch.Tensor) and one._is_zerotensor() else one


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """The simulated device, which exists inside the `with` block."""
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **given: Any) -> torch.Tensor:
        return make(data, **given).to(device or "cpu")

    with contextlib.ExitStack() as stack:
        for name in ("torch.cuda._lazy_init", "torch.accelerator.synchronize"):
            stack.enter_context(patch(name))
        stack.enter_context(patch("torch.inference_mode", torch.no_grad))
        stack.enter_context(patch("torch.tensor", tensor))
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(_Mode())
        yield torch.device("other", 0)


def _answer(case: Callable[[torch.device], dict[str, float]], *, lacks_float64: bool) -> dict[str, Any]:
    here = case(torch.device("cpu"))
    lacking = {"mps", "other"} if lacks_float64 else {"mps"}
    try:
        with (
            other_device() as device,
            patch.object(_Backend, "lacks_float64", lacks_float64),
            patch.object(devices, "WITHOUT_FLOAT64", lacking),
        ):
            return {"here": here, "there": case(device), "error": None}
    except Exception:  # the test shows any error
        return {"here": here, "there": {}, "error": traceback.format_exc()}


def main() -> None:
    from tests.device_cases import CASES

    torch.set_num_threads(1)
    backend_registration._setup_privateuseone_for_python_backend("other", _Backend())
    for line in sys.stdin:
        name = line.strip()
        case = CASES[name.removesuffix(WITHOUT_FLOAT64)]
        sys.stdout.write(json.dumps(_answer(case, lacks_float64=name.endswith(WITHOUT_FLOAT64))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
