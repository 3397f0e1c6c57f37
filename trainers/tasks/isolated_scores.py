"""Calls a proxy so that it affects neither other scores nor the process, and checks what it returns."""

import math
import numbers
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from plugins.protocols import Candidate, Proxy, ProxyScore
from trainers.training.failures import ProxyFaultError

_OWN = "plugins"
"""Top-level package of our proxies, whose contract tests check what is checked here for others."""
_ROUNDING = 1e-3
"""Relative difference between two computations of a score that may be rounding."""


class IsolatedScores:
    """Calls the proxies of one candidate.

    A proxy finds the global random generators seeded by the candidate's seed, so that one that uses them is repeatable,
    too. Afterwards, generators, thread number, gradient mode and default dtype are as before.

    Args:
        candidate: What all proxies score.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._images, self._labels = candidate.images.clone(), candidate.labels.clone()

    def score(self, proxy: Proxy) -> ProxyScore:
        """The score of a proxy, whose numbers are floats.

        Raises:
            ProxyFaultError: The proxy did not return a `ProxyScore` of numbers, changed the images, the labels or the
                networks that proxies share, or tried to exit. Images and labels are restored, and shared results are
                discarded.
        """
        before = _fingerprints(self.candidate) if _is_foreign(proxy) else {}
        try:
            with _kept_globals(self.candidate):
                returned = proxy.score(self.candidate)
        except SystemExit as error:
            if not _is_raised_in_package_of(proxy, error):
                raise  # the process is to end
            raise ProxyFaultError("score() tried to exit the process. Raise an exception instead.") from None
        finally:
            changed = self._restore_batch()
        now = _fingerprints(self.candidate) if before else {}
        if changed:
            raise ProxyFaultError(
                f"score() changed the candidate's {changed}, which other proxies read. Work on a copy: "
                f"candidate.{changed}.clone()."
            )
        if any(now.get(key, value) != value for key, value in before.items()):
            self.candidate.shared.clear()
            raise ProxyFaultError(
                "score() changed networks that other proxies use. Build one for this score: "
                "candidate.build(seed=candidate.seed)."
            )
        return checked_score(returned)

    def _restore_batch(self) -> str:
        """Restore images and labels; returns which of them had changed, or an empty text."""
        images, labels = self.candidate.images, self.candidate.labels
        if images.requires_grad:
            images.detach_()
            images.grad = None
        if not torch.allclose(images, self._images, rtol=0, atol=0, equal_nan=True):
            images.copy_(self._images)
            changed = "images"
        elif not torch.equal(labels, self._labels):
            labels.copy_(self._labels)
            changed = "labels"
        else:
            return ""
        self.candidate.shared.clear()
        return changed


def must_be_repeatable(proxy: Proxy) -> bool:
    """Whether to check that a proxy gives the same score for the same seed: it is not ours, and no measured time."""
    return _is_foreign(proxy) and not getattr(proxy, "is_timing", False)


def check_repeated(first: ProxyScore, second: ProxyScore) -> None:
    """Compare two computations of a score with the same seed.

    Raises:
        ProxyFaultError: They differ by more than rounding.
    """
    close = math.isclose(first.value, second.value, rel_tol=_ROUNDING, abs_tol=1e-12)
    if not close and not (math.isnan(first.value) and math.isnan(second.value)):
        raise ProxyFaultError(
            f"it is not repeatable: the same topology and seed gave {first.value:.6g}, then {second.value:.6g}. Take "
            "random numbers from candidate.seed only."
        )


def checked_score(returned: Any) -> ProxyScore:
    """What a proxy returned, with floats in place of numbers of NumPy and tensors of one element.

    Raises:
        ProxyFaultError: It is not a `ProxyScore` of real numbers.
    """
    if not isinstance(returned, ProxyScore):
        raise ProxyFaultError(
            f"score() must return a ProxyScore, such as ProxyScore(0.5), but returned {_kind(returned)}."
        )
    return ProxyScore(*(_as_float(name, value) for name, value in returned._asdict().items()))


def _as_float(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise ProxyFaultError(f"the {name} of a ProxyScore must be a number, but score() returned {_kind(value)}.")


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    return "None" if value is None else f"an object of the class {type(value).__name__}"


def _is_foreign(proxy: Proxy) -> bool:
    """Whether a proxy is from another package."""
    return type(proxy).__module__.partition(".")[0] != _OWN


def _is_raised_in_package_of(proxy: Proxy, error: BaseException) -> bool:
    """Whether an exception comes from the proxy's code, not from a handler of a signal."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0]
    return package == type(proxy).__module__.partition(".")[0]


@contextmanager
def _kept_globals(candidate: Candidate) -> Iterator[None]:
    """Inside, the global generators are seeded; afterwards, they and torch's global modes are as before."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - plug-ins may use it
    num_threads, dtype, has_gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    device = candidate.images.device
    others = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=others):
            torch.manual_seed(candidate.seed)
            random.seed(candidate.seed)
            np.random.seed(candidate.seed % 2**32)  # noqa: NPY002 - as above
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 - as above
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(has_gradients)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)


def _fingerprints(candidate: Candidate) -> dict[tuple[str, Any], str]:
    """By key, the sums of the weights of each network that proxies share."""
    modules: dict[tuple[str, Any], nn.Module] = {}
    for kind in ("networks", "network stacks"):
        for key, kept in candidate.shared.get(kind, {}).items():
            modules[kind, key] = getattr(kept, "module", kept)
    return {key: _sums(module) for key, module in modules.items()}


@torch.no_grad()
def _sums(module: nn.Module) -> str:
    weights = (*module.parameters(), *module.buffers())
    parts = [torch.stack([one.sum(dtype=torch.float64), one.abs().sum(dtype=torch.float64)]) for one in weights]
    return str(torch.cat(parts).tolist()) if parts else ""
