"""The interface of each kind of plug-in. Any class with the required members is a plug-in; no base class is needed."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

from search_spaces.base import Costs, ImageTask, Topology
from search_spaces.dimensions import Dimension, Point
from search_spaces.step_settings import StepSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


@dataclass(frozen=True, kw_only=True)
class PluginCard:
    """Information about a method that a user needs before choosing it."""

    source: str
    """Author, year, arXiv id, and the differences between our version and the paper."""
    cost: str
    """Cost of one use, in words: `one forward pass of the training set per epoch`."""
    needs: tuple[str, ...] = ()
    """Required inputs: `images`, `difficulty`, `validation loss`, ..."""


# --- proxies ---


class ProxyModel(Protocol):
    """The part of a built model that proxies use. It is also a `torch.nn.Module`."""

    def forward_features(self, images: "Tensor") -> "Tensor":
        """Pooled features of images (B, C, H, W) before the final normalisation, shape (B, D)."""
        ...


@runtime_checkable
class CurveModel(ProxyModel, Protocol):
    """A model that computes the derivatives of its features along a curve of images faster than autograd does."""

    def features_along(self, directions: "Tensor", weights: "Tensor") -> "Tensor":
        """Features of linear combinations of a few images, and their derivatives, computed without normalisation.

        Args:
            directions: The `r` images that span the curve, shape (r, C, H, W).
            weights: Coefficients of the `n` points of the curve and of their first K - 1 derivatives, shape (K, n, r);
                K is 1, 2 or 3.

        Returns:
            Shape (K, n, D), without an autograd graph.
        """
        ...


class TransformerBlock(Protocol):
    """A pre-norm block: `stream = x + attn(norm1(x))`, then `stream + mlp(norm2(stream))`.

    Proxies find the blocks of a model by these four names, which are customary, and register hooks on the modules. The
    inputs of `norm1` and `norm2` and the output of the block are the residual stream.
    """

    norm1: "torch.nn.Module"
    attn: "torch.nn.Module"
    """Has the linear layers `qkv` and `proj`, the number of `heads`, and `attention_weights(tokens)`: the attention
    weights between the tokens of each window, shape (B, ..., heads, N, N), with rows that sum to 1. The signal
    `attention_logit` also needs `attention_logits(tokens)`, the scores before the softmax."""
    norm2: "torch.nn.Module"
    mlp: "torch.nn.Module"
    """Has the linear layers `fc1` and `fc2`, with the activation module `act` between them."""


def is_block(module: "torch.nn.Module") -> TypeGuard[TransformerBlock]:
    """Whether a module has the parts of a transformer block.

    `isinstance` cannot tell: since Python 3.12, it does not find submodules.
    """
    return all(hasattr(module, name) for name in ("norm1", "attn", "norm2", "mlp"))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A topology to be scored, with everything that a proxy may use."""

    topology: Topology
    task: ImageTask
    costs: Costs
    images: "Tensor"
    """One batch of normalised training images, shape (B, C, H, W), on the scoring device and in its dtype."""
    labels: "Tensor"
    """Classes of the images, shape (B,), int64, on the same device."""
    build: Callable[..., "torch.nn.Module"]
    """`build(seed=7, normalization=True)` returns a freshly initialised `ProxyModel` on the device and in the dtype of
    the images. With `normalization=False`, the identity replaces every LayerNorm."""
    seed: int
    """Seed of the proxy's random numbers. The same seed gives the same score."""
    companions: tuple["Proxy", ...] = field(default=(), compare=False, repr=False)
    """All proxies that score this candidate. Several of them can use the same pass of a network."""
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """Results shared between proxies, such as built networks (`plugins.proxies.repeats`). Do not modify them."""


class ProxyScore(NamedTuple):
    """A score and its spread over repeats. A non-finite value marks the topology as bad."""

    value: float
    spread: float = 0.0
    """Standard deviation (ddof 1) over the repeats; 0 if the value is exact or measured once."""


