"""Data pruning: training uses only a part of the images, the hardest, the easiest or a random one, and repeats it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.curricula.difficulty import PRIOR_COST, MeasuredBefore, fixed_permutation
from plugins.curricula.mixtures import images_in_rounds
from plugins.protocols import OrderContext, PluginCard, PriorDifficulty, Selection

if TYPE_CHECKING:
    from torch import Tensor


def window(difficulty: "Tensor", *, keep: int, position: float, drop_hardest: int = 0) -> "Tensor":
    """Indices of `keep` images that are neighbours in the order from easy to hard.

    Args:
        difficulty: Higher is harder, shape (N,). Of equally difficult images, the earlier one counts as easier.
        keep: Number of images, at most `N - drop_hardest`.
        position: 0 keeps the easiest images, 1 the hardest, and numbers between a window between them.
        drop_hardest: Number of the hardest images that are left out first, because their labels may be wrong.

    Returns:
        Indices from easy to hard, shape (keep,), int64.
    """
    import torch

    order = torch.argsort(difficulty, stable=True)
    order = order[: len(order) - drop_hardest]
    first = round(position * (len(order) - keep))
    return order[first : first + keep]


def equal_passes(num_epochs: float, size: float) -> tuple[float, ...]:
    """Passes of one size, as a fraction of the training set, and a shorter last one."""
    sizes: list[float] = []
    left = num_epochs
    while left > 1e-9:
        sizes.append(min(size, left))
        left -= sizes[-1]
    return tuple(sizes)


@dataclass(frozen=True, kw_only=True)
class Pruning(MeasuredBefore):
    """Pruning by EL2N, GraNd or the loss of trained models; `window` chooses the images."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Paul et al. 2021, Data Diet, arXiv:2107.07075 (EL2N and GraNd, the hardest kept, an offset for label "
            "noise). Differences: fewer and shorter trainings measure the difficulty by default (the paper averages "
            "10); the number of image visits is that of all other curricula, so a kept image is visited 1 / keep times "
            "as often"
        ),
        cost=PRIOR_COST,
        needs=("difficulty measured before training, unless the images are random",),
    )
    needs_difficulty: ClassVar[bool] = False
    keep: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    """Fraction of the training images to keep."""
    prefer: Literal["hard", "easy", "random"] = "hard"
    """The images to keep. `random` is the baseline, which needs no measurement."""
    difficulty: Literal["el2n", "grand", "trained-loss"] = "el2n"
    """`el2n`: norm of the error of the predicted probabilities; `grand`: norm of the gradient of the loss;
    `trained-loss`: the loss."""
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the training images, the hardest, to leave out in any case. Use it if labels are wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_offset(self.keep, self.offset)
        if self.prefer == "random":
            self.check_unused(because="with `prefer: random`")
            if self.offset or self.difficulty != "el2n":
                name = "offset" if self.offset else "difficulty"
                raise ValueError(f"`{name}` has no effect with `prefer: random`. Remove it.")

    @property
    def prior_difficulty(self) -> PriorDifficulty | None:
        """The difficulty to measure before training; `None` for random images."""
        return None if self.prefer == "random" else self.measured(self.difficulty)

    @property
    def independent_of_length(self) -> bool:
        """Whether epochs consist of whole passes."""
        return divides_one(self.keep)

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Passes of the kept images."""
        return equal_passes(num_epochs, self.keep)

    def select(self, size: int, context: OrderContext) -> Selection:
        """The kept images in random order."""
        num_images = len(context.labels)
        keep = max(1, round(self.keep * num_images))
        if self.prefer == "random":
            kept = fixed_permutation(num_images, context.seed)[:keep]
            return Selection(images_in_rounds(kept, size, context.generator))
        kept = window(
            known_difficulty(context),
            keep=keep,
            position=0.0 if self.prefer == "easy" else 1.0,
            drop_hardest=min(round(self.offset * num_images), num_images - keep),
        )
        return Selection(images_in_rounds(kept, size, context.generator))


def known_difficulty(context: OrderContext) -> "Tensor":
    """The measured difficulty, (N,), float64, on the CPU. If there is none, all images count as equally difficult."""
    import torch

    if context.difficulty is None:
        return torch.zeros(len(context.labels), dtype=torch.float64)
    return context.difficulty.detach().cpu().double()


def check_offset(keep: float, offset: float) -> None:
    """Raise ValueError if more than all images would be kept or left out."""
    if keep + offset > 1:
        raise ValueError(
            f"`keep` and `offset` must not add up to more than 1, but got {keep} + {offset}. Lower one of them."
        )


def divides_one(size: float) -> bool:
    """Whether a whole number of passes of this size makes an epoch."""
    return abs(1 / size - round(1 / size)) < 1e-9
