"""What a plug-in of each kind offers. A class that has the members is a plug-in; it need not inherit anything."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from search_spaces.base import Costs, ImageTask, Topology
from search_spaces.dimensions import Dimension, Point
from search_spaces.step_settings import StepSettings

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


@runtime_checkable
class CurveModel(ProxyModel, Protocol):
    """A model that knows the derivatives of its features along a curve of images better than autograd does."""

    def features_along(self, directions: "Tensor", weights: "Tensor") -> "Tensor":
        """Features and their derivatives, without any normalisation, of images that are combinations of a few.

        Args:
            directions: The `r` images that span the curve, shape (r, C, H, W).
            weights: Of the `n` images and of their first K - 1 derivatives, shape (K, n, r); K is 1, 2 or 3.

        Returns:
            Shape (K, n, D), without a graph for autograd.
        """
        ...


@runtime_checkable
class TransformerBlock(Protocol):
    """A pre-norm block: `stream = x + attn(norm1(x))`, then `stream + mlp(norm2(stream))`.

    Proxies find the blocks of a model by these four names, which are the field's usual ones, and hook into the modules:
    the input of `norm1`, that of `norm2` and the block's output are the residual stream.
    """

    norm1: "torch.nn.Module"
    attn: "torch.nn.Module"
    """Has the linear layers `qkv` and `proj`, the number of `heads`, and `attention_weights(tokens)`: the attention
    weights of each token of a window for each, shape (B, ..., heads, N, N), whose rows sum to 1. The signal
    `attention_logit` also needs `attention_logits(tokens)`, the scores before the softmax."""
    norm2: "torch.nn.Module"
    mlp: "torch.nn.Module"
    """Has the linear layers `fc1` and `fc2`, and between them the module `act`."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One topology, as a proxy sees it."""

    topology: Topology
    task: ImageTask
    costs: Costs
    images: "Tensor"
    """One batch of real, normalised training images, shape (B, C, H, W), on the scoring device, in its dtype."""
    labels: "Tensor"
    """Their classes, shape (B,), int64, on the same device."""
    build: Callable[..., "torch.nn.Module"]
    """`build(seed=7, normalization=True)`: a freshly initialised model like `ProxyModel`, on the images'
    device and in their dtype; with `normalization=False` every LayerNorm is replaced by the identity."""
    seed: int
    """Where a proxy's random numbers start; the same seed gives the same score."""
    companions: tuple["Proxy", ...] = field(default=(), compare=False, repr=False)
    """All proxies that this candidate is scored with: one pass of a network can serve several of them."""
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What proxies computed for each other, such as built networks (`plugins.proxies.repeats`); read, not changed."""


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


@runtime_checkable
class PoolProxy(Protocol):
    """A score that is defined only within a pool of topologies, from the scores of other proxies."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]
    parts: ClassVar[tuple[str, ...]]
    """Names of the proxies that it is made of."""

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """One value per topology of the pool.

        Args:
            scores: Per part, one score per topology, turned so that more is better; not finite where it failed.

        Returns:
            Not finite where any part is not.
        """
        ...


# --- what training records ---


class Signal(StrEnum):
    """A number that training measures once per epoch if a plug-in needs it; stored with the curve."""

    GRADIENT_NORM = "gradient_norm"
    """Mean over the epoch's steps of the gradient's Euclidean norm before clipping."""
    GRADIENT_NOISE = "gradient_noise"
    """Noise of an epoch's gradients relative to their mean: `E|g|^2 / |E g|^2 - 1` over its steps."""
    CHANGED_PREDICTIONS = "changed_predictions"
    """Fraction of the validation images whose predicted class is another one than an epoch ago."""
    WEIGHT_PERSISTENCE = "weight_persistence"
    """Cosine between this epoch's change of the weights and the change of the epoch before."""
    ATTENTION_ENTROPY = "attention_entropy"
    """Mean entropy of the attention weights in validation, as a fraction of its maximum, the logarithm of the keys."""
    ATTENTION_LOGIT = "attention_logit"
    """Largest absolute attention logit, after scaling and before softmax, in validation."""
    DEAD_UNITS = "dead_units"
    """Fraction of the MLPs' hidden units whose activation stays below 0.01 for every validation image and token."""


