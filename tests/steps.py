"""Inputs of the plug-ins of a training step, for tests that do not train."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import Now, ParameterLayout
from search_spaces.recipes import PluginChoice
from search_spaces.step_settings import StepSettings


def step_settings(**given: Any) -> StepSettings:
    """Settings of one step: those of a plain recipe, except for the given ones."""
    plain: dict[str, Any] = {
        "batch_size": 64,
        "image_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "gradient_clip": None,
        "label_smoothing": 0.0,
        "dropout": 0.0,
        "drop_path": 0.0,
        "augmentation": PluginChoice(name="none"),
        "augmentation_strength": 1.0,
        "mixing": PluginChoice(name="none"),
        "mixing_strength": 1.0,
    }
    return StepSettings(**plain | given)


def now(progress: float = 0.0, *, num_epochs: int = 8) -> Now:
    """A point in a training; after the first epoch, it has losses and accuracy."""
    epoch = int(progress * num_epochs) + 1
    known = {"train_loss": 1.0, "val_loss": 1.2, "val_accuracy": 0.5} if epoch > 1 else {}
    return Now(epoch=epoch, num_epochs=num_epochs, progress=progress, signals=known)


def layout_of(model: nn.Module) -> ParameterLayout:
    """Layout of a model's parameters in a flat row: those with weight decay first, each at a multiple of 16 numbers."""
    named = list(model.named_parameters())
    decayed = [(name, value) for name, value in named if name.endswith("weight") and value.ndim >= 2]
    others = [(name, value) for name, value in named if not (name.endswith("weight") and value.ndim >= 2)]
    starts, end = [], 0
    for _, value in decayed + others:
        starts.append(end)
        end += -(-value.numel() // 16) * 16
    return ParameterLayout(
        names=tuple(name for name, _ in decayed + others),
        shapes=tuple(value.shape for _, value in decayed + others),
        starts=tuple(starts),
        num_decayed=len(decayed),
        num_numbers=end,
    )


def flat_row(layout: ParameterLayout, named: Mapping[str, Tensor]) -> Tensor:
    """A row (P,) of named tensors, with zeros between them."""
    row = torch.zeros(layout.num_numbers, dtype=next(iter(named.values())).dtype)
    for name, view in zip(layout.names, layout.views(row), strict=True):
        view.copy_(named[name])
    return row


def is_padding(layout: ParameterLayout) -> Tensor:
    """Mask (P,) of the numbers of a row that belong to no parameter."""
    padding = torch.ones(layout.num_numbers, dtype=torch.bool)
    for view in layout.views(padding):
        view.fill_(False)
    return padding
