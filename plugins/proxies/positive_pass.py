"""The data-free pass of SynFlow and DSS: absolute parameters, an image of ones, and the sum of the logits.

The sums grow by a factor per block and would overflow float32 at the depth of a vision transformer, so the pass uses
float64 and the scores are logarithms. Layer norms are kept, with absolute parameters. Since their outputs have both
signs, saliencies are absolute values.
"""

import copy
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from plugins.protocols import Candidate, ProxyScore, is_block
from plugins.proxies.passes import score_together, sum_of
from plugins.proxies.repeats import networks, on_all_cores


@runtime_checkable
class PositiveProxy(Protocol):
    """A proxy that reads its value for one network from a positive pass. It is frozen: equal proxies share values."""

    @property
    def repeats(self) -> int:
        """Number of fresh networks to average over."""
        ...

    def measure_positive(self, positive: "PositivePass") -> float:
        """The score of one network. A non-finite value marks the topology as bad."""
        ...


@dataclass(frozen=True, kw_only=True)
class PositivePass:
    """Absolute weights of the layers and the gradients of `R = sum(logits)` for them, float64, by layer name.

    The layers are the linear and convolution layers used in the forward pass.
    """

    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    attention: frozenset[str]
    """Names of the linear layers within attention."""


def score_positive(proxy: PositiveProxy, candidate: Candidate) -> ProxyScore:
    """Mean and spread of `proxy.measure_positive` over its repeats, with one pass per repeat for all companions."""
    return score_together(
        proxy,
        candidate,
        kind=PositiveProxy,
        record=record_positive,
        measure=lambda one, positive: one.measure_positive(positive),
    )


def record_positive(candidate: Candidate, seed: int) -> PositivePass:
    """Record the positive pass of the candidate's network for a seed. The network itself is not modified."""
    (fresh,) = networks(candidate, [seed])
    model = copy.deepcopy(fresh).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    image = torch.ones_like(candidate.images[:1], dtype=torch.float64)
    weights = [layer.weight for layer in layers.values()]
    gradients = torch.autograd.grad(model(image).sum(), weights, allow_unused=True)
    found = {name: gradient for name, gradient in zip(layers, gradients, strict=True) if gradient is not None}
    return PositivePass(
        weights={name: layers[name].weight.detach() for name in found},
        gradients=found,
        attention=frozenset(
            name
            for path, block in model.named_modules()
            if is_block(block)
            for name in found
            if name.startswith(f"{path}.attn." if path else "attn.")
        ),
    )


def log_saliency(positive: PositivePass) -> float:
    """`log sum |W * dR/dW|` over all layers."""
    return _log(sum_of(_saliency(positive, name) for name in positive.weights))


def log_diversity_and_saliency(positive: PositivePass, *, square_layers: bool = False) -> float:
    """`log` of `||dR/dW||_nuc ||W||_nuc` summed over attention layers plus `sum |W * dR/dW|` over the other layers.

    With `square_layers`, all linear layers with as many outputs as inputs count as attention layers.
    """
    diverse = [
        name
        for name, weight in positive.weights.items()
        if name in positive.attention or (square_layers and weight.ndim == 2 and weight.shape[0] == weight.shape[1])
    ]
    matrices = [matrix for name in diverse for matrix in (positive.gradients[name], positive.weights[name])]
    device = next(iter(positive.weights.values())).device.type
    norms = list(on_all_cores(nuclear_norm, matrices, device=device))
    products = [gradient * weight for gradient, weight in zip(norms[::2], norms[1::2], strict=True)]
    others = [_saliency(positive, name) for name in positive.weights if name not in diverse]
    return _log(sum_of([*products, *others]))


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of the singular values, computed from the eigenvalues of the smaller Gram matrix.

    In float64, this is several times faster than a singular value decomposition. The error of each singular value is
    about 1e-8 of the largest one.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    gram = matrix @ matrix.T
    if not bool(torch.isfinite(gram).all()):
        return gram.new_tensor(math.nan)
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0).sqrt().sum()


def _saliency(positive: PositivePass, name: str) -> Tensor:
    return (positive.weights[name] * positive.gradients[name]).abs().sum()


def _log(value: float) -> float:
    """The logarithm; nan if `value` is 0, which means that no signal passes through the network, or is nan."""
    return math.log(value) if value > 0 else math.nan
