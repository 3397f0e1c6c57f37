"""Easy first, hard first or random: training starts with a part of the images and grows to all of them in six forms."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plugins.curricula.difficulty import COST_OF_CHOICE, ByDifficulty, fixed_permutation, shuffled
from plugins.curricula.paced import easiest_per_class
from plugins.protocols import OrderContext, PluginCard, Selection

Form = Literal["linear", "quadratic", "root", "step", "exponential", "logarithmic"]
_SHARPNESS = 10.0
"""Constant of the exponential and the logarithmic form."""


def pace(progress: float, *, form: Form, start: float, until: float) -> float:
    """Size of the part to train on, as a fraction of the training set.

    With `b` = start and `s` = progress / until, the size is 1 for `s` >= 1, and before

        linear       b + (1 - b) s
        quadratic    b + (1 - b) s^2
        root         b + (1 - b) s^(1/2)
        step         b
        exponential  b + (1 - b) (e^(10 s) - 1) / (e^10 - 1)
        logarithmic  b + (1 - b) (1 + ln(s + e^-10) / 10)

    Args:
        progress: Completed fraction of the training, in visits.
        form: One of the six forms.
        start: Size at the start, in (0, 1].
        until: Progress at which the size is 1, in (0, 1].

    Source: Wu et al. 2021, arXiv:2012.03107, as in the authors' code.
    """
    share = progress / until
    if share >= 1:
        return 1.0
    growth: float = {
        "linear": share,
        "quadratic": share**2,
        "root": share**0.5,
        "step": 0.0,
        "exponential": math.expm1(_SHARPNESS * share) / math.expm1(_SHARPNESS),
        "logarithmic": 1 + math.log(share + math.exp(-_SHARPNESS)) / _SHARPNESS,
    }[form]
    return min(start + (1 - start) * growth, 1.0)


@dataclass(frozen=True, kw_only=True)
class Pacing(ByDifficulty):
    """Pacing functions as a plug-in; `pace` computes the sizes of the passes."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Wu et al. 2021, arXiv:2012.03107. Differences: a pass visits each image of its part once, so the size "
            "changes from pass to pass instead of from batch to batch; the paper always measures the difficulty before "
            "training (c-score)"
        ),
        cost=COST_OF_CHOICE,
        needs=("difficulty, unless the order is random",),
    )
    form: Form = "linear"
    """How the part grows."""
    order: Literal["easy", "hard", "random"] = "easy"
    """The images to begin with. `random`: a random part that grows, the same for all passes, as a baseline."""
    start: Annotated[float, Field(ge=0.01, le=1)] = 0.2
    """First size, as a fraction of the training set."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Progress at which the part is the whole training set."""
    by_class: bool = False
    """Whether each part has the class proportions of the training set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == "random" and self.difficulty != "loss":
            raise ValueError(
                f"`difficulty: {self.difficulty}` has no effect with `order: random`. Remove it, or choose another "
                "order."
            )

    @property
    def needs_difficulty(self) -> bool:
        """Whether the current loss decides the order."""
        return self.difficulty == "loss" and self.order != "random"

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes that grow from `start` to 1 by the chosen form."""
        sizes: list[float] = []
        visited = 0.0
        while num_epochs - visited > 1e-9:
            size = pace(visited / num_epochs, form=self.form, start=self.start, until=self.until)
            sizes.append(min(size, num_epochs - visited))
            visited += sizes[-1]
        return tuple(sizes)

    def select(self, size: int, context: OrderContext) -> Selection:
        """The first `size` images of the order, shuffled; random ones while the difficulty is unknown."""
        import torch

        labels, generator = context.labels.cpu(), context.generator
        if self.order == "random":
            ties = fixed_permutation(len(labels), context.seed)
        else:
            ties = torch.randperm(len(labels), generator=generator)
        hardness = torch.zeros(len(labels), dtype=torch.float64)
        if self.order != "random" and context.difficulty is not None:
            sign = 1 if self.order == "easy" else -1
            hardness = sign * context.difficulty.detach().cpu().double()[ties]
        if self.by_class:
            chosen = easiest_per_class(size, difficulty=hardness, labels=labels[ties])
        else:
            chosen = torch.argsort(hardness, stable=True)[:size]
        return Selection(shuffled(ties[chosen], generator))
