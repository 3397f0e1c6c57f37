"""The interfaces of optimizers, and the layout of the parameters that they update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Segment(NamedTuple):
    """A part of a row of parameters."""

    start: int
    stop: int
    decays: bool
    """Whether weight decay applies to it."""


class RatedPart(NamedTuple):
    """A part of a row of parameters with its own learning rate."""

    start: int
    stop: int
    factor: float
    """Its learning rate as a factor of the rate of the step."""


@lru_cache(maxsize=256)
def _lengths_between(segments: tuple[Segment, ...], num_numbers: int) -> list[int]:
    """Lengths of the gap before each segment, of the segment, and of the rest of the row, in turn."""
    lengths, end = [], 0
    for segment in segments:
        lengths += [segment.start - end, segment.stop - segment.start]
        end = segment.stop
    return [*lengths, num_numbers - end]


@dataclass(frozen=True, kw_only=True)
class ParameterLayout:
    """The layout of a model's parameters in one flat row of `P` numbers.

    Parameters with weight decay (weights of linear layers and convolutions) come first. Each parameter starts at a
    multiple of 16 numbers. The padding between parameters is zero and stays zero under elementwise updates.
    """

    names: tuple[str, ...]
    shapes: "tuple[torch.Size, ...]"
    starts: tuple[int, ...]
    """Index of each parameter's first number."""
    num_decayed: int
    """Number of parameters with weight decay. They are the first ones."""
    num_numbers: int
    """Length `P` of the row."""
    rates: tuple[RatedPart, ...] = ()
    """Parts with another learning rate, in ascending order. All other parameters have the rate of the step."""

    @property
    def decay_end(self) -> int:
        """Index of the first number without weight decay."""
        return self.starts[self.num_decayed] if self.num_decayed < len(self.starts) else self.num_numbers

    @cached_property
    def segments(self) -> "tuple[Segment, ...]":
        """The parts of the row without the padding.

        Adjacent parameters without padding between them form one segment. Elementwise kernels compute the last few
        numbers of a tensor with other instructions. Without the padding, a step over segments therefore rounds exactly
        as a step over the parameters does.
        """
        segments: list[Segment] = []
        for index, (start, shape) in enumerate(zip(self.starts, self.shapes, strict=True)):
            decays, stop = index < self.num_decayed, start + shape.numel()
            if segments and segments[-1].decays == decays and segments[-1].stop == start:
                segments[-1] = segments[-1]._replace(stop=stop)
            else:
                segments.append(Segment(start, stop, decays))
        return tuple(segments)

    def parts(self, segments: "tuple[Segment, ...]", row: "Tensor") -> "tuple[Tensor, ...]":
        """Views of segments, in ascending order, into a row (P,).

        They are made once for each row and kept as long as this layout, so the rows should be few, such as the
        parameters.
        """
        key = (segments, id(row))
        found = self._parts.get(key, ())
        if not found or found[0]._base is not row:
            split: Callable[..., tuple[Tensor, ...]] = row.split_with_sizes
            found = self._parts[key] = split(_lengths_between(segments, self.num_numbers))[1::2]
        return found

    @cached_property
    def _parts(self) -> "dict[tuple[tuple[Segment, ...], int], tuple[Tensor, ...]]":
        return {}

    def rate_factors(self, values: "Tensor") -> "Tensor | None":
        """The factor of each number's learning rate, shape (P,), with the device and dtype of `values`.

        It is `None` if all factors are 1. The tensor is made once for each device and must not be changed.
        """
        import torch

        if not self.rates:
            return None
        key = (values.device, values.dtype)
        if key not in self._factors:
            factors = torch.ones(self.num_numbers, dtype=values.dtype)
            for part in self.rates:
                factors[part.start : part.stop] = part.factor
            self._factors[key] = factors.to(values.device)
        return self._factors[key]

    @cached_property
    def _factors(self) -> "dict[tuple[torch.device, torch.dtype], Tensor]":
        return {}

    def views(self, values: "Tensor") -> "list[Tensor]":
        """Views of the parameters, (..., *shape) each, into values (..., P)."""
        # The backward pass of a split is one concatenation. The one of each slice would fill a whole row with zeros.
        split: Callable[..., Sequence[Tensor]] = values.split
        pieces = split(self._lengths, -1)[::2]
        outer = values.shape[:-1]
        return [piece.view(outer + shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    @cached_property
    def _lengths(self) -> list[int]:
        """Length of each parameter and of the padding after it."""
        ends = (*self.starts[1:], self.num_numbers)
        sizes = [shape.numel() for shape in self.shapes]
        padded = zip(sizes, self.starts, ends, strict=True)
        return [length for size, start, end in padded for length in (size, end - start - size)]


OptimizerState = dict[str, "Tensor"]
"""Named tensors: scalars, or of shape (P,) with the layout of the parameters."""


class Optimizer(Protocol):
    """An update rule for the weights: pure functions over one flat row of parameters.

    It may declare `packs` (`DeclaresPacking`). Its step must be proportional to the learning rate, because training
    scales the steps of the parts in `layout.rates`; otherwise it must declare `applies_rates` (`AppliesRates`).
    """

    card: ClassVar[PluginCard]

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:
        """The state before the first step. `values` (P,) are the initial parameters."""
        ...

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """Take one step, in place on `values` (P,) and the tensors of `state`; `gradient` (P,) may be overwritten."""
        ...


@runtime_checkable
class TwoGradients(Protocol):
    """An optional part of an optimizer whose step needs the gradient at a second point, on the same batch."""

    def probe(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> "Tensor":
        """The point (P,) at which `update` needs the gradient, given the gradient at `values`. Changes no argument."""
        ...


@runtime_checkable
class EvaluatedElsewhere(Protocol):
    """An optional part of an optimizer whose weights for evaluation and saving differ from the trained ones."""

    def evaluated(self, layout: ParameterLayout, values: "Tensor", state: OptimizerState) -> "Tensor":
        """The weights (P,) to evaluate."""
        ...


@runtime_checkable
class AppliesRates(Protocol):
    """An optional part of an optimizer whose step is not proportional to the learning rate, such as one that averages.

    Training scales the steps of all other optimizers by `layout.rate_factors`.
    """

    applies_rates: ClassVar[bool]
    """True: `update` multiplies learning rates by `layout.rate_factors` itself."""


@runtime_checkable
class NeedsCurvature(Protocol):
    """An optional part of an optimizer that estimates the curvature of the loss every few steps.

    Before such a step, training computes the gradient of the cross-entropy on the images of the step, with classes
    drawn from the predictions of the model itself, and calls `observe`.
    """

    @property
    def observation_period(self) -> int:
        """Number of steps from one estimate to the next, at least 1. It tells the cost of a step."""
        ...

    def is_observation_due(self, state: OptimizerState) -> bool:
        """Whether the next step needs an estimate."""
        ...

    def observe(
        self, layout: ParameterLayout, sampled_gradient: "Tensor", num_images: int, state: OptimizerState
    ) -> None:
        """Update the estimate in `state`, in place.

        Args:
            layout: Layout of the row.
            sampled_gradient: Gradient (P,) of the mean cross-entropy with drawn classes; it may be overwritten.
            num_images: Number of images of the mean.
            state: The state before the step.
        """
        ...
