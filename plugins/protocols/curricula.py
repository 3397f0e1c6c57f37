"""The interfaces of example orders, example weights and methods that adjust the steps of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from search_spaces.base import Topology
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
    past: Sequence[Mapping[str, float]] = ()
    """The same of every finished epoch, oldest first."""


@dataclass(frozen=True, kw_only=True)
class PriorDifficulty:
    """A difficulty of training images that short separate trainings measure before a training begins.

    It is the mean over the trainings. It is kept on disk for every later training with the same images, and depends
    on neither the recipe nor the seed of the training that uses it.
    """

    kind: Literal["el2n", "grand", "trained-loss"]
    """`el2n`: norm of the error of the predicted probabilities; `grand`: norm of the gradient of the loss;
    `trained-loss`: the loss. All are those of the trained models."""
    topology: str | None
    """`space:text` of the models; `None` for the topology of the training that uses the difficulty."""
    epochs: int
    """Number of epochs of each training."""
    runs: int
    """Number of trainings, each with its own seed."""


@runtime_checkable
class NeedsPriorDifficulty(Protocol):
    """An optional part of a curriculum that chooses or weights images by a difficulty measured before training."""

    @property
    def prior_difficulty(self) -> PriorDifficulty | None:
        """The difficulty for `OrderContext.difficulty`; `None` if the settings need none."""
        ...


def needed_prior_difficulty(plugin: object) -> PriorDifficulty | None:
    """The difficulty that must be measured before a training with this curriculum, if any."""
    return plugin.prior_difficulty if isinstance(plugin, NeedsPriorDifficulty) else None


@dataclass(frozen=True, kw_only=True)
class OrderContext:
    """The information from which a curriculum chooses or weights the images of a pass. `N` is the number of images."""

    now: Now
    labels: "Tensor"
    """Class of each image, shape (N,), int64, on the CPU."""
    difficulty: "Tensor | None"
    """Difficulty of each image, shape (N,); higher is harder. It is the prior difficulty if the curriculum needs one,
    otherwise the loss under the current model, or `None` in epochs for which the curriculum does not need it."""
    generator: "torch.Generator"
    """Generator of random numbers, on the CPU. Its numbers are others in each epoch."""
    seed: int = 0
    """A seed that is the same for all passes of a training, for random choices that must hold for all of them."""


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

    @property
    def needs_difficulty(self) -> bool:
        """Whether `select` uses the current loss of each example. It gets it in all epochs with a partial pass but the
        first."""
        ...

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes of the passes, each in (0, 1]. Their sum is `num_epochs`; the last pass is shortened to fit."""
        ...

    def select(self, size: int, context: OrderContext) -> Selection:
        """Choose the `size` visits of one pass."""
        ...


@runtime_checkable
class ExampleWeights(Protocol):
    """Weights of the training images in the loss. The weights of several methods, and of the order, are multiplied."""

    card: ClassVar[PluginCard]

    def needs_difficulty_in(self, now: Now) -> bool:
        """Whether `weigh` uses the current loss of each example in the epoch that begins now. It is never available in
        the first epoch."""
        ...

    def weigh(self, context: OrderContext) -> "Tensor | None":
        """Weight of each training image in this pass, shape (N,), float, finite and at least 0, on the CPU.

        The loss of a step is the weighted mean over its images. `None` weights all equally.
        """
        ...


@runtime_checkable
class StepMethod(Protocol):
    """Adjusts the settings of each step. The methods of a recipe are applied in the order in which it lists them.

    Validation, the measurement of difficulty and everything after training ignore the adjusted settings, so a method
    cannot change the model that is evaluated. A method may declare `signals` (`NeedsSignals`), `packs`
    (`DeclaresPacking`) and, if it changes the image size, must declare its sizes (`DeclaresImageSizes`).
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


@runtime_checkable
class DeclaresImageSizes(Protocol):
    """A step method that changes the image size, so that all sizes can be checked before training."""

    def image_sizes(self, largest: int) -> Sequence[int]:
        """All image sizes that `adjust` sets if the recipe's image size is `largest` pixels."""
        ...


@runtime_checkable
class TrainsSmaller(Protocol):
    """A step method that trains a smaller network of the same space in the steps whose `level` it sets to 1.

    The level may change between epochs only. Validation, signals and checkpoints always have the network itself: in
    epochs of the smaller one, with the weights with which it would go on.
    """

    relation: ClassVar[Literal["part", "average"]]
    """`part`: the smaller network has the first blocks of each stage, and when the network grows, it keeps their
    weights and optimizer state, and `grown` scales the outputs of the others. `average`: its weights are means over
    pairs of blocks and channels, and the network goes on with a mixture of its former weights and the widened ones of
    the smaller network."""

    @property
    def interpolation(self) -> float:
        """Share of the smaller network in that mixture, above 0 and at most 1; not used with `part`."""
        ...

    def trains_smaller_in(self, epoch: int, num_epochs: int) -> bool:
        """Whether the smaller network is trained in an epoch; epochs are counted from 1. The last one must not be."""
        ...

    def smaller(self, topology: Topology) -> Topology:
        """The topology of the smaller network. Raises ValueError with the reason if there is none."""
        ...