class Proxy(Protocol):
    """A training-free score."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]

    def score(self, candidate: Candidate) -> ProxyScore: ...


@runtime_checkable
class PoolProxy(Protocol):
    """A score that depends on the other topologies of a pool, computed from the scores of other proxies."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]
    parts: ClassVar[tuple[str, ...]]
    """Names of the proxies that are combined."""

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """Compute one value per topology of the pool.

        Args:
            scores: For each part, one score per topology, oriented so that higher is better. A failed score is not
                finite.

        Returns:
            One value per topology, not finite if any of its parts is not.
        """
        ...


# --- recorded during training ---


class Signal(StrEnum):
    """A number that training measures once per epoch if a plug-in needs it. It is stored with the curve."""

    GRADIENT_NORM = "gradient_norm"
    """Euclidean norm of the gradient before clipping, averaged over the steps of the epoch."""
    GRADIENT_NOISE = "gradient_noise"
    """Noise of the gradients relative to their mean: `E|g|^2 / |E g|^2 - 1` over the steps of the epoch."""
    CHANGED_PREDICTIONS = "changed_predictions"
    """Fraction of the validation images whose predicted class changed since the previous epoch."""
    WEIGHT_PERSISTENCE = "weight_persistence"
    """Cosine between the weight changes of this epoch and of the previous one."""
    ATTENTION_ENTROPY = "attention_entropy"
    """Mean entropy of the attention weights in validation, divided by its maximum, the log of the number of keys."""
    ATTENTION_LOGIT = "attention_logit"
    """Largest absolute attention logit, after scaling and before softmax, in validation."""
    DEAD_UNITS = "dead_units"
    """Fraction of the MLPs' hidden units with an activation below 0.01 for every validation image and token."""


CURVE_FIELDS = ("train_loss", "val_loss", "val_accuracy")
"""Numbers that every epoch records, as fields of `CurvePoint`."""
CURVE_METRICS = ("val_balanced_accuracy", "val_macro_f1")
"""Further numbers that every epoch records since version 0.2.0, in `CurvePoint.metrics`."""


@runtime_checkable
class NeedsSignals(Protocol):
    """An optional part of a plug-in, for plug-ins that read signals."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The signals that training must measure. They may depend on the settings of the plug-in."""
        ...


def needed_signals(plugin: object) -> frozenset[Signal]:
    """The signals that a plug-in reads, empty if it declares none."""
    return plugin.signals if isinstance(plugin, NeedsSignals) else frozenset()


@runtime_checkable
class DeclaresPacking(Protocol):
    """An optional part of a training plug-in, for plug-ins that cannot be packed."""

    packs: ClassVar[bool]
    """Whether trainings that use the plug-in may run together, with stacked weights. True if undeclared."""


def can_pack(plugin: object) -> bool:
    """Whether trainings that use a plug-in may run together."""
    return plugin.packs if isinstance(plugin, DeclaresPacking) else True


@runtime_checkable
class DeclaresLength(Protocol):
    """A schedule or curriculum that declares whether its steps depend on the number of epochs of the training."""

    independent_of_length: ClassVar[bool]
    """Whether the steps of a longer training begin with the steps of a shorter one, so that a training that has ended
    can be continued for more epochs."""


def is_independent_of_length(plugin: Any) -> bool:
    """Whether a training with this schedule or curriculum can be continued for more epochs. By default it cannot."""
    return isinstance(plugin, DeclaresLength) and plugin.independent_of_length


# --- stopping ---


class CurvePoint(NamedTuple):
    """One finished epoch, as a stopping criterion sees it."""

    epoch: int
    """Starting at 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    """Fraction between 0 and 1."""
    signals: Mapping[str, float] = {}
    """The measured signals, by name."""
    metrics: Mapping[str, float] = {}
    """Further validation metrics, by their keys, such as `val_macro_f1`; empty in curves of version 0.1.0."""
    score: float | None = None
    """The value of the study's metric, negative if less of it is better; `None` if no metric was chosen."""


