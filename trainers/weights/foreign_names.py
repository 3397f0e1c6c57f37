"""Names that other libraries give the tensors of a plain vision transformer, such as timm's and DeiT's."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_RENAMED = {
    "cls_token": "class_token",
    "pos_embed": "position",
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "fc_norm.weight": "norm.weight",
    "fc_norm.bias": "norm.bias",
}
"""timm's names; those of blocks, `norm` and `head` are ours, too."""
_LAYER_SCALES = {"ls1.gamma": "attn.proj", "gamma_1": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma_2": "mlp.fc2"}
"""Factors of the output channels of a branch, and the linear layer into which they are multiplied."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
_NESTED = ("state_dict", "model", "model_state_dict", "module", "teacher")
_MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")


class Renamed(NamedTuple):
    """Tensors of a plain vision transformer under our names."""

    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    """Names of tensors that our model does not have."""


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The tensors in what a checkpoint file holds: a state dict, or a mapping with one under a usual key."""
    if not isinstance(content, Mapping):
        return None
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return state_dict_in(content[key])
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {_without_prefix(name): value for name, value in tensors.items()} or None


def is_plain_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of timm's or DeiT's plain vision transformer."""
    return all(mark in tensors for mark in _MARKS)


def from_plain_transformer(tensors: Mapping[str, Tensor]) -> Renamed:
    """The weights of a plain vision transformer for `trainers.models.autoformer`.

    Both have queries, keys and values in one matrix, head by head. Layer scales are multiplied into the layer before.
    Tokens that AutoFormer lacks (distillation, registers) are ignored, and so are their positions.
    """
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for name, value in tensors.items():
        if _scaled_layer(name) is not None:
            continue
        if name == "pos_embed":
            found["position"] = _positions(value, tensors.get("cls_token"))
        elif name in ("norm.weight", "norm.bias"):
            found.setdefault(name, value)
        elif name in _RENAMED:
            found[_RENAMED[name]] = value
        elif name.startswith("blocks.") or name in ("head.weight", "head.bias"):
            found[name] = value
        else:
            left.append(name)
    for name, value in tensors.items():
        layer = _scaled_layer(name)
        for parameter in (f"{layer}.weight", f"{layer}.bias") if layer else ():
            if parameter in found:
                old = found[parameter]
                found[parameter] = old * value.view(-1, *[1] * (old.dim() - 1))
    return Renamed(found, tuple(left))


def _scaled_layer(name: str) -> str | None:
    """Name of the linear layer whose output a layer scale multiplies; `None` if the tensor is none."""
    kind, _, rest = name.partition(".")
    block, _, inner = rest.partition(".")
    return f"blocks.{block}.{_LAYER_SCALES[inner]}" if kind == "blocks" and inner in _LAYER_SCALES else None


def _positions(value: Tensor, class_token: Tensor | None) -> Tensor:
    """Positions (1, 1 + side^2, D) of the class token and the patches.

    The first position is the class token's if the model has one; others before the patches are ignored.
    """
    flat = value.reshape(-1, value.shape[-1])
    side = int(len(flat) ** 0.5)
    patches = flat[len(flat) - side**2 :]
    has_own = class_token is not None and len(flat) > side**2
    first = flat[:1] if has_own else flat.new_zeros(1, flat.shape[-1])
    return torch.cat([first, patches])[None]


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
