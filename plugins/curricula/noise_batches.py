"""Batches that grow with the measured noise of the gradients, up to the batch size of the recipe."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import Now, PluginCard, Signal
from search_spaces.step_settings import StepSettings


def grown_batch_size(noises: Iterable[float | None], *, first: int, largest: int, scale: float) -> int:
    """Batch size after epochs with the given gradient noises.

    The noise `n` of steps with `B` images estimates the simple noise scale `tr(S) / |G|^2` as `n B`, where `S` is the
    covariance of the gradients of single images and `G` their mean. After each epoch the batch size becomes
    `scale * n * B`, if that is larger, and at most `largest`.

    Args:
        noises: `E|g|^2 / |E g|^2 - 1` of each epoch, oldest first; `None` if it is undefined.
        first: Batch size of the first epoch.
        largest: Largest batch size.
        scale: Batch size as a multiple of the noise scale.

    Source: McCandlish et al. 2018, arXiv:1812.06162.
    """
    size = first
    for noise in noises:
        if noise is not None:
            size = min(max(size, round(scale * noise * size)), largest)
    return size


@dataclass(frozen=True, kw_only=True)
class NoiseBatches:
    """Batch growth by the gradient noise scale as a plug-in; `grown_batch_size` computes the sizes.

    The batch size of the recipe is the largest, so that the memory of a training is known in advance.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "McCandlish et al. 2018, arXiv:1812.06162, the simple noise scale as the batch size to use. Differences: "
            "the noise is measured over the steps of an epoch, during which the mean gradient changes, so it is "
            "overestimated; the batch size changes between epochs and never shrinks; the learning rate follows it only "
            "with `learning_rate_scaling`"
        ),
        cost="one dot product and one addition of a gradient per step",
        needs=("gradient noise",),
    )
    start: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """First batch size, as a fraction of the recipe's."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Batch size as a multiple of the noise scale."""

    @property
    def changes(self) -> frozenset[str]:
        """The batch size."""
        return frozenset({"batch_size"})

    @property
    def signals(self) -> frozenset[Signal]:
        """The gradient noise."""
        return frozenset({Signal.GRADIENT_NOISE})

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """Set the batch size of the epoch."""
        size = grown_batch_size(
            (known.get(Signal.GRADIENT_NOISE) for known in now.past),
            first=max(1, round(self.start * settings.batch_size)),
            largest=settings.batch_size,
            scale=self.scale,
        )
        return replace(settings, batch_size=size)