CURVE_FIELDS = ("train_loss", "val_loss", "val_accuracy")
"""Numbers of each epoch that are always there."""


@runtime_checkable
class NeedsSignals(Protocol):
    """What a plug-in offers besides, if it reads signals."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The signals that training must measure for it; they may depend on its settings."""
        ...


def needed_signals(plugin: object) -> frozenset[Signal]:
    """The signals that a plug-in reads; none if it does not declare any."""
    return plugin.signals if isinstance(plugin, NeedsSignals) else frozenset()


@runtime_checkable
class DeclaresPacking(Protocol):
    """What a training plug-in offers besides, if trainings with it must not share a pack."""

    packs: ClassVar[bool]
    """Whether several trainings with it may be computed together, with stacked weights; True if it is not declared."""


def can_pack(plugin: object) -> bool:
    """Whether trainings with a plug-in may be computed together."""
    return plugin.packs if isinstance(plugin, DeclaresPacking) else True


# --- stopping ---


class CurvePoint(NamedTuple):
    """What a stopping criterion sees of one finished epoch."""

    epoch: int
    """Starting at 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    """Fraction between 0 and 1."""
    signals: Mapping[str, float] = {}
    """The signals that were measured, by name."""


class Stopper(Protocol):
    """An early-stopping criterion: a pure function of the curve so far. It may declare `signals` (`NeedsSignals`)."""

    card: ClassVar[PluginCard]

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """Why training should stop after the last point of `curve`, in words a person can read; `None` to continue."""
        ...


# --- curricula: the order of examples, and methods that adjust steps ---


@dataclass(frozen=True, kw_only=True)
class Now:
    """Where training is when a step's settings are made, or a pass of examples chosen."""

    epoch: int
    """Starting at 1."""
    num_epochs: int
    progress: float
    """Fraction of training done before, in [0, 1): of optimizer steps if their number is known in advance, of image
    visits if the batch size changes."""
    signals: Mapping[str, float]
    """Losses, accuracy and signals of the last finished epoch; empty in the first."""


@dataclass(frozen=True, kw_only=True)
class OrderContext:
    """What an example order may look at when it chooses a pass. `N` is the number of training images."""

    now: Now
    labels: "Tensor"
    """Class of each image, shape (N,), int64, on the CPU."""
    difficulty: "Tensor | None"
    """Loss of each image under the present model, shape (N,), higher is harder; `None` if `needs_difficulty` is False,
    in the first epoch, and in an epoch of whole passes."""
    generator: "torch.Generator"
    """Source of all randomness, on the CPU."""


class Selection(NamedTuple):
    """The examples of one pass."""

    indices: "Tensor"
    """In the order of visiting, shape (size,), int64; an index may occur more than once."""
    weights: "Tensor | None" = None
    """Weight of each visit in the loss, shape (size,), float; `None` weighs all alike."""


@runtime_checkable
class ExampleOrder(Protocol):
    """Which examples are visited when. All orders visit the same number of examples in all.

    Training is a sequence of passes. A pass of size `f` visits `f * N` of the `N` training examples. Of the methods of
    a recipe, at most one besides `none` may control the order.
    """

    card: ClassVar[PluginCard]
    needs_difficulty: ClassVar[bool]
    """Whether `select` uses each example's present loss."""

    def passes(self, num_epochs: float) -> tuple[float, ...]:
        """Sizes of the passes, each in (0, 1], adding up to `num_epochs` (the last one is cut to fit)."""
        ...

    def select(self, size: int, context: OrderContext) -> Selection:
        """The `size` visits of one pass."""
        ...


@runtime_checkable
class StepMethod(Protocol):
    """Adjusts the settings of each step. The methods of a recipe are applied in the order of its list.

    Validation, measuring difficulty and everything after training use none of it, so a method cannot change what is
    evaluated. A method may declare `signals` (`NeedsSignals`) and `packs` (`DeclaresPacking`).
    """

    card: ClassVar[PluginCard]

    @property
    def changes(self) -> frozenset[str]:
        """The fields of `StepSettings` that `adjust` may set. Two methods of a recipe must not share one.

        Options of the model's forward pass are named one by one, as `model_options.stride_factor`.
        """
        ...

    def adjust(self, now: Now, settings: StepSettings) -> StepSettings:
        """The settings of the step that begins now. It depends on nothing but the arguments."""
        ...


