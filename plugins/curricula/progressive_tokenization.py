"""Progressive tokenization: fewer, wider tokens at the start of training."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import Now, PluginCard
from search_spaces.step_settings import StepSettings


def stride_factor(progress: float, *, coarse: float, middle: float) -> int:
    """Factor by which each side of the token grid is coarser: 4, then 2, then 1.

    Args:
        progress: Fraction of the optimizer steps already taken, in [0, 1).
        coarse: Fraction of the steps with the factor 4.
        middle: Fraction of the steps with the factor 2, after the coarse ones.
    """
    if progress < coarse:
        return 4
    return 2 if progress < coarse + middle else 1


@dataclass(frozen=True, kw_only=True)
class ProgressiveTokenization:
    """As-ViT's progressive re-tokenization: stride and dilation of the first projection shrink during training.

    Weights and optimizer state do not change, since no parameter of the model depends on the number of tokens. At 224
    pixels, the grid has 14, 28 and 56 tokens per side; at 32 pixels, 2, 4 and 8.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Chen et al. 2022, As-ViT, arXiv:2202.11921. Differences: the fractions are ours, since the training code "
            "and the lengths of the phases were never released; odd grids are padded with zeros before halving, and "
            "windows that do not divide a grid are rounded up, whereas the authors' code requires even grids"
        ),
        cost="negative: the coarse phases process a quarter and a sixteenth of the tokens",
        needs=("a model with the forward option stride_factor",),
    )
    coarse: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the optimizer steps, at the start, with a quarter of the tokens per side."""
    middle: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of the optimizer steps, after the coarse ones, with half of the tokens per side."""

    def __post_init__(self) -> None:
        if self.coarse + self.middle >= 1:
            raise ValueError(
                "`coarse` and `middle` must add up to less than 1, so that training ends with all tokens, but got "
                f"{self.coarse} + {self.middle}. Lower one of them."
            )

    @property
    def changes(self) -> frozenset[str]:
        """The stride factor of the model's forward pass; nothing if there is no coarse phase."""
        return frozenset({"model_options.stride_factor"} if self.coarse or self.middle else ())

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """Set the stride factor if it is not 1."""
        factor = stride_factor(now.progress, coarse=self.coarse, middle=self.middle)
        if factor == 1:
            return settings
        return replace(settings, model_options={**settings.model_options, "stride_factor": factor})
