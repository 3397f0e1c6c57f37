"""The interfaces of example orders and of methods that adjust the steps of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Now:
    """The state of training when the settings of a step or the examples of a pass are chosen."""

    epoch: int
    """Starting at 1."""
    num_epochs: int
    progress: float
    """Completed fraction of training, in [0, 1): of optimizer steps, or of image visits if the batch size changes."""
    signals: Mapping[str, float]
    """Losses, accuracy and signals of the last finished epoch; empty in the first epoch."""


@dataclass(frozen=True, kw_only=True)
class OrderContext:
    """The information from which an example order chooses a pass. `N` is the number of training images."""

    now: Now
    labels: "Tensor"
    """Class of each image, shape (N,), int64, on the CPU."""
    difficulty: "Tensor | None"
    """Loss of each image under the current model, shape (N,); higher is harder. `None` if `needs_difficulty` is False,
    in the first epoch, and in epochs with whole passes only."""
    generator: "torch.Generator"
    """Generator of all random numbers, on the CPU."""


class Selection(NamedTuple):
    """The examples of one pass."""

    indices: "Tensor"
    """Indices of the images in the order of the visits, shape (size,), int64. An index may occur more than once."""
    weights: "Tensor | None" = None
    """Weight of each visit in the loss, shape (size,), float; `None` for equal weights."""


@runtime_checkable
class ExampleOrder(Protocol):
    """The order in which training visits the examples. The total number of visits is the same for all orders.

    Training is a sequence of passes. A pass of size `f` visits `f * N` of the `N` training examples. At most one method
    of a recipe, not counting `none`, may control the order.
    """

    card: ClassVar[PluginCard]
    needs_difficulty: ClassVar[bool]
    """Whether `select` uses the current loss of each example."""

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes of the passes, each in (0, 1]. Their sum is `num_epochs`; the last pass is shortened to fit."""
        ...

    def select(self, size: int, context: OrderContext) -> Selection:
        """Choose the `size` visits of one pass."""
        ...


@runtime_checkable
class StepMethod(Protocol):
    """Adjusts the settings of each step. The methods of a recipe are applied in the order in which it lists them.

    Validation, the measurement of difficulty and everything after training ignore the adjusted settings, so a method
    cannot change the model that is evaluated. A method may declare `signals` (`NeedsSignals`) and `packs`
    (`DeclaresPacking`).
    """

    card: ClassVar[PluginCard]

    @property
    def changes(self) -> frozenset[str]:
        """The fields of `StepSettings` that `adjust` may set. Two methods of a recipe must not set the same field.

        Options of the model's forward pass are listed individually, such as `model_options.stride_factor`.
        """
        ...

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """The settings of the next step. The result depends on the arguments only."""
        ...
