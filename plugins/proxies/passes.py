"""One forward and backward pass of a fresh network over the batch, shared by all scores that can be read from it.

Legend: `B` images, `N` tokens, `D` width, `P` parts of the batch.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import Candidate, ProxyScore, TransformerBlock, is_block
from plugins.proxies.repeats import networks, on_all_cores, repeat_seeds, summarize

NUM_PARTS = 2
"""Number of mini-batches into which the batch is split. ZiCo needs at least two, to measure their variation."""

Recorded = TypeVar("Recorded")


@runtime_checkable
class PassReader(Protocol):
    """A proxy that reads its value for one network from a recorded pass. It is frozen: equal proxies share values."""

    @property
    def repeats(self) -> int:
        """Number of fresh networks to average over."""
        ...

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network. A non-finite value marks the topology as bad."""
        ...


def score_passes(proxy: PassReader, candidate: Candidate) -> ProxyScore:
    """Mean and spread of `proxy.measure` over its repeats.

    Each pass is measured for all companions of the candidate and then discarded. Each pass is therefore made once, for
    any number of proxies, and only one is in memory at a time.
    """
    return score_together(
        proxy, candidate, kind=PassReader, record=record_pass, measure=lambda one, recorded: one.measure(recorded)
    )


def score_together(
    proxy: Any,
    candidate: Candidate,
    *,
    kind: type[Any],
    record: Callable[[Candidate, int], Recorded],
    measure: Callable[[Any, Recorded], float],
) -> ProxyScore:
    """Mean and spread of a measure over the repeats of `proxy`, with one recording per repeat for all companions.

    Args:
        proxy: A frozen proxy with a number of `repeats`.
        candidate: The topology to score. Companions of the same kind are measured too, and their values are stored in
            `shared`; companions that fail are skipped.
        kind: Runtime-checkable protocol of the companions that read the same recording.
        record: Creates the recording for a seed. Each recording is discarded before the next one is created.
        measure: Reads the value of a proxy from the recording.
    """
    measured: dict[tuple[Any, int], float] = candidate.shared.setdefault(("measured", kind), {})
    others = {one for one in candidate.companions if isinstance(one, kind)} - {proxy}

    def measure_all(seed: int) -> None:
        recorded = record(candidate, seed)
        for other in others:
            if (other, seed) not in measured and seed in repeat_seeds(candidate.seed, other.repeats):
                with suppress(Exception):  # raised again when the companion is scored
                    measured[other, seed] = measure(other, recorded)
        measured[proxy, seed] = measure(proxy, recorded)

    seeds = repeat_seeds(candidate.seed, proxy.repeats)
    for seed in seeds:
        if (proxy, seed) not in measured:
            measure_all(seed)
    return summarize([measured[proxy, seed] for seed in seeds])


def sum_of(values: Iterable[Tensor]) -> float:
    """Sum of scalars on any device, in float64."""
    return float(torch.stack(list(values)).double().sum())


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """The tensors that passed through one block, with their autograd graph. Token dimensions depend on the model."""

    block: TransformerBlock
    stream: tuple[Tensor, Tensor, Tensor]
    """The residual stream before the block, after its attention and after its MLP, each (B, ..., D)."""
    attended: Tensor
    """Input of the attention module, (B, ..., D)."""
    hidden: Tensor
    """Input of the MLP's activation function, (B, ..., hidden width)."""


@dataclass(frozen=True, kw_only=True)
class RecordedPart:
    """The forward pass of one mini-batch, with its autograd graph."""

    images: Tensor
    """Shape (B / P, C, H, W); requires a gradient."""
    labels: Tensor
    logits: Tensor
    """Shape (B / P, classes)."""
    blocks: tuple[BlockRecord, ...]
    """Records of the blocks, in the order of the forward pass."""
    outputs: dict[str, Tensor]
    """Outputs of the linear and convolution layers that were called, by the name of the layer in the model."""


