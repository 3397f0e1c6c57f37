"""How the weights of a network and of a smaller one of the same space become each other.

Legend: a dimension of a tensor is a product of factors, such as heads and channels per head; a factor of `n` in the
network is one of `m` in the smaller network.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from plugins.protocols import is_block
from trainers.weights.axes import Factors, axes_of

_OUTPUTS = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
"""Parameters of the last layers of a block's branches, without which the block adds nothing."""
_HEAD_NORMS = ("attn.query_norm.", "attn.key_norm.")


class Relation(Protocol):
    """A network and a smaller one, both by the names of their parameters."""

    added: frozenset[str]
    """Parameters of the network that scale what it adds to the smaller one."""

    def reduce(self, large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The smaller network's parameters from those of the network."""
        ...

    def expand(self, small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters from those of the smaller one, and from those that it had."""
        ...


class PartOfBlocks(Relation):
    """The smaller network has the first blocks of each stage; parameters of the same name are the same.

    Args:
        model: The network.
        small: The smaller one.

    Raises:
        ValueError: It has other parameters, or its blocks have unknown last layers.
    """

    def __init__(self, model: nn.Module, small: nn.Module) -> None:
        shapes, own = _shapes(model), _shapes(small)
        for name, shape in own.items():
            if shapes.get(name) != shape:
                raise ValueError(
                    f"a network with the first blocks must have parameters of the whole one, but {name} has the shape "
                    f"{shape} and there {shapes.get(name, 'does not exist')}. Choose another curriculum."
                )
        self._names = tuple(own)
        kept = {block for blocks in _blocks(small).values() for block in blocks}
        new = [block for blocks in _blocks(model).values() for block in blocks if block not in kept]
        added = {f"{block}.{name}" for block in new for name in _OUTPUTS}
        unknown = sorted(added - shapes.keys())
        if unknown:
            raise ValueError(
                f"added blocks must end in the layers `attn.proj` and `mlp.fc2`, but {unknown[0]} does not exist. "
                "Choose another curriculum."
            )
        self.added = frozenset(added)

    def reduce(self, large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: large[name] for name in self._names}

    def expand(self, small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**large, **small}


class PairedBlocks(Relation):
    """The smaller network's weights are means over pairs of blocks, and over channels `i`, `i + m`, ... of each factor.

    `reduce` takes means over the outputs of a layer, and sums over its inputs; `expand` copies outputs and divides
    inputs, so that the widened network computes what the smaller one does. Blocks are copied.

    Args:
        model: The network.
        small: The smaller one.
        interpolation: Share of the smaller network in `expand`.

    Raises:
        ValueError: A size of the network is no multiple of that of the smaller one.

    Source: Zou et al. 2024, arXiv:2404.07999, section 3 (coalescing, de-coalescing and interpolation).
    """

    added: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, small: nn.Module, *, interpolation: float) -> None:
        self._interpolation = interpolation
        self._sources = _sources(model, small)
        axes, own = axes_of(model), axes_of(small)
        self._large_axes = {name: axes[name].each for name in _shapes(model)}
        self._small_axes = {name: own[name].each for name in _shapes(small)}
        self._has_inputs = {
            f"{prefix}.weight" for prefix, one in small.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)
        }
        self._scaled_norms = {name for name in self._small_axes if any(part in name for part in _HEAD_NORMS)}
        for name, sources in self._sources.items():
            for source in sources:
                self._check(name, source)

    def reduce(self, large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.stack([self._fold(name, source, large[source]) for source in sources]).mean(0)
            for name, sources in self._sources.items()
        }

    def expand(self, small: Mapping[str, Tensor], large: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mixed = {
            source: large[source].lerp(self._unfold(name, source, small[name]), self._interpolation)
            for name, sources in self._sources.items()
            for source in sources
        }
        return {**large, **mixed}  # a deeper network may have more auxiliary heads

    def _fold(self, name: str, source: str, tensor: Tensor) -> Tensor:
        """A tensor of the smaller network from one of the network."""
        for dim, (before, after) in enumerate(self._factors(name, source)):
            shape = tensor.shape
            tensor = tensor.reshape(*shape[:dim], *before, *shape[dim + 1 :])
            for place, (n, m) in enumerate(zip(before, after, strict=True)):
                at = dim + place
                pairs = tensor.reshape(*tensor.shape[:at], n // m, m, *tensor.shape[at + 1 :])
                tensor = pairs.sum(at) if dim == 1 and name in self._has_inputs else pairs.mean(at)
            tensor = tensor.reshape(*shape[:dim], -1, *shape[dim + 1 :])
        return self._scaled(name, tensor, 1 / self._head_scale(name, source))

    def _unfold(self, name: str, source: str, tensor: Tensor) -> Tensor:
        """A tensor of the network from one of the smaller network, which computes the same."""
        tensor = self._scaled(name, tensor, self._head_scale(name, source))
        for dim, (before, after) in enumerate(self._factors(name, source)):
            shape = tensor.shape
            tensor = tensor.reshape(*shape[:dim], *after, *shape[dim + 1 :])
            for place, (n, m) in enumerate(zip(before, after, strict=True)):
                repeats = [1] * tensor.ndim
                repeats[dim + place] = n // m
                tensor = tensor.repeat(repeats)
                if dim == 1 and name in self._has_inputs:
                    tensor = tensor / (n // m)
            tensor = tensor.reshape(*shape[:dim], -1, *shape[dim + 1 :])
        return tensor

    def _factors(self, name: str, source: str) -> Sequence[tuple[Factors, Factors]]:
        """Factors of each dimension in the network and in the smaller one."""
        return list(zip(self._large_axes[source], self._small_axes[name], strict=True))

    def _head_scale(self, name: str, source: str) -> float:
        """Factor of widened queries and keys, with which the products of two have the size of the smaller network's.

        `k` copies of a channel multiply a product by `k`, and the scale of attention divides it by `sqrt(k)`.
        """
        if ".attn.qkv." not in name and name not in self._scaled_norms:
            return 1.0
        before, after = self._factors(name, source)[0]
        return float((after[-1] / before[-1]) ** 0.25)

    def _scaled(self, name: str, tensor: Tensor, factor: float) -> Tensor:
        """A tensor whose queries and keys are multiplied by a factor; norms of them, if there are any, instead."""
        if factor == 1.0:
            return tensor
        if name in self._scaled_norms:
            return tensor * factor
        if self._scaled_norms:
            return tensor
        scaled = tensor.clone()
        scaled[: 2 * len(tensor) // 3] *= factor
        return scaled

    def _check(self, name: str, source: str) -> None:
        for before, after in self._factors(name, source):
            if len(before) != len(after) or any(n % m for n, m in zip(before, after, strict=True)):
                raise ValueError(
                    f"a network of half the size must have divisors of the sizes of the whole one, but {name} has "
                    f"{after} where {source} has {before}. Choose another topology or curriculum."
                )


def _sources(model: nn.Module, small: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the network's parameters that become each parameter of the smaller one."""
    pairs = {}
    stages = _blocks(model)
    for stage, blocks in _blocks(small).items():
        step = -(-len(stages[stage]) // len(blocks))
        for number, block in enumerate(blocks):
            pairs[block] = stages[stage][step * number : step * (number + 1)]
    found = {}
    for name in _shapes(small):
        own = [block for block in pairs if name.startswith(f"{block}.")]
        found[name] = tuple(one + name.removeprefix(own[0]) for one in pairs[own[0]]) if own else (name,)
    return found


def _blocks(model: nn.Module) -> dict[str, list[str]]:
    """Names of the blocks of each stage, in order, by the name of the module that contains them."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if is_block(module):
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
