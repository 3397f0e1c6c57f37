"""Settings that say by which difficulty a curriculum orders or weights the images, shared by curricula."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from plugins.protocols import PriorDifficulty
from plugins.registry import parse_topology

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRIOR_COST = (
    "a difficulty measured before training costs difficulty_runs trainings of difficulty_epochs epochs, once per data "
    "set; every training that uses it counts them in the MACs of its first epoch"
)
COST_OF_CHOICE = (
    "with `difficulty: loss`, one forward pass of the training set per epoch in which the difficulty matters; "
    f"{PRIOR_COST}"
)


@dataclass(frozen=True, kw_only=True)
class MeasuredBefore:
    """Settings of the trainings that measure a difficulty. Subclasses have a setting `difficulty`."""

    difficulty_topology: str | None = None
    """Topology of the models that measure the difficulty, as `space:text`; null for that of the training itself. With a
    topology, all trainings of a study share one measurement."""
    difficulty_epochs: Annotated[int, Field(ge=1)] = 5
    """Number of epochs of each training that measures the difficulty."""
    difficulty_runs: Annotated[int, Field(ge=1)] = 3
    """Number of these trainings, each with another seed; the difficulty is their mean."""

    def __post_init__(self) -> None:
        if self.difficulty_topology is not None:
            try:
                parse_topology(self.difficulty_topology)
            except ValueError as error:
                raise ValueError(f"`difficulty_topology`: {error}") from None

    def measured(self, kind: Literal["el2n", "grand", "trained-loss"]) -> PriorDifficulty:
        """The difficulty of a kind that must be measured with these settings."""
        return PriorDifficulty(
            kind=kind, topology=self.difficulty_topology, epochs=self.difficulty_epochs, runs=self.difficulty_runs
        )

    def check_unused(self, *, because: str) -> None:
        """Raise ValueError if settings of a measurement are given although nothing is measured."""
        fields = MeasuredBefore.__dataclass_fields__
        given = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if given:
            raise ValueError(f"`{given[0]}` has no effect {because}. Remove it, or choose another difficulty.")


@dataclass(frozen=True, kw_only=True)
class ByDifficulty(MeasuredBefore):
    """Settings of a curriculum that orders or weights images by a difficulty of choice."""

    difficulty: Literal["loss", "el2n", "grand", "trained-loss"] = "loss"
    """`loss`: the loss under the model being trained, which is unknown in the first epoch. The others are measured
    before training: `el2n` (norm of the error of the predicted probabilities), `grand` (norm of the gradient of the
    loss) and `trained-loss` (the loss under trained models)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.difficulty == "loss":
            self.check_unused(because="with `difficulty: loss`")

    @property
    def needs_difficulty(self) -> bool:
        """Whether the current loss is the difficulty."""
        return self.difficulty == "loss"

    @property
    def prior_difficulty(self) -> PriorDifficulty | None:
        """The difficulty to measure before training, if it is not the current loss."""
        return None if self.difficulty == "loss" else self.measured(self.difficulty)


def fixed_permutation(size: int, seed: int) -> "Tensor":
    """A random permutation (size,), int64, the same for all passes of a training: `seed` is `OrderContext.seed`."""
    import torch

    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def shuffled(indices: "Tensor", generator: "torch.Generator") -> "Tensor":
    """The indices in random order."""
    import torch

    return indices[torch.randperm(len(indices), generator=generator)]