class Stopper(Protocol):
    """An early-stopping criterion: a pure function of the curve so far. It may declare `signals` (`NeedsSignals`)."""

    card: ClassVar[PluginCard]

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop training after the last point of `curve`, as text for the user; `None` to continue."""
        ...


# --- curricula: example orders and step methods ---


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


# --- losses ---


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """Inputs of a loss in addition to logits and targets. `B` is the number of images of the step."""

    labels: "Tensor"
    """Classes of the images before mixing, shape (B,), int64."""
    now: Now


class Loss(Protocol):
    """The quantity that training minimises. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,).

        Args:
            logits: Shape (B, classes), float32 or float64.
            targets: Soft targets, shape (B, classes), in the dtype of the logits; each row sums to 1. Label smoothing
                and mixing are already applied.
            context: Further inputs of this step.
        """
        ...


@runtime_checkable
class LabelLoss(Protocol):
    """An optional part of a loss: a faster computation for plain labels, without soft targets in memory."""

    def mean_of_labels(self, logits: "Tensor", labels: "Tensor", *, label_smoothing: float) -> "Tensor":
        """The mean of `loss` over the images, a scalar.

        Args:
            logits: Shape (B, classes).
            labels: Shape (B,), int64.
            label_smoothing: Fraction of each target that is spread evenly over all classes.
        """
        ...


@runtime_checkable
class StackedLabelLoss(Protocol):
    """An optional part of a loss: the means of all models of a pack in one computation."""

    def means_of_labels(
        self, logits: "Tensor", labels: "Tensor", sizes: Sequence[int], *, label_smoothing: Sequence[float]
    ) -> "Tensor":
        """The mean of `loss` for each of `K` models, shape (K,).

        Args:
            logits: Shape (K, B, classes).
            labels: Shape (K, B), int64.
            sizes: For each model, the number of images, counted from the first, that enter the mean.
            label_smoothing: Label smoothing of each model.
        """
        ...


# --- metrics ---


class Metric(Protocol):
    """A measure of a model's predictions on labelled images."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]
    is_fraction: ClassVar[bool]
    """Whether all values lie between 0 and 1. They are then shown in percent."""

    def measure(self, logits: "Tensor", labels: "Tensor") -> float:
        """The value on `N` images.

        It does not depend on the order of the images, and is NaN if a logit is NaN. The arguments are not modified.

        Args:
            logits: Shape (N, classes), float32 or float64, on any device. Their softmax are the probabilities.
            labels: Shape (N,), int64, on the same device. Classes may be missing.
        """
        ...


# --- augmentations ---


class Augmentation(Protocol):
    """Random changes to each image of a batch. It may declare `packs` (`DeclaresPacking`)."""

    card: ClassVar[PluginCard]

    def augment(self, images: "Tensor", *, strength: float, seed: int) -> "Tensor":
        """Return an augmented copy of a batch, or the batch itself if nothing changes.

        The same seed gives the same result. Torch's global generators are restored.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            strength: Factor of the ranges; 1 is the plug-in's default. At 0, images are at most mirrored.
            seed: Seed of the random numbers.
        """
        ...


@runtime_checkable
class JointAugmentation(Protocol):
    """An optional part of an augmentation: several batches augmented together, with few operations."""

    def augment_together(
        self, batches: "Sequence[Tensor]", *, strength: float, seeds: Sequence[int]
    ) -> "Sequence[Tensor]":
        """The result of `augment` for each batch with its seed, up to rounding."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """Mixes the images of a batch and their targets. The kind of such a plug-in is `augmentations`, too."""

    card: ClassVar[PluginCard]

    def mix(self, images: "Tensor", targets: "Tensor", *, generator: "torch.Generator") -> "tuple[Tensor, Tensor]":
        """Return mixed images and targets.

        Args:
            images: Pixels on a scale of 0 to 1, shape (B, C, S, S), float32, on any device.
            targets: Shape (B, classes); each row sums to 1.
            generator: Generator of all random numbers, on the CPU.
        """
        ...


# --- optimizers ---


class Segment(NamedTuple):
    """A part of a row of parameters."""

    start: int
    stop: int
    decays: bool
    """Whether weight decay applies to it."""


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

    It may declare `packs` (`DeclaresPacking`).
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


# --- averaging ---


class Evaluated(NamedTuple):
    """Result of evaluating a model on the validation images."""

    loss: float
    accuracy: float
    """Fraction between 0 and 1."""
    metrics: Mapping[str, float] = {}
    """All measured metrics, including these two, by the names of their plug-ins."""
    score: float | None = None
    """The value of the study's metric, negative if less of it is better; `None` compares by accuracy."""


