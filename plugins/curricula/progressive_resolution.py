"""Progressive learning: small images with weak regularisation first, then larger ones with more, in stages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import Now, PluginCard
from search_spaces.step_settings import StepSettings


def stage_size(stage: int, *, stages: int, first: int, last: int, multiple: int) -> int:
    """Image size of a stage, `S_0 + (S_e - S_0) i / (M - 1)`, rounded to a multiple; the last stage has `last` exactly.

    Args:
        stage: `i`, from 0 to `stages - 1`.
        stages: `M`, at least 2.
        first: `S_0`, pixels.
        last: `S_e`, pixels.
        multiple: Sizes before the last are rounded to the nearest multiple, at least one and at most `last`.

    Source: Tan and Le 2021, arXiv:2104.00298, algorithm 1.
    """
    if stage == stages - 1:
        return last
    size = first + (last - first) * stage / (stages - 1)
    return min(max(multiple * round(size / multiple), multiple), last)


@dataclass(frozen=True, kw_only=True)
class ProgressiveResolution:
    """EfficientNetV2's progressive learning. The last stage has the image size and regularisation of the recipe."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Tan and Le 2021, EfficientNetV2, arXiv:2104.00298, progressive learning. Differences: the regularisation "
            "of the first stage is one fraction of the recipe's instead of a value per kind, and sizes are rounded to "
            "a multiple that fits the model"
        ),
        cost="negative: smaller images cost less",
    )
    stages: Annotated[int, Field(ge=2)] = 4
    """Number of stages of equal length."""
    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    """First image size, as a fraction of the recipe's."""
    multiple: Annotated[int, Field(ge=1)] = 8
    """Image sizes are multiples of this many pixels, except that of the last stage. As-ViT needs 32."""
    regularisation: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Dropout, strength of augmentation and share of mixed batches in the first stage, as a fraction of the recipe's;
    it grows linearly to 1. With 1, the method changes the image size only."""

    def __post_init__(self) -> None:
        if self.start == 1 and self.regularisation == 1:
            raise ValueError(
                "`start` or `regularisation` must be below 1, but both are 1, so nothing would change. Lower one of "
                "them."
            )

    @property
    def changes(self) -> frozenset[str]:
        """The image size, and the regularisation if it changes."""
        sizes = {"image_size"} if self.start < 1 else set()
        regularised = {"dropout", "augmentation_strength", "mixing_strength"} if self.regularisation < 1 else set()
        return frozenset(sizes | regularised)

    def image_sizes(self, largest: int) -> Sequence[int]:
        """The sizes of all stages."""
        if self.start == 1:
            return (largest,)
        return tuple(self._size(stage, largest) for stage in range(self.stages))

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """Set image size and regularisation of the current stage."""
        stage = min(int(now.progress * self.stages), self.stages - 1)
        if self.start < 1:
            settings = replace(settings, image_size=self._size(stage, settings.image_size))
        if self.regularisation < 1:
            share = self.regularisation + (1 - self.regularisation) * stage / (self.stages - 1)
            settings = replace(
                settings,
                dropout=share * settings.dropout,
                augmentation_strength=share * settings.augmentation_strength,
                mixing_strength=share * settings.mixing_strength,
            )
        return settings

    def _size(self, stage: int, largest: int) -> int:
        first = round(self.start * largest)
        return stage_size(stage, stages=self.stages, first=first, last=largest, multiple=self.multiple)
