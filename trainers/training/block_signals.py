"""Signals of the blocks of a model, recorded by hooks during forward passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import Signal, is_block
from trainers.training.signal_arithmetic import in_float64, share

DEAD_BELOW = 0.01
"""A hidden unit is dead if all its activations stay below this value."""
DORMANT_SHARE = 0.025
"""A hidden unit is dormant if its mean absolute activation is at most this share of its layer's mean.

Source: Sokar et al. 2023, arXiv:2302.12902, definition 3.1.
"""
BLOCK_SIGNALS = frozenset({Signal.ATTENTION_ENTROPY, Signal.ATTENTION_LOGIT, Signal.DEAD_UNITS, Signal.DORMANT_UNITS})


class BlockWatch:
    """Statistics of the blocks of a model during forward passes."""

    def __init__(self) -> None:
        self._entropies: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._peaks: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}

    def on_attention(self, attention: Any, *inputs: Any) -> None:
        """Record the entropy of the attention weights for the inputs of an attention module."""
        weights = attention.attention_weights(*inputs)
        num_keys = weights.shape[-1]
        if num_keys > 1:
            wide = in_float64(weights)
            self._entropies.append(torch.special.entr(wide).sum(-1).mean() / wide.new_tensor(num_keys).log())

    def on_logits(self, attention: Any, *inputs: Any) -> None:
        """Record the largest attention logit for the inputs of an attention module."""
        logits = attention.attention_logits(*inputs)
        self._logits.append(torch.where(logits.isinf(), 0.0, logits).abs().max())

    def on_peaks(self, key: int, activation: Tensor) -> None:
        """Record the peaks of the hidden units from the activations (..., hidden) of an MLP."""
        peak = activation.abs().flatten(0, -2).amax(0)
        known = self._peaks.get(key)
        self._peaks[key] = peak if known is None else torch.maximum(known, peak)

    def on_sums(self, key: int, activation: Tensor) -> None:
        """Add up the absolute activations (..., hidden) of an MLP's hidden units."""
        total = in_float64(activation.abs().flatten(0, -2).float()).sum(0)
        known = self._sums.get(key)
        self._sums[key] = total if known is None else known + total

    def signals(self) -> dict[Signal, float]:
        """The signals over all blocks and images."""
        found: dict[Signal, float] = {}
        if self._entropies:
            found[Signal.ATTENTION_ENTROPY] = float(torch.stack(self._entropies).mean())
        if self._logits:
            found[Signal.ATTENTION_LOGIT] = float(torch.stack(self._logits).max())
        if self._peaks:
            found[Signal.DEAD_UNITS] = share(torch.cat(list(self._peaks.values())) < DEAD_BELOW)
        if self._sums:
            dormant = [total <= DORMANT_SHARE * total.mean() for total in self._sums.values()]
            found[Signal.DORMANT_UNITS] = share(torch.cat(dormant))
        return found


@contextmanager
def watched_blocks(model: nn.Module, wanted: frozenset[Signal]) -> Iterator[BlockWatch]:
    """Record statistics of the model's blocks during forward passes inside the context."""
    watch = BlockWatch()
    handles = []
    for number, block in enumerate(module for module in model.modules() if is_block(module)):
        if Signal.ATTENTION_ENTROPY in wanted:
            handles.append(block.attn.register_forward_pre_hook(_inputs(watch.on_attention)))
        if Signal.ATTENTION_LOGIT in wanted:
            handles.append(block.attn.register_forward_pre_hook(_inputs(watch.on_logits)))
        if wanted & {Signal.DEAD_UNITS, Signal.DORMANT_UNITS}:
            act = block.mlp.get_submodule("act")
            if Signal.DEAD_UNITS in wanted:
                handles.append(act.register_forward_hook(_output(watch.on_peaks, number)))
            if Signal.DORMANT_UNITS in wanted:
                handles.append(act.register_forward_hook(_output(watch.on_sums, number)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _inputs(take: Callable[..., None]) -> Callable[[nn.Module, Any], None]:
    return lambda module, inputs: take(module, *inputs)


def _output(take: Callable[[int, Tensor], None], key: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, output: take(key, output)
