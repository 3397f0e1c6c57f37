"""Statistics of a network's transformer blocks: the inputs of `plugins.proxies.formulas`.

Legend: `B` images, `N` tokens, `D` width of the residual stream, `I` channels of all heads, `M` hidden width of MLPs.

| input | for the attention | for the MLP |
|---|---|---|
| `weight` | weights of query, key, value and projection, one row per channel of a head: (4 I, D) | (2 M, D) |
| `gradient` | gradient of the mean cross-entropy over the batch with respect to `weight` | the same |
| `saliency` | elementwise product of `weight` and `gradient` | the same |
| `activation` | output that is added to the residual stream, with its layer scale: (B N, D) | the same |
| `activation_gradient` | gradient with respect to `activation`, and thus also to `stream`: (B N, D) | the same |
| `stream` | residual stream after the addition: (B N, D) | the same |

`weight` concatenates the weights that read from the stream and the transposed weights that write to it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from plugins.proxies.formulas import SPECTRAL, Statistic
from plugins.proxies.passes import BlockRecord, RecordedPass
from plugins.proxies.repeats import on_all_cores
from plugins.proxies.spectra import spectral_entropy, symmetric_eigenvalues

LOG_FLOOR = 1e-12
"""Number added to absolute values before taking the logarithm."""


def block_statistics(recorded: RecordedPass, wanted: Iterable[Statistic]) -> Tensor:
    """Compute the requested statistics of every block of a recorded pass.

    Args:
        recorded: The pass.
        wanted: Statistics of the grammar.

    Returns:
        Shape (statistics, blocks), float64, on the CPU. Rows are in the order of `wanted`, blocks in the order of the
        forward pass. An undefined statistic, such as the spectral entropy of a zero tensor, is not finite.

    Raises:
        ValueError: The network has no transformer block.
    """
    statistics = tuple(wanted)
    names = {module: name for name, module in recorded.model.named_modules()}
    parts = list(zip(*(part.blocks for part in recorded.parts), strict=True))
    if not parts:
        raise ValueError(
            "a formula needs a network with blocks as in plugins.protocols.TransformerBlock, but "
            f"{recorded.candidate.topology.id} has none. Remove proxies with formulas from the study."
        )
    by_input: defaultdict[str, list[int]] = defaultdict(list)
    for index, statistic in enumerate(statistics):
        by_input[statistic.input].append(index)
    if any(name.endswith(("gradient", "saliency")) for name in by_input):
        _ = recorded.mean_gradients  # computed on all cores before the blocks read them

    @torch.no_grad()
    def measure(records: tuple[BlockRecord, ...]) -> Tensor:
        block = _Block(recorded, records, names)
        values: list[Tensor] = [torch.empty(0)] * len(statistics)
        for name, indices in by_input.items():
            tensor = _Matrix(block.tensor(name))
            for index in indices:
                values[index] = tensor.reduced(statistics[index])
        return torch.stack(values).double()

    return torch.stack(list(on_all_cores(measure, parts, device=recorded.candidate.images.device.type)), 1).cpu()


@dataclass(frozen=True)
class _Block:
    """The tensors of one block for the whole batch."""

    recorded: RecordedPass
    records: Sequence[BlockRecord]
    """One record per part of the batch."""
    names: Mapping[torch.nn.Module, str]

    def tensor(self, name: str) -> Tensor:
        """An input of formulas, by name, as a matrix with D columns."""
        part, _, quantity = name.partition(".")
        block = self.records[0].block
        if part == "attention":
            module, reads, writes, place = block.attn, *_layers(block.attn, "qkv", "proj"), 1
        else:
            module, reads, writes, place = block.mlp, *_layers(block.mlp, "fc1", "fc2"), 2
        match quantity:
            case "weight":
                return _side_by_side(reads.get_parameter("weight"), writes.get_parameter("weight"))
            case "gradient":
                return self._gradient(reads, writes)
            case "saliency":
                return self.tensor(f"{part}.weight") * self._gradient(reads, writes)
            case "activation":
                outputs = _rows(recorded.outputs[self.names[writes]] for recorded in self.recorded.parts)
                return outputs if (scale := _scale(module)) is None else outputs * scale
            case "activation_gradient":
                shares = [len(one.images) / len(self.recorded.candidate.images) for one in self.recorded.parts]
                gradients = [one.outputs[self.names[writes]] for one in self.recorded.gradients]
                rows = _rows(share * gradient for share, gradient in zip(shares, gradients, strict=True))
                return rows if (scale := _scale(module)) is None else rows / scale
            case _:
                return _rows(record.stream[place] for record in self.records)

    def _gradient(self, reads: torch.nn.Module, writes: torch.nn.Module) -> Tensor:
        gradients = self.recorded.mean_gradients
        return _side_by_side(gradients[self.names[reads]], gradients[self.names[writes]])


class _Matrix:
    """A tensor of a block, with cached intermediate results of its statistics."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._written: str | None = None
        self._spectra: dict[str | None, Tensor] = {}

    def reduced(self, statistic: Statistic) -> Tensor:
        """The value of a statistic, a scalar."""
        if statistic.reduction in SPECTRAL:
            return _SPECTRAL[statistic.reduction](self._spectrum(statistic.transform))
        return _ELEMENTWISE[statistic.reduction](self._transform(statistic.transform))

    def _transform(self, name: str | None) -> Tensor:
        if name is None:
            return self.tensor
        if name != self._written:
            _TRANSFORMS[name](self.tensor, self._buffer)
            self._written = name
        return self._buffer

    @cached_property
    def _buffer(self) -> Tensor:
        """Memory of the newest transform. New memory for each transform would take longer than the arithmetic."""
        return torch.empty_like(self.tensor)

    def _spectrum(self, transform: str | None) -> Tensor:
        """Squares of the singular values, in float64; nan if the tensor is not finite."""
        if transform not in self._spectra:
            gram = self._gram
            if transform == "center":
                mean = self.tensor.double().mean(0)
                gram = gram - len(self.tensor) * mean.outer(mean)
            self._spectra[transform] = symmetric_eigenvalues(gram).clamp(min=0)
        return self._spectra[transform]

    @cached_property
    def _gram(self) -> Tensor:
        """Inner products of the columns, (D, D), in float64, since float32 would lose the small singular values."""
        double = self.tensor.double()
        return double.mT @ double


