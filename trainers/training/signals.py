"""Measurement of signals: numbers that training computes once per epoch for plug-ins that read them.

Legend: `P` numbers of a row, `N` validation images.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import Signal, is_block
from trainers.data.images import ImageSplit
from trainers.training.evaluation import Normalizer, logits_of
from trainers.training.row import Row

DEAD_BELOW = 0.01
"""A hidden unit is dead if all its activations stay below this value."""
_LAST_CHANGE = "signals.last_change"

_OF_STEPS = frozenset({Signal.GRADIENT_NORM, Signal.GRADIENT_NOISE})
_OF_BLOCKS = frozenset({Signal.ATTENTION_ENTROPY, Signal.ATTENTION_LOGIT, Signal.DEAD_UNITS})
_OF_VALIDATION = _OF_BLOCKS | {Signal.CHANGED_PREDICTIONS}


class SignalMeter:
    """Measures the wanted signals of one training, and no others.

    Signals of steps cost one dot product per step. Signals of the validation part cost one forward pass of it per
    epoch; signals of blocks also compute the full attention weights.

    Args:
        wanted: Signals to measure.
        row: The model in training.
        validation: Validation images.
        normalizer: Normalizer of the images.
    """

    def __init__(self, wanted: frozenset[Signal], row: Row, validation: ImageSplit, normalizer: Normalizer) -> None:
        self.wanted = wanted
        self._row = row
        self._validation = validation
        self._normalizer = normalizer
        self._num_steps = 0
        self._norms = self._squares = self._mean = None if not wanted & _OF_STEPS else torch.zeros(())
        self._before: Tensor | None = None
        self._predicted: Tensor | None = None

    def begin(self) -> None:
        """Record the present weights of the row as the start (or continuation) of training."""
        self._norms, self._squares, self._mean = (torch.zeros_like(self._row.values[0]) for _ in range(3))
        if Signal.GRADIENT_NOISE in self.wanted:
            self._mean = torch.zeros_like(self._row.values)
        if Signal.WEIGHT_PERSISTENCE in self.wanted:
            self._before = self._row.values.clone()
        if Signal.CHANGED_PREDICTIONS in self.wanted:
            with self._row.evaluated() as model:
                self._predicted = self._predict(model)

    @property
    def watches_steps(self) -> bool:
        """Whether `take` must be called with each gradient."""
        return bool(self.wanted & _OF_STEPS)

    @torch.no_grad()
    def take(self, gradient: Tensor) -> None:
        """Record the gradient (P,) of a step before clipping, without waiting for the device."""
        square = torch.dot(gradient, gradient)
        assert self._norms is not None
        assert self._squares is not None
        assert self._mean is not None
        self._norms += square.sqrt()
        self._squares += square
        if Signal.GRADIENT_NOISE in self.wanted:
            self._mean += gradient
        self._num_steps += 1

    def measure(self) -> dict[str, float]:
        """The signals of the current epoch by name, without those that are not yet defined."""
        found: dict[Signal, float] = {}
        if self._num_steps:
            found |= self._of_steps()
        if Signal.WEIGHT_PERSISTENCE in self.wanted:
            found |= self._persistence()
        if self.wanted & _OF_VALIDATION:
            found |= self._of_validation()
        measured = {signal: found[signal] for signal in Signal if signal in found and signal in self.wanted}
        return {signal.value: value for signal, value in measured.items() if math.isfinite(value)}

    def _of_steps(self) -> dict[Signal, float]:
        assert self._norms is not None
        assert self._squares is not None
        assert self._mean is not None
        found = {Signal.GRADIENT_NORM: float(self._norms) / self._num_steps}
        if Signal.GRADIENT_NOISE in self.wanted:
            mean = self._mean / self._num_steps
            of_mean = float(torch.dot(mean, mean))
            if of_mean > 0:
                found[Signal.GRADIENT_NOISE] = float(self._squares) / self._num_steps / of_mean - 1
            self._mean.zero_()
        self._norms.zero_()
        self._squares.zero_()
        self._num_steps = 0
        return found

    @torch.no_grad()
    def _persistence(self) -> dict[Signal, float]:
        assert self._before is not None
        change = self._row.values - self._before
        last = self._row.recall(_LAST_CHANGE)
        self._before = self._row.values.clone()
        self._row.remember(_LAST_CHANGE, change)
        if last is None:
            return {}
        scale = float(torch.linalg.vector_norm(change) * torch.linalg.vector_norm(last))
        return {Signal.WEIGHT_PERSISTENCE: float(torch.dot(change, last)) / scale} if scale > 0 else {}

    def _of_validation(self) -> dict[Signal, float]:
        found: dict[Signal, float] = {}
        with self._row.evaluated() as model:
            if self.wanted & _OF_BLOCKS:
                with _watched_blocks(model, self.wanted) as watched:
                    predicted = self._predict(model)
                found |= watched.signals()
            else:
                predicted = self._predict(model)
        if Signal.CHANGED_PREDICTIONS in self.wanted:
            assert self._predicted is not None
            found[Signal.CHANGED_PREDICTIONS] = float((predicted != self._predicted).double().mean())
            self._predicted = predicted
        return found

    def _predict(self, model: nn.Module) -> Tensor:
        """The predicted class of each validation image, (N,)."""
        batches = logits_of(model, self._validation.images, self._normalizer)
        return torch.cat([logits.argmax(1) for logits in batches])


class _BlockWatch:
    """Statistics of the blocks of a model during forward passes."""

    def __init__(self) -> None:
        self._entropies: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._peaks: dict[int, Tensor] = {}

    def on_attention(self, attention: Any, tokens: Tensor) -> None:
        """Record the entropy of the attention weights for the input `tokens` of an attention module."""
        weights = attention.attention_weights(tokens)
        num_keys = weights.shape[-1]
        if num_keys > 1:
            entropy = torch.special.entr(weights.double()).sum(-1).mean() / torch.tensor(num_keys).double().log()
            self._entropies.append(entropy)

    def on_logits(self, attention: Any, tokens: Tensor) -> None:
        """Record the largest attention logit for the input `tokens` of an attention module."""
        logits = attention.attention_logits(tokens)
        self._logits.append(torch.where(logits.isinf(), 0.0, logits).abs().max())

    def on_activation(self, key: int, activation: Tensor) -> None:
        """Record the peaks of the hidden units from the activations (..., hidden) of an MLP."""
        peak = activation.abs().flatten(0, -2).amax(0)
        known = self._peaks.get(key)
        self._peaks[key] = peak if known is None else torch.maximum(known, peak)

    def signals(self) -> dict[Signal, float]:
        """The signals over all blocks and images."""
        found: dict[Signal, float] = {}
        if self._entropies:
            found[Signal.ATTENTION_ENTROPY] = float(torch.stack(self._entropies).mean())
        if self._logits:
            found[Signal.ATTENTION_LOGIT] = float(torch.stack(self._logits).max())
        if self._peaks:
            found[Signal.DEAD_UNITS] = float((torch.cat(list(self._peaks.values())) < DEAD_BELOW).double().mean())
        return found


@contextmanager
def _watched_blocks(model: nn.Module, wanted: frozenset[Signal]) -> Iterator[_BlockWatch]:
    """Record statistics of the model's blocks during forward passes inside the context."""
    watch = _BlockWatch()
    handles = []
    for number, block in enumerate(module for module in model.modules() if is_block(module)):
        if Signal.ATTENTION_ENTROPY in wanted:
            handles.append(block.attn.register_forward_pre_hook(_first_input(watch.on_attention)))
        if Signal.ATTENTION_LOGIT in wanted:
            handles.append(block.attn.register_forward_pre_hook(_first_input(watch.on_logits)))
        if Signal.DEAD_UNITS in wanted:
            act = block.mlp.get_submodule("act")
            handles.append(act.register_forward_hook(_output(watch.on_activation, number)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _first_input(take: Callable[[Any, Tensor], None]) -> Callable[[nn.Module, Any], None]:
    return lambda module, inputs: take(module, inputs[0])


def _output(take: Callable[[int, Tensor], None], key: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, output: take(key, output)
