"""Fits weights to a model: the same topology exactly, another one of the same space by weight selection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from search_spaces.base import ImageTask
from trainers.models.auxiliary_heads import AUXILIARY
from trainers.models.building import build_model, space_of
from trainers.weights.axes import Axes, axes_of
from trainers.weights.reading import SourceWeights
from trainers.weights.selection import change_channels, crop_kernel, resize_grid, resize_patches, select_evenly

_POSITION = "position"
"""Name of learned position embeddings in our models."""
_UNITS = ("attn", "mlp", "embed")
"""Modules whose tensors are only useful together."""
_OPTIONAL = ("query_norm", "key_norm", "grn", "scale")
"""Modules of optional parts within these. The others are useful without them."""
_SCALE = ".scale.gamma"
_HEADS = f"{AUXILIARY}."
"""Prefix of the classifiers of inner features."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The weights that a model starts with, and where they come from. Names are those of the state dict."""

    state: Mapping[str, Tensor]
    """All tensors of the model; those that are fresh have the values that the model had."""
    exact: tuple[str, ...]
    """Tensors that are loaded as they are."""
    selected: tuple[str, ...]
    """Tensors selected from larger ones."""
    changed: tuple[str, ...]
    """What was changed in another way, in words."""
    fresh: tuple[str, ...]
    """Tensors without weights to start from."""
    known_classes: tuple[str, ...] | None
    """Classes whose rows of the last layer are loaded; `None` if the classes are the same."""
    num_classes: int
    last_layer: str = ""
    """Name of the module that computes the classes."""
    reason: str | None = None
    """Why nothing could be used; `None` if something was."""

    @property
    def text(self) -> str:
        """What the model starts from, in one line."""
        if self.reason is not None:
            return f"starts from random weights, because {self.reason}"
        taken = len(self.state) - len(self.fresh)
        parts = [f"{taken} of {len(self.state)} tensors"]
        if self.selected:
            parts[0] += f", {len(self.selected)} of them selected from larger ones"
        elif len(self.exact) == len(self.state):
            parts = ["all weights as they are"]
        parts += self.changed
        parts += [self._head] if self._head else []
        others = _places([name for name in self.fresh if _unit(name) != self.last_layer])
        parts += [f"random: {', '.join(others)}"] if others else []
        return "starts from " + "; ".join(parts)

    @property
    def _head_tensors(self) -> tuple[str, ...]:
        return tuple(name for name in self.state if _unit(name) == self.last_layer)

    @property
    def _head(self) -> str | None:
        if set(self._head_tensors) & set(self.fresh):
            return f"a new last layer for {self.num_classes} classes"
        if self.known_classes is None:
            return None
        if len(self.known_classes) == self.num_classes:
            return "the last layer matched by class name"
        shown = ", ".join(self.known_classes[:5]) + (", ..." if len(self.known_classes) > 5 else "")
        return (
            f"in the last layer {len(self.known_classes)} of {self.num_classes} classes known by name ({shown}), the "
            "others new"
        )


def fit_weights(source: SourceWeights, model: nn.Module, topology: str, class_names: Sequence[str]) -> Fit:
    """Fit weights to a freshly initialised model, which is not changed.

    Tensors of equal meaning and size are taken as they are. From larger ones, evenly spaced elements are selected along
    each dimension, and the first blocks of each stage. A tensor that is larger than its source in any dimension stays
    fresh, together with the other tensors of its attention, MLP or patch merging. Positions are interpolated to the
    model's grid, patch embeddings resized, and rows of the last layer matched by class name. Layer scales that only one
    of both has change nothing: they begin at 1, or are multiplied into the layer before them.

    Args:
        source: The weights.
        model: The model.
        topology: Its topology, `space:text`.
        class_names: Its classes, in order.

    Source: Xu et al. 2024, arXiv:2311.18823 (selection of elements and of the first blocks).
    """
    own = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    if source.topology is not None and space_of(source.topology) != space_of(topology):
        reason = f"the weights belong to the space {space_of(source.topology)}, and it to {space_of(topology)}"
        return _nothing(own, reason, len(class_names))
    return _Fitting(source, _model_of(source), model, own, class_names).run()


