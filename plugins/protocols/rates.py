"""The interface of rules for the learning rates of a network's parts, and the description of a network for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard

Role = Literal["embedding", "norm", "query-key", "value-output", "mlp", "between", "head"]
"""The place of a parameter: patch embedding, positions and class token; norms; the weights and biases of queries and
keys, of values and the attention's output, of the MLPs; layers between stages; classifier."""


class NetworkPart(NamedTuple):
    """A parameter of a network, or one of the three equal parts of a parameter that fuses queries, keys and values."""

    name: str
    """Name of the parameter, followed by `[query]`, `[key]` or `[value]` if it is a part of one."""
    start: int
    stop: int
    """Its place in the flat row of parameters."""
    role: Role
    level: int
    """0 for the embedding, `i` for block `i` and the layers that lead to it, `num_blocks + 1` for the final norm and
    the head."""
    fan_in: int
    """Number of inputs of each output of its layer; 1 for norms, positions and the class token."""
    fan_out: int
    """Number of outputs of its layer; 1 for norms, positions and the class token."""
    is_matrix: bool
    """Whether it is a weight of a linear layer or convolution."""
    head_width: int | None = None
    """Channels of one attention head, for queries, keys and values."""

    @property
    def is_query(self) -> bool:
        """Whether it computes queries."""
        return self.name.endswith("[query]")


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """A description of a network in training."""

    parts: tuple[NetworkPart, ...]
    """All parameters, in the order of the row."""
    num_blocks: int
    initial_exponent: float | None
    """Exponent of the fan-in in the standard deviation of the initial weights of linear layers: 0 if it is the same in
    all layers, -0.5 if it is proportional to 1 / sqrt(fan-in); `None` if unknown."""
    width: int | None
    """Width of the topology (`search_spaces.base.Growable`); `None` if the topology has none."""
    at_width: Callable[[int], "NetworkDescription"]
    """The same network with another width. Raises ValueError if there is none."""


class PartFactors(NamedTuple):
    """What a rule decides for one part of a network."""

    rate: float = 1.0
    """Factor of the learning rate."""
    initial: float = 1.0
    """Factor of the initial weights."""


class RateRule(Protocol):
    """A rule for the learning rates, and optionally the scale of the initial weights, of the parts of a network."""

    card: ClassVar[PluginCard]

    def factors(self, network: NetworkDescription) -> Sequence[PartFactors]:
        """The factors of each part, in the order of `network.parts`; rates are above 0.

        Raises:
            ValueError: The rule does not suit the network; the message explains why.
        """
        ...


@runtime_checkable
class ExcludesOptimizers(Protocol):
    """An optional part of a rule whose factors are wrong for some optimizers."""

    excluded_optimizers: ClassVar[frozenset[str]]
    """Names of these optimizers. Recipes that combine them with the rule are rejected."""
