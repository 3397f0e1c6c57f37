"""The interface of search spaces, and the plain data that they exchange."""

import random
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

from pydantic import ConfigDict, Field

from search_spaces.dimensions import Dimension, Point, Scalar
from search_spaces.numbers import NumericModel

MAX_IMAGE_SIZE = 1024
"""Largest height and width of a model's input, in pixels."""
MAX_CLASSES = 100_000
"""Largest number of classes."""


class ImageTask(NumericModel):
    """The properties of a model that the data determine: image size, channels and number of classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE, description="height and width, pixels")
    in_channels: int = Field(ge=1, le=16)
    num_classes: int = Field(ge=2, le=MAX_CLASSES)


class Costs(NamedTuple):
    """Closed-form costs of one forward pass of one image."""

    parameters: int
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention products, without norms and activations."""


class Topology(NumericModel):
    """An architecture as plain data. Subclasses add the fields of their space."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def text(self) -> str:
        """The topology in its space's text form."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """`space:text`, the same for equal topologies; `plugins.registry.parse_topology` is the inverse."""
        raise NotImplementedError


@runtime_checkable
class Growable(Protocol):
    """A topology that can be made deeper and wider with all else unchanged, as As-ViT's growth requires."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each stage; a network without stages counts as one stage."""
        ...

    @property
    def width(self) -> int:
        """The width that all other widths of the network are proportional to."""
        ...

    @property
    def width_unit(self) -> int:
        """`width` must be a multiple of this number, so that heads can share it evenly."""
        ...

    def with_size(self, *, depths: Sequence[int] | None = None, width: int | None = None) -> Self:
        """The same topology with other depths, another width, or both; `None` leaves a value unchanged.

        Raises:
            ValueError: The topology does not exist at that size; the message explains why.
        """
        ...


@runtime_checkable
class SearchSpace(Protocol):
    """A family of topologies. Its settings (such as a fixed width) are fields of the implementing model."""

    topology_type: ClassVar[type[Topology]]
    """Class of its topologies; its fields are the keys of `arch` in a table of published accuracies."""

    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions to sample; their names start with `topology.`."""
        ...

    def decode(self, point: Point) -> Topology:
        """The topology at a point of `dimensions`."""
        ...

    def encode(self, topology: Topology) -> Point:
        """The point of a topology; the inverse of `decode`."""
        ...

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read the text form. Raises ValueError with the rule and the value found."""
        ...

    def describe(self, topology: Topology) -> dict[str, Scalar]:
        """Flat readable parameters, the same keys for every topology (`topology.stage1.kernel`)."""
        ...

    def sample(self, rng: random.Random) -> Topology: ...

    def mutate(self, topology: Topology, rng: random.Random) -> Topology:
        """A topology that differs in exactly one dimension."""
        ...

    def crossover(self, first: Topology, second: Topology, rng: random.Random) -> Topology:
        """Each dimension from either parent."""
        ...

    def neighbours(self, topology: Topology) -> tuple[Topology, ...]:
        """Every topology that differs in exactly one dimension."""
        ...

    @classmethod
    def problem(cls, topology: Topology, task: ImageTask) -> str | None:
        """Why the topology cannot be built for the task, or `None` if it can."""
        ...

    @classmethod
    def costs(cls, topology: Topology, task: ImageTask) -> Costs:
        """Closed-form costs, equal to those of a model built for the task.

        A model built for larger images has the same MACs for images of this size. Options of the model's `forward` that
        change its cost are keyword arguments here, too.
        """
        ...