def load_initial(model: nn.Module, source: SourceWeights, topology: str, class_names: Sequence[str]) -> Fit:
    """Fit weights to a model, see `fit_weights`, and load them into it."""
    fit = fit_weights(source, model, topology, class_names)
    if fit.reason is None:
        model.load_state_dict(dict(fit.state))
    return fit


def plan_weights(source: SourceWeights, topology: str, task: ImageTask, class_names: Sequence[str]) -> Fit:
    """Fit weights to a new model of a topology; see `fit_weights`."""
    model = build_model(topology, task, seed=0, device=torch.device("cpu"))
    return fit_weights(source, model, topology, class_names)


def _nothing(own: Mapping[str, Tensor], reason: str, num_classes: int) -> Fit:
    return Fit(
        state=own,
        exact=(),
        selected=(),
        changed=(),
        fresh=tuple(own),
        known_classes=(),
        num_classes=num_classes,
        reason=reason,
    )


def _model_of(source: SourceWeights) -> nn.Module | None:
    """A model of the source's topology, which tells what its tensors mean; `None` if the topology is unknown."""
    if source.topology is None or source.task is None:
        return None
    return build_model(source.topology, source.task, seed=0, device=torch.device("cpu"))


class _Fitting:
    """One fit, tensor by tensor."""

    def __init__(
        self,
        source: SourceWeights,
        old_model: nn.Module | None,
        model: nn.Module,
        own: Mapping[str, Tensor],
        class_names: Sequence[str],
    ) -> None:
        self._source = source
        self._own = own
        self._axes = axes_of(model)
        self._old_axes = {} if old_model is None else axes_of(old_model)
        self._class_names = tuple(class_names)
        self._tensors, self._changed = _without_scales(source.tensors, own)
        modules = list(model.named_modules())
        linears = [name for name, module in modules if isinstance(module, nn.Linear) and not name.startswith(_HEADS)]
        self._head = linears[-1] if linears else ""
        self._patches, self._embed = _first_convolution(model)
        self._old_embed = None if old_model is None else _first_convolution(old_model)[1]

    def run(self) -> Fit:
        """Fit all tensors."""
        found = {name: self._fit(name) for name in self._own}
        missing = {_unit(name) for name, value in found.items() if value is None}
        missing |= {_unit(name) for name in found if _unit(f"{_scaled_layer(name)}.weight") in missing}
        taken = {name: value for name, value in found.items() if value is not None and _unit(name) not in missing}
        known = self._known_rows()
        head = {name: value for name, value in taken.items() if self._is_head(name)}
        if not any(_is_learned(name, value) for name, value in taken.items() if name not in head):
            reason = "no layer of it has a counterpart of at least its size in the weights"
            return _nothing(self._own, reason, len(self._class_names))
        changed = {name: words for name, words in self._changed.items() if name in taken}
        exact = tuple(name for name, value in taken.items() if name not in changed and self._is_exact(name, value))
        fresh = tuple(name for name in self._own if name not in taken)
        return Fit(
            state={**self._own, **{name: value.to(self._own[name].dtype) for name, value in taken.items()}},
            exact=exact,
            selected=tuple(name for name in taken if name not in {*exact, *changed, *head}),
            changed=tuple(dict.fromkeys(changed.values())),
            fresh=fresh,
            known_classes=None if self._has_same_classes else tuple(self._class_names[row] for row in sorted(known)),
            num_classes=len(self._class_names),
            last_layer=self._head,
        )

    @property
    def _has_same_classes(self) -> bool:
        return self._source.class_names == self._class_names

    def _is_head(self, name: str) -> bool:
        return name.rpartition(".")[0] == self._head

    def _is_exact(self, name: str, value: Tensor) -> bool:
        old = self._tensors.get(name)
        return old is not None and old.shape == value.shape and torch.equal(old, value)

    def _fit(self, name: str) -> Tensor | None:
        old, own = self._tensors.get(name), self._own[name]
        layer = _scaled_layer(name)
        if old is None and layer is not None and f"{layer}.weight" in self._tensors:
            self._changed[name] = "layer scales of 1"
            return torch.ones_like(own)
        if old is None or old.dim() != own.dim():
            return None
        if name.startswith(_HEADS) and not self._has_same_classes:
            return None
        if self._is_head(name):
            return self._fit_head(name, old)
        axes, before = self._axes[name], self._axes_before(name, old)
        if name in (_POSITION, f"{self._patches}.weight"):
            old = self._interpolated(old, own) if name == _POSITION else self._repatched(name, old, own)
            before = _same(tuple((size,) for size in old.shape))
        elif axes.kernel is not None:
            if before.kernel is None:
                return None
            old = self._merged(name, old, before, axes)
            before = _same(_with_kernel(before.each, axes.kernel))
        whole = select_evenly(old, before.each, axes.each)
        return whole if whole is not None else select_evenly(old, before.plain, axes.plain)

    def _axes_before(self, name: str, old: Tensor) -> Axes:
        """Factors of the source's tensor; without a topology, the number of heads is unknown."""
        if name in self._old_axes:
            return self._old_axes[name]
        own = self._axes[name]
        if tuple(old.shape) == tuple(self._own[name].shape):
            return own
        plain = tuple(
            (3, size // 3) if len(factors) == 2 and factors[0] == 3 and size % 3 == 0 else (size,)
            for size, factors in zip(old.shape, own.plain, strict=True)
        )
        return Axes(tuple((size,) for size in old.shape), plain)

    def _interpolated(self, old: Tensor, own: Tensor) -> Tensor:
        """Positions, (1, 1 + side^2, D) or (1, D, side, side), for the model's grid."""
        if old.dim() == 4:
            before, side = old.shape[-1], own.shape[-1]
            grid = resize_grid(old[0].permute(1, 2, 0), side).permute(2, 0, 1)[None]
        elif old.dim() == 3 and _is_square(old.shape[1] - 1) and _is_square(own.shape[1] - 1):
            before, side = isqrt(old.shape[1] - 1), isqrt(own.shape[1] - 1)
            patches = resize_grid(old[0, 1:].reshape(before, before, -1), side)
            grid = torch.cat([old[:, :1], patches.flatten(0, 1)[None]], 1)
        else:
            return old
        if side != before:
            self._changed[_POSITION] = f"positions interpolated from {before} x {before} to {side} x {side} tokens"
        return grid

    def _repatched(self, name: str, old: Tensor, own: Tensor) -> Tensor:
        """The weights of the first convolution for the model's channels and patch size."""
        words = []
        before, side = old.shape[-1], own.shape[-1]
        if old.shape[1] != own.shape[1]:
            words.append(f"first layer changed from {old.shape[1]} to {own.shape[1]} channels")
            old = change_channels(old, own.shape[1])
        if before != side:
            words.append(f"patches changed from {before} to {side} pixels")
        if words:
            self._changed[name] = " and ".join(words)
        if before == side:
            return old
        if self._embed is not None and self._old_embed is not None and self._embed.stride == self._old_embed.stride:
            stride = self._embed.stride[0]  # patches of the same grid: pixels keep their weights
            return crop_kernel(old, before, side, offset=(before - stride) // 2 - (side - stride) // 2)
        return resize_patches(old, side)

    def _merged(self, name: str, old: Tensor, before: Axes, axes: Axes) -> Tensor:
        """A tensor of patch merging for another number of merged tokens, which keep their places."""
        assert before.kernel is not None
        assert axes.kernel is not None
        if before.kernel == axes.kernel:
            return old
        width = before.each[-1][-1]
        kernels = old.reshape(-1, before.kernel, before.kernel, width).permute(0, 3, 1, 2)
        offset = (before.kernel - 2) // 2 - (axes.kernel - 2) // 2
        fill = 1.0 if name.endswith("norm.weight") else 0.0
        kernels = crop_kernel(kernels, before.kernel, axes.kernel, offset=offset, fill=fill)
        self._changed[name] = "patch merging cut or padded to another number of tokens"
        return kernels.permute(0, 2, 3, 1).reshape(*old.shape[:-1], -1)

    def _known_rows(self) -> dict[int, int]:
        """Rows of the last layer by the row of the same class in the source."""
        if self._has_same_classes:
            return {row: row for row in range(len(self._class_names))}
        if all(name.isdigit() for name in self._class_names):
            return {}  # numbers are rarely the same classes in another data set
        places = {name: row for row, name in enumerate(self._source.class_names)}
        return {row: places[name] for row, name in enumerate(self._class_names) if name in places}

    def _fit_head(self, name: str, old: Tensor) -> Tensor | None:
        own, rows = self._own[name], self._known_rows()
        if not rows:
            return None
        wanted = [tuple((size,) for size in shape) for shape in (old.shape, (len(old), *own.shape[1:]))]
        columns = select_evenly(old, wanted[0], wanted[1])
        if columns is None:
            return None
        fitted = own.clone().to(columns.dtype)
        fitted[list(rows)] = columns[list(rows.values())]
        return fitted


def _scaled_layer(name: str) -> str | None:
    """Name of the linear layer before a layer scale; `None` if the tensor is none."""
    module = name.removesuffix(_SCALE)
    if module == name:
        return None
    return f"{module}.proj" if module.endswith("attn") else f"{module}.fc2"


def _without_scales(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a source, with each layer scale that the model lacks multiplied into the layer before it.

    Also returns what was changed, in words, by the name of the tensor.
    """
    found, changed = dict(tensors), {}
    for name in tensors:
        layer = _scaled_layer(name)
        if layer is None or name in own or f"{layer}.weight" not in tensors:
            continue
        scale = found.pop(name)
        for parameter, factor in ((f"{layer}.weight", scale.unsqueeze(1)), (f"{layer}.bias", scale)):
            found[parameter] = found[parameter] * factor
            changed[parameter] = "layer scales multiplied into their layers"
    return found, changed


def _is_learned(name: str, value: Tensor) -> bool:
    """Whether a tensor is the weight of a layer, which carries what a model has learned."""
    return name.endswith("weight") and value.dim() > 1


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """Name and module of the convolution that embeds patches."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    return "", None


def _is_square(number: int) -> bool:
    return number > 0 and isqrt(number) ** 2 == number


def _same(each: tuple[tuple[int, ...], ...]) -> Axes:
    return Axes(each, each)


def _with_kernel(each: tuple[tuple[int, ...], ...], kernel: int) -> tuple[tuple[int, ...], ...]:
    *others, last = each
    return (*others, (kernel, kernel, last[-1]))


def _unit(name: str) -> str:
    """The module whose tensors are useful together."""
    parts = name.split(".")
    if parts[-2:-1] and parts[-2] in _OPTIONAL:
        return ".".join(parts[:-1])
    for unit in _UNITS:
        if unit in parts:
            return ".".join(parts[: parts.index(unit) + 1])
    return name.rpartition(".")[0] or name


def _places(names: Sequence[str]) -> list[str]:
    """Modules of tensors, in words that are short enough for a line."""
    found: dict[str, None] = {}
    for name in names:
        found.setdefault(_unit(name), None)
    places = list(found)
    return places if len(places) <= 6 else [*places[:5], f"and {len(places) - 5} more"]