def _layers(module: torch.nn.Module, *names: str) -> tuple[torch.nn.Module, ...]:
    return tuple(module.get_submodule(name) for name in names)


def _scale(module: torch.nn.Module) -> Tensor | None:
    """The layer scale (D,) between the last linear layer of a branch and the residual stream; `None` without one."""
    scale = getattr(module, "scale", None)
    return None if scale is None else scale.get_parameter("gamma").detach()


def _side_by_side(reads: Tensor, writes: Tensor) -> Tensor:
    """Concatenate (A, D) and the transpose of (D, B) to (A + B, D)."""
    return torch.cat([reads, writes.mT])


def _rows(parts: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors (B, ..., D) to one matrix (B N, D)."""
    return torch.cat([part.flatten(0, -2) for part in parts])


def _minmax(x: Tensor, out: Tensor) -> Tensor:
    low, high = torch.aminmax(x)
    return torch.sub(x, low, out=out).div_(high - low)


_TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "abs": lambda x, out: torch.abs(x, out=out),
    "log": lambda x, out: torch.abs(x, out=out).add_(LOG_FLOOR).log_(),
    "sqrt": lambda x, out: torch.abs(x, out=out).sqrt_(),
    "square": lambda x, out: torch.square(x, out=out),
    "sigmoid": lambda x, out: torch.sigmoid(x, out=out),
    "relu": lambda x, out: torch.clamp(x, min=0, out=out),
    "tanh": lambda x, out: torch.tanh(x, out=out),
    "minmax": _minmax,
    "standardize": lambda x, out: torch.sub(x, x.mean(), out=out).div_(x.std(correction=0)),
    "center": lambda x, out: torch.sub(x, x.mean(0), out=out),
}
"""Each function writes its result to the second argument."""
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "l1": lambda x: torch.linalg.vector_norm(x, 1) / x.numel(),
    "frobenius": torch.linalg.vector_norm,
    "std": lambda x: torch.std(x, correction=0),
}
_SPECTRAL: dict[str, Callable[[Tensor], Tensor]] = {
    "nuclear": lambda squares: squares.sqrt().sum(),
    "spectral": lambda squares: squares.max().sqrt(),
    "effective_rank": lambda squares: spectral_entropy(squares.sqrt()).exp(),
    "entropy": spectral_entropy,
}