# --- losses ---


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a loss may look at besides logits and targets. `B` is the number of images of the step."""

    labels: "Tensor"
    """Classes of the images before mixing, shape (B,), int64."""
    now: Now


class Loss(Protocol):
    """What is minimised. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,).

        Args:
            logits: Shape (B, classes), float32 or float64.
            targets: Soft targets, shape (B, classes), in the dtype of the logits; each row adds up to 1. They contain
                label smoothing and mixing.
            context: Of the step.
        """
        ...


@runtime_checkable
class LabelLoss(Protocol):
    """What a loss offers besides, if it is faster for plain labels, without soft targets in memory."""

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` over the images, without dimensions.

        Args:
            logits: Shape (B, classes).
            labels: Shape (B,), int64.
            label_smoothing: Share of each target that is spread evenly over all classes.
        """
        ...


@runtime_checkable
class StackedLabelLoss(Protocol):
    """What a loss offers besides, if it computes the means of several models of a pack at once."""

    def means_of_labels(
        self, logits: "Tensor", labels: "Tensor", sizes: Sequence[int], *, label_smoothing: Sequence[float]
    ) -> "Tensor":
        """The mean of `loss` for each of `K` models, shape (K,).

        Args:
            logits: Shape (K, B, classes).
            labels: Shape (K, B), int64.
            sizes: How many of the `B` images count, the first ones, for each model.
            label_smoothing: Of each model.
        """
        ...


# --- augmentations ---


class Augmentation(Protocol):
    """Random changes of each image of a batch. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """A changed copy of a batch (or the batch itself if nothing changes), the same for the same seed.

        Torch's global generators are left as they were.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            strength: Factor of the ranges; 1 is the plug-in's own. At 0 an image is itself or its mirror image.
            seed: Start of the random numbers.
        """
        ...


@runtime_checkable
class JointAugmentation(Protocol):
    """What an augmentation offers besides, if it changes several batches with few operations for all of them."""

    def augment_together(
        self, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
    ) -> "Sequence[Tensor]":
        """What `augment` makes of each batch with its seed, up to rounding."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """Mixes the images of a batch, with their targets; a plug-in of the kind `augmentations` too."""

    card: ClassVar[PluginCard]

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "torch.Generator") -> "tuple[Tensor, Tensor]":
        """Mixed images and targets.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            targets: Shape (B, classes), each row adds up to 1.
            generator: Source of all randomness, on the CPU.
        """
        ...


# --- optimizers ---


@dataclass(frozen=True, kw_only=True)
class ParameterLayout:
    """How the parameters of a model lie in one flat row of `P` numbers.

    Parameters with weight decay (weights of linear layers and convolutions) come first. Each begins at a multiple of 16
    numbers; the numbers between are zero and stay zero if updates are elementwise.
    """

    names: tuple[str, ...]
    shapes: "tuple[torch.Size, ...]"
    starts: tuple[int, ...]
    """Index of each parameter's first number."""
    num_decayed: int
    """How many of the parameters have weight decay, the first ones."""
    num_numbers: int
    """`P`."""

    @property
    def decay_end(self) -> int:
        """Index of the first number without weight decay."""
        return self.starts[self.num_decayed] if self.num_decayed < len(self.starts) else self.num_numbers

    @cached_property
    def segments(self) -> tuple[tuple[slice, bool], ...]:
        """The numbers of the parameters without those between them, each segment with whether it has weight decay.

        Neighbours are one segment if nothing lies between them. Elementwise kernels compute the last few numbers of a
        tensor with other instructions, so a step over segments rounds as one over the parameters does.
        """
        segments: list[tuple[slice, bool]] = []
        for index, (start, shape) in enumerate(zip(self.starts, self.shapes, strict=True)):
            decays, stop = index < self.num_decayed, start + shape.numel()
            if segments and segments[-1][1] == decays and segments[-1][0].stop == start:
                segments[-1] = (slice(segments[-1][0].start, stop), decays)
            else:
                segments.append((slice(start, stop), decays))
        return tuple(segments)

    def views(self, values: "Tensor") -> "list[Tensor]":
        """Views (..., *shape) of each parameter in values (..., P)."""
        ends = (*self.starts[1:], self.num_numbers)
        # One split: its backward pass is a single concatenation, where slices would each fill a row of zeros.
        split: Callable[..., Sequence[Tensor]] = values.split
        pieces = split([end - start for start, end in zip(self.starts, ends, strict=True)], -1)
        return [
            piece[..., : shape.numel()].view(*values.shape[:-1], *shape)
            for piece, shape in zip(pieces, self.shapes, strict=True)
        ]


