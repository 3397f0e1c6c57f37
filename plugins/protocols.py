"""What a plug-in of each kind offers. A class that has the members is a plug-in; it need not inherit anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from search_spaces.base import Costs, ImageTask, Topology

if TYPE_CHECKING:
    import torch
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


@dataclass(frozen=True, kw_only=True)
class PluginCard:
    """What a user wants to know of a method before using it."""

    source: str
    """Author, year, arXiv id; and what our version does differently."""
    cost: str
    """What one use costs, in words: `one forward pass of the training set per epoch`."""
    needs: tuple[str, ...] = ()
    """What must be there: `images`, `difficulty`, `validation loss`, ..."""


# --- proxies ---


class ProxyModel(Protocol):
    """The part of a built model that proxies use. It is also a `torch.nn.Module`."""

    def forward_features(self, images: "Tensor") -> "Tensor":
        """Pooled features before the final normalisation, shape (B, D), of images (B, C, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One topology, as a proxy sees it."""

    topology: Topology
    task: ImageTask
    costs: Costs
    images: "Tensor"
    """One batch of real, normalised training images, shape (B, C, H, W), on the scoring device, in its dtype."""
    build: Callable[..., "torch.nn.Module"]
    """`build(seed=7, normalization=True)`: a freshly initialised model like `ProxyModel`, on the images'
    device and in their dtype; with `normalization=False` every LayerNorm is replaced by the identity."""
    seed: int
    """Where a proxy's random numbers start; the same seed gives the same score."""


class ProxyScore(NamedTuple):
    """A score with its spread over repeats. A value that is not finite marks the topology as bad."""

    value: float
    spread: float = 0.0
    """Standard deviation (ddof 1) over the repeats; 0 for an exact or single value."""


class Proxy(Protocol):
    """A training-free score."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]

    def score(self, candidate: Candidate) -> ProxyScore: ...


# --- stopping ---


class CurvePoint(NamedTuple):
    """What a stopping criterion sees of one finished epoch."""

    epoch: int
    """Starting at 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    """Fraction between 0 and 1."""


class Stopper(Protocol):
    """An early-stopping criterion: a pure function of the curve so far."""

    card: ClassVar[PluginCard]

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """Why training should stop after the last point of `curve`, in words a person can read; `None` to go on."""
        ...


# --- curricula ---


class Curriculum(Protocol):
    """Which examples are visited when. All curricula visit the same number of examples in all.

    Training is a sequence of passes. A pass of size `f` visits `f * N` of the `N` training examples
    once each.
    """

    card: ClassVar[PluginCard]
    needs_difficulty: ClassVar[bool]
    """Whether `select` uses each example's present loss."""

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes of the passes, each in (0, 1], adding up to `num_epochs` (the last one is cut to fit)."""
        ...

    def select(
        self, size: int, *, difficulty: "Tensor | None", labels: "Tensor", generator: "torch.Generator"
    ) -> "Tensor":
        """Indices of the examples of one pass, in the order of visiting.

        Args:
            size: How many of the `N` examples to choose.
            difficulty: Each example's loss under the present model, shape (N,), higher is harder; `None` where
                `needs_difficulty` is False, in the first epoch, and in an epoch of whole passes.
            labels: Class of each example, shape (N,), int64.
            generator: Source of all randomness, on the CPU.

        Returns:
            Distinct indices, shape (size,), int64.
        """
        ...


# --- averaging ---


class Averager(Protocol):
    """A way to make one model of several checkpoints of one run."""

    card: ClassVar[PluginCard]

    @property
    def num_needed(self) -> int:
        """How many of the newest checkpoints `average` reads; with fewer it raises ValueError, more change nothing."""
        ...

    def average(self, checkpoints: Sequence[StateDict]) -> dict[str, "Tensor"]:
        """A new state dict from checkpoints in training order, oldest first; the inputs are left unchanged.

        Raises:
            ValueError: There are fewer checkpoints than the settings need.
        """
        ...


# --- schedules ---


class Schedule(Protocol):
    """A learning-rate schedule after warm-up, as a factor of the base rate."""

    card: ClassVar[PluginCard]

    def factor(self, progress: float) -> float:
        """Factor between 0 and 1 at `progress` in [0, 1] of the steps after warm-up."""
        ...


# --- samplers ---


class Sampler(Protocol):
    """Builds an Optuna sampler, anew for every suggestion: a suggestion depends on the seed and the results only."""

    card: ClassVar[PluginCard]

    def build(self, seed: int) -> Any:
        """An `optuna.samplers.BaseSampler` seeded by `seed`."""
        ...
