"""What the dimensions of a model's tensors mean, as far as selecting a part of them depends on it."""

from typing import NamedTuple

from torch import nn

from trainers.models.as_vit_layers import PatchMerging
from trainers.models.blocks import SelfAttention

Factors = tuple[int, ...]
"""Sizes whose product is the size of a dimension, such as heads and channels of a head; the last changes fastest."""


class Axes(NamedTuple):
    """The dimensions of a tensor."""

    each: tuple[Factors, ...]
    """Factors of each dimension."""
    plain: tuple[Factors, ...]
    """The same if heads need not stay together."""
    kernel: int | None = None
    """Side of the square of tokens that patch merging joins, whose places are the first two factors of a dimension."""


def axes_of(model: nn.Module) -> dict[str, Axes]:
    """The dimensions of all tensors of a model's state dict."""
    found: dict[str, Axes] = {}
    for prefix, module in model.named_modules():
        for name, tensor in module.state_dict(keep_vars=True).items():
            key = f"{prefix}.{name}" if prefix else name
            sizes = tuple((size,) for size in tensor.shape)
            found[key] = _special(module, name, sizes) or found.get(key) or Axes(sizes, sizes)
    return found


def _special(module: nn.Module, name: str, sizes: tuple[Factors, ...]) -> Axes | None:
    if isinstance(module, SelfAttention):
        heads = (module.heads, module.head_width)
        inner = (module.heads * module.head_width,)
        if name in ("qkv.weight", "qkv.bias"):
            return Axes(((3, *heads), *sizes[1:]), ((3, *inner), *sizes[1:]))
        if name == "proj.weight":
            return Axes((sizes[0], heads), (sizes[0], inner))
    if isinstance(module, PatchMerging):
        if name == "reduction.weight":
            square = (module.kernel, module.kernel, sizes[1][0] // module.kernel**2)
            return Axes((sizes[0], square), (sizes[0], square), module.kernel)
        if name in ("norm.weight", "norm.bias"):
            square = (module.kernel, module.kernel, sizes[0][0] // module.kernel**2)
            return Axes((square,), (square,), module.kernel)
    if isinstance(module, nn.Conv2d) and module.groups > 1 and name in ("weight", "bias"):
        outputs = (module.groups, module.out_channels // module.groups)
        return Axes((outputs, *sizes[1:]), sizes)
    return None
