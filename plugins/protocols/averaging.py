"""The interfaces of methods that average checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard

if TYPE_CHECKING:
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


class Evaluated(NamedTuple):
    """Result of evaluating a model on the validation images."""

    loss: float
    accuracy: float
    """Fraction between 0 and 1."""
    metrics: Mapping[str, float] = {}
    """All measured metrics, including these two, by the names of their plug-ins."""
    score: float | None = None
    """The value of the study's metric, negative if less of it is better; `None` compares by accuracy."""
    class_losses: Mapping[int, float] = {}
    """Mean loss of each class that has validation images, by class."""


class Averager(Protocol):
    """A method that merges several checkpoints, of one trial or of several trials of one topology, into one model.

    An optional attribute `reads` selects what it receives instead of the weights of one trial's consecutive epochs:

    - `"ema"` or `"swa"`: the averages maintained during training (`recipe.ema`, `recipe.swa`); an attribute `rate`
      selects one of several moving averages by its decay;
    - `"best"`: the checkpoint with the best validation metric alone;
    - `"trials"`: the newest weights of each trial of the best trial's topology, the best trial last.
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
