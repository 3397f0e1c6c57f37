"""The interfaces of losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from plugins.protocols.curricula import Now

if TYPE_CHECKING:
    from torch import Tensor


class LossInput(StrEnum):
    """An input of a loss that training computes only if the loss reads it."""

    TEACHER = "teacher"
    """`LossContext.teacher`: the logits of the trained model that the configuration names as `teacher`."""
    START = "start"
    """`LossContext.start`: the logits of the model with the weights that the training started from."""
    LAYERS = "layers"
    """`LossContext.layers` and `guide_layers`: activations of the model and of its guide (`GuidedLoss`)."""
    PEER = "peer"
    """`LossContext.peer`: the logits of a second model of the topology, trained at the same time with the same loss.
    The two take turns in every step."""
    MATE = "mate"
    """`LossContext.peer`, too, but both models compute a step together, as a pack with stacked weights, and the logits
    are those of the same forward pass."""


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """Inputs of a loss in addition to logits and targets. `B` is the number of images of the step."""

    labels: "Tensor"
    """Classes of the images before mixing, shape (B,), int64."""
    now: Now
    indices: "Tensor"
    """Positions of the images in the training part, shape (B,), int64. An image may occur more than once."""
    class_counts: "Tensor"
    """Number of training images of each class, shape (classes,), float32."""
    state: "Mapping[str, Tensor]" = field(default_factory=dict)
    """State of the loss (`StatefulLoss`); empty for other losses."""
    teacher: "Tensor | None" = None
    """Logits of the teacher for the images of the step, shape (B, classes), if the loss reads `LossInput.TEACHER`."""
    start: "Tensor | None" = None
    """Logits of the model with its first weights, shape (B, classes), if the loss reads `LossInput.START`."""
    layers: "Sequence[Tensor]" = ()
    """Activations of each block of the model, averaged over the tokens, shape (B, width of the block), if the loss
    reads `LossInput.LAYERS`."""
    guide_layers: "Sequence[Tensor]" = ()
    """The same of the guide's blocks, without gradient."""
    peer: "Tensor | None" = None
    """Logits of the second model, shape (B, classes), without gradient, if the loss reads `LossInput.PEER` or
    `MATE`."""
    member: int = 0
    """0 for the trial's model, 1 for the second one. Each has its own state."""


class Loss(Protocol):
    """The quantity that training minimises. It may declare `packs` (`DeclaresPacking`) and `inputs` (`ReadsInputs`)."""

    card: ClassVar[PluginCard]

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,). It changes none of its inputs.

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


@runtime_checkable
class ReadsInputs(Protocol):
    """An optional part of a loss, for losses that read inputs which training must compute."""

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The inputs. They may depend on the settings of the loss."""
        ...


@runtime_checkable
class StatefulLoss(Protocol):
    """An optional part of a loss: a state, such as a running target of each training image.

    Training keeps the state with the optimizer's, so that a resumed training is the same. The images of such a loss
    must not be mixed, since a mixed image has no entry in the state.
    """

    def initial_state(self, num_images: int, num_classes: int) -> "dict[str, Tensor]":
        """The state before the first step, by name, on the CPU.

        Args:
            num_images: Number of training images.
            num_classes: Number of classes.
        """
        ...

    def observe(self, logits: "Tensor", context: LossContext) -> None:
        """Update `context.state` in place. Training calls it once per step, after the gradient is computed.

        Args:
            logits: Logits of the step, shape (B, classes), without gradient.
            context: The context that `loss` had.
        """
        ...


@runtime_checkable
class GuidedLoss(Protocol):
    """An optional part of a loss that reads `LossInput.LAYERS`: which network guides the model."""

    guide: str | None
    """Topology of the guide, `space:text`; `None` for that of the model."""
    guide_seed: int
    """Seed of the guide's weights, which are random and fixed."""


def loss_inputs(loss: object) -> frozenset[LossInput]:
    """The inputs that training must compute for a loss, empty if it declares none."""
    return loss.inputs if isinstance(loss, ReadsInputs) else frozenset()