class Averager(Protocol):
    """A method that merges several checkpoints, of one trial or of several trials of one topology, into one model.

    With a class attribute `reads`, `"ema"` or `"swa"`, it receives the averages maintained during training
    (`recipe.ema`, `recipe.swa`) instead of the weights. With `"best"`, it receives the checkpoint with the best
    validation metric alone.
    """

    card: ClassVar[PluginCard]

    @property
    def num_needed(self) -> int:
        """Number of newest checkpoints that `average` reads. Fewer raise `ValueError`; older ones have no effect."""
        ...

    def average(self, checkpoints: Sequence[StateDict]) -> dict[str, "Tensor"]:
        """Return a new state dict from checkpoints in training order, oldest first. The inputs are not modified.

        Raises:
            ValueError: There are fewer checkpoints than `num_needed`.
        """
        ...


@runtime_checkable
class EvaluatingAverager(Protocol):
    """An averager that evaluates candidates on the validation images. It has `average_by` instead of `average`."""

    card: ClassVar[PluginCard]

    @property
    def num_needed(self) -> int:
        """See `Averager.num_needed`."""
        ...

    def average_by(
        self, checkpoints: Sequence[StateDict], evaluate: Callable[[StateDict], Evaluated]
    ) -> dict[str, "Tensor"]:
        """Like `Averager.average`. `evaluate` measures a state dict on the validation images."""
        ...


# --- schedules ---


class Schedule(Protocol):
    """A learning-rate schedule after warm-up, as a factor of the base learning rate."""

    card: ClassVar[PluginCard]

    def factor(self, progress: float) -> float:
        """Factor between 0 and 1 at `progress` in [0, 1] of the steps after warm-up."""
        ...


# --- samplers ---


class Sampler(Protocol):
    """Builds a new Optuna sampler for every suggestion, so that a suggestion depends on the seed and the results only.

    A sampler may read only the trials of `plugins.samplers.history.finished_trials` and, like Optuna's own samplers,
    complete trials. Other trials may be refused suggestions, which are lost when a study is rebuilt.
    """

    card: ClassVar[PluginCard]

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """Why the sampler does not support these dimensions, and what to do about it; `None` if it does."""
        ...

    def build(self, seed: int, *, study_seed: int) -> Any:
        """Build an `optuna.samplers.BaseSampler`.

        Args:
            seed: Seed of this suggestion, different for each suggestion.
            study_seed: Seed of the search, the same for all its suggestions.
        """
        ...


@runtime_checkable
class FinalChoice(Protocol):
    """An optional part of a sampler that recommends a final point, such as the argmax of a policy."""

    def final_choice(self, study: Any, *, study_seed: int, num_trials: int) -> Point | None:
        """The recommended point; `None` if no trial has finished.

        Args:
            study: The `optuna.Study` with the finished trials.
            study_seed: Seed of the search, as in `Sampler.build`.
            num_trials: Trials with this number or a higher one are ignored.
        """
        ...


@runtime_checkable
class Enumeration(Protocol):
    """A sampler that lists all points in a fixed order, regardless of results. It has `points` instead of `build`."""

    def points(self, dimensions: Sequence[Dimension]) -> Iterator[Point]:
        """All points, in order. The caller skips points that were tried before or are not allowed."""
        ...
