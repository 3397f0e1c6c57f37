"""Compiles the forward pass of a model with `torch.compile`, where that works."""

import logging
from functools import cache
from typing import Any

import torch
from torch import nn

from plugins.protocols import LossInput
from search_spaces.recipes import Recipe
from trainers.training.loss_needs import inputs_of, reads_attention

_COMPILER_MODULES = ("torch._dynamo", "torch._inductor", "torch._functorch")

logger = logging.getLogger(__name__)


class CompiledForward:
    """Computes a model's forward pass with kernels that `torch.compile` makes in the first call.

    If they cannot be made, for instance because there is no C++ compiler, the model itself computes, and the log says
    so once. Results equal those of the model up to rounding.

    Args:
        model: The model.
        problem: Why it must not be compiled; `None` if it may.
    """

    def __init__(self, model: nn.Module, *, problem: str | None = None) -> None:
        self._model = model
        self._compiled: Any = torch.compile(model)
        self.problem = problem
        """Why the model itself computes; `None` if the compiled one does."""

    def __call__(self, images: torch.Tensor, **options: Any) -> Any:
        """The model's output."""
        if self.problem is None:
            try:
                return self._compiled(images, **options)
            except Exception as error:  # the compiler raises errors of many classes
                if not type(error).__module__.startswith(_COMPILER_MODULES):
                    raise
                self.problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            logger.warning("Training without torch.compile, which fails here: %s", self.problem)
        return self._model(images, **options)


def compile_problem(recipe: Recipe) -> str | None:
    """Why the models of a training cannot be compiled; `None` if they can.

    Compiled code keeps the hooks that a model had in the first call, and does not see those of later steps.
    """
    inputs = inputs_of(recipe.loss)
    if LossInput.LAYERS in inputs:
        return f"the loss `{recipe.loss.name}` reads the blocks of the model in each step"
    if LossInput.MATE in inputs:
        return f"the loss `{recipe.loss.name}` computes two models together"
    if reads_attention(recipe.mixing):
        return f"the mixing `{recipe.mixing.name}` reads the attention of the model in each step"
    return None


@cache
def say_packs_are_not_compiled() -> None:
    """Log, once per process, that `compile` has no effect on trainings in a pack."""
    logger.warning("resources.compile has no effect on trainings in a pack.")
