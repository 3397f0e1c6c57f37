"""Stop if the neural persistence of the weights has not grown for some epochs; needs no validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import SIGNAL_COSTS, CurvePoint, PluginCard, Signal
from plugins.stopping.recorded import recorded


@dataclass(frozen=True, kw_only=True)
class NeuralPersistence:
    """Stops after `patience` checks in which the persistence did not exceed its best value by more than `min_delta`."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Rieck et al. 2019, arXiv:1812.09764, algorithm 2, checked once per epoch (the authors check four times); "
            "over all linear layers, of which a fused qkv is one"
        ),
        cost=SIGNAL_COSTS[Signal.NEURAL_PERSISTENCE],
        needs=(Signal.NEURAL_PERSISTENCE.value,),
    )
    patience: Annotated[int, Field(ge=1)] = 4
    """Epochs without growth before training stops: the g of the paper."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Minimum growth beyond the best value so far."""
    burn_in: Annotated[int, Field(ge=0)] = 0
    """Number of initial epochs to ignore."""

    @property
    def signals(self) -> frozenset[Signal]:
        """The neural persistence."""
        return frozenset({Signal.NEURAL_PERSISTENCE})

    @property
    def earliest_stop(self) -> int:
        """The first epoch after which it can end a training."""
        return self.burn_in + self.patience

    def reason_to_stop(self, curve: Sequence[CurvePoint]) -> str | None:
        """The reason to stop after the last point, or `None`.

        Raises:
            ValueError: The signal was not measured.
        """
        best, best_epoch, waited = 0.0, 0, 0
        for epoch, value in recorded(curve, Signal.NEURAL_PERSISTENCE, criterion="neural-persistence"):
            if epoch <= self.burn_in:
                continue
            if value > best + self.min_delta:
                best, best_epoch, waited = value, epoch, 0
            else:
                waited += 1
        if waited < self.patience:
            return None
        least = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"the neural persistence of the weights has not exceeded {best:.4g} (epoch {best_epoch}){least} for "
            f"{waited} epochs; patience is {self.patience}"
        )