OptimizerState = dict[str, "Tensor"]
"""Named tensors: of shape (P,), laid out as the parameters, or without dimensions."""


class Optimizer(Protocol):
    """How a gradient changes the weights: pure functions over one flat row of parameters.

    It may declare `packs` (`DeclaresPacking`).
    """

    card: ClassVar[PluginCard]

    def start(self, layout: ParameterLayout, values: "Tensor") -> OptimizerState:
        """The state before the first step, for parameters with these values (P,)."""
        ...

    def update(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> None:
        """One step, in place on `values` (P,) and the tensors of `state`; `gradient` (P,) may be overwritten."""
        ...


@runtime_checkable
class TwoGradients(Protocol):
    """What an optimizer offers besides, if a step needs the gradient at a second point, on the same batch."""

    def probe(
        self,
        layout: ParameterLayout,
        values: "Tensor",
        gradient: "Tensor",
        state: OptimizerState,
        settings: StepSettings,
    ) -> "Tensor":
        """The point (P,) at which `update` needs the gradient, given the gradient at `values`; changes neither."""
        ...


@runtime_checkable
class EvaluatedElsewhere(Protocol):
    """What an optimizer offers besides, if the weights to evaluate and to save are not those it trains with."""

    def evaluated(self, layout: ParameterLayout, values: "Tensor", state: OptimizerState) -> "Tensor":
        """The weights (P,) to evaluate."""
        ...


# --- averaging ---


class Evaluated(NamedTuple):
    """What a model makes of the validation images."""

    loss: float
    accuracy: float
    """Fraction between 0 and 1."""


class Averager(Protocol):
    """A way to make one model of several checkpoints, of one trial or of several trials of one topology.

    It may have a class attribute `reads`, `"ema"` or `"swa"`: then it is given the averages that training maintained
    (`recipe.ema`, `recipe.swa`) instead of the weights.
    """

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


@runtime_checkable
class EvaluatingAverager(Protocol):
    """What an averager offers instead of `average`, if it evaluates candidates on the validation images."""

    card: ClassVar[PluginCard]

    @property
    def num_needed(self) -> int:
        """As in `Averager`."""
        ...

    def average_by(
        self, checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
    ) -> dict[str, "Tensor"]:
        """As `Averager.average`, with the validation images to judge state dicts by."""
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
    """Builds an Optuna sampler, anew for every suggestion: a suggestion depends on the seed and the results only.

    A sampler must not look at trials of the Optuna study other than those of `plugins.samplers.history.finished_trials`
    and, as Optuna's own do, complete ones: refused suggestions are missing from a study that was rebuilt.
    """

    card: ClassVar[PluginCard]

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """Why these dimensions cannot be sampled, and what to do about it; `None` if they can."""
        ...

    def build(self, seed: int, *, study_seed: int) -> Any:
        """An `optuna.samplers.BaseSampler`.

        Args:
            seed: Of this suggestion; another one each time.
            study_seed: The same for all suggestions of a search.
        """
        ...


@runtime_checkable
class FinalChoice(Protocol):
    """What a sampler offers besides, if it has a last word of its own, such as the argmax of a policy."""

    def final_choice(self, study: Any, *, study_seed: int, num_trials: int) -> Point | None:
        """The point that the sampler believes in; `None` where no trial has finished.

        Args:
            study: The `optuna.Study` with the finished trials.
            study_seed: The same as in `Sampler.build`.
            num_trials: Trials with this number or a higher one are left aside.
        """
        ...


@runtime_checkable
class Enumeration(Protocol):
    """What a sampler offers instead of `build`, if it goes through the space in its own order, whatever the results."""

    def points(self, dimensions: Sequence[Dimension]) -> Iterator[Point]:
        """All points, in order; those that were tried before or must not be tried are skipped by who asks."""
        ...