@dataclass(frozen=True)
class RecordedPass:
    """A fresh network with its forward passes over the parts of the batch."""

    candidate: Candidate
    seed: int
    """Seed of the network and of other random numbers of a measure."""
    model: nn.Module
    parts: tuple[RecordedPart, ...]

    def on_parts(self, work: Callable[[RecordedPart], Any]) -> list[Any]:
        """Apply `work` to every part, on all cores. `work` must retain the graphs that later calls need."""
        return list(on_all_cores(work, self.parts, device=self.candidate.images.device.type))

    def generator(self) -> torch.Generator:
        """A CPU generator for the random numbers of a measure, independent of the initial weights."""
        return torch.Generator().manual_seed(repeat_seeds(self.seed, 1)[0])

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The linear and convolution layers used in the forward pass, by name."""
        return {name: self.model.get_submodule(name) for name in self.parts[0].outputs}

    @cached_property
    def gradients(self) -> tuple["LossGradients", ...]:
        """Gradients of the mean cross-entropy of each part."""
        return tuple(self.on_parts(self._differentiate))

    @cached_property
    def mean_gradients(self) -> dict[str, Tensor]:
        """Gradients of the mean cross-entropy over the whole batch for the weight of each layer, by layer name."""
        shares = [len(part.images) / len(self.candidate.images) for part in self.parts]
        means = {name: shares[0] * gradient for name, gradient in self.gradients[0].weights.items()}
        for share, part in zip(shares[1:], self.gradients[1:], strict=True):
            for name, mean in means.items():
                mean.add_(part.weights[name], alpha=share)
        return means

    def _differentiate(self, part: RecordedPart) -> "LossGradients":
        loss = F.cross_entropy(part.logits, part.labels)
        weights = [layer.get_parameter("weight") for layer in self.layers.values()]
        found = torch.autograd.grad(loss, [*weights, *part.outputs.values()], retain_graph=True, materialize_grads=True)
        return LossGradients(
            weights=dict(zip(self.layers, found[: len(weights)], strict=True)),
            outputs=dict(zip(part.outputs, found[len(weights) :], strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class LossGradients:
    """Gradients of the mean cross-entropy of a part, by layer name."""

    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]
    """Gradients for the outputs of the layers, in the same shapes."""


def record_pass(candidate: Candidate, seed: int) -> RecordedPass:
    """Build the candidate's network for a seed and record its forward pass over the batch in `NUM_PARTS` parts."""
    (model,) = networks(candidate, [seed])
    size = math.ceil(len(candidate.images) / NUM_PARTS)
    batches = list(zip(torch.split(candidate.images, size), torch.split(candidate.labels, size), strict=True))
    with _recording(model) as calls_of:

        def forward(batch: tuple[Tensor, Tensor]) -> RecordedPart:
            images = batch[0].detach().requires_grad_()
            with calls_of() as calls:
                logits = model(images)
            return _part(model, images, batch[1], logits, calls)

        parts = tuple(on_all_cores(forward, batches, device=candidate.images.device.type))
    return RecordedPass(candidate, seed, model, parts)


class _Call(NamedTuple):
    inputs: Tensor
    output: Tensor


def _part(
    model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, calls: dict[nn.Module, _Call]
) -> RecordedPart:
    blocks = [
        BlockRecord(
            block=module,
            stream=(calls[module.norm1].inputs, calls[module.norm2].inputs, call.output),
            attended=calls[module.attn].inputs,
            hidden=calls[module.mlp.get_submodule("act")].inputs,
        )
        for module, call in calls.items()
        if is_block(module)
    ]
    outputs = {
        name: calls[module].output
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module in calls
    }
    return RecordedPart(images=images, labels=labels, logits=logits, blocks=tuple(blocks), outputs=outputs)


@contextmanager
def _recording(model: nn.Module) -> Iterator[Callable[[], AbstractContextManager[dict[nn.Module, _Call]]]]:
    """In this context, `calls_of()` collects this thread's calls of the model's modules, in the order of completion.

    Each module is recorded once. Blocks complete one after the other, so their order is that of the forward pass.
    """
    threads: dict[int, dict[nn.Module, _Call]] = {}

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls = threads.get(threading.get_ident())
        if calls is None or not inputs:
            return
        if module in calls and isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(f"a forward pass must call each layer once, but it called {module} twice.")
        calls[module] = _Call(inputs[0], output)

    @contextmanager
    def calls_of() -> Iterator[dict[nn.Module, _Call]]:
        own = threads[threading.get_ident()] = {}
        try:
            yield own
        finally:
            del threads[threading.get_ident()]

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(hook).remove)
        yield calls_of
