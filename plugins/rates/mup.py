"""muP: learning rates and initial weights for which the best learning rate does not depend on the width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from plugins.protocols import NetworkDescription, NetworkPart, PartFactors, PluginCard


@dataclass(frozen=True, kw_only=True)
class Mup:
    """Maximal update parametrization, relative to the network of the same topology with the width `base_width`.

    Let `m` be the ratio of a layer's fan-in to that of the base network. Matrices have the rate `1 / m`. The standard
    deviation of their initial weights is that of the base network times `1 / sqrt(m)`, or times `1 / m` in the last
    layer, whose number of outputs does not grow. This equals logits that are divided by `m`. Rates and initial weights
    of queries are multiplied by `sqrt(base d / d)` for `d` channels per head, which equals an attention scale of
    `1 / d`. The model itself does not change, and with the base width, nothing does.

    Source: Yang et al. 2022, arXiv:2203.03466, table 8 with lemma J.1.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Yang et al. 2022, arXiv:2203.03466, for Adam. Factors in the model are expressed by rates and initial "
            "weights, which is equivalent except for weight decay: layers with a lower rate decay more slowly. The "
            "depth is not compensated"
        ),
        cost="two passes over the weights per step",
        needs=(
            "a topology with a width, such as those that `grow` finds",
            "an optimizer whose steps depend neither on the size of the gradient nor on that of the weights: not sgd, "
            "lamb or tvlars",
        ),
    )
    excluded_optimizers: ClassVar[frozenset[str]] = frozenset({"sgd", "lamb", "tvlars"})
    base_width: Annotated[int, Field(ge=1)]
    """Width at which the learning rate was tuned: the last number of an as-vit topology, `hidden_dim` of autoformer,
    `base_dim` of pit."""

    def factors(self, network: NetworkDescription) -> Sequence[PartFactors]:
        """Factors from the ratios of all fan-ins to those of the base network.

        Raises:
            ValueError: The model or the topology is unsuitable.
        """
        if network.width is None:
            raise ValueError(
                "rates mup: the topology must have a width (`search_spaces.base.Growable`), but it has none. Remove "
                "mup."
            )
        if network.initial_exponent is None:
            raise ValueError(
                "rates mup: the model must state how its initial weights depend on the width (`initial_exponent`), but "
                "it does not. Remove mup."
            )
        base = network.at_width(self.base_width)
        exponent = network.initial_exponent
        return [_factors(part, below, exponent) for part, below in zip(network.parts, base.parts, strict=True)]


def _factors(part: NetworkPart, base: NetworkPart, exponent: float) -> PartFactors:
    """The factors of a part, from the same part of the base network."""
    ratio = part.fan_in / base.fan_in
    if part.is_matrix:
        rate = 1 / ratio
        is_output = part.fan_out == base.fan_out  # as for the classes
        initial = ratio ** ((-1.0 if is_output else -0.5) - exponent)
    else:
        rate, initial = 1.0, ratio**-exponent
    if part.is_query and part.head_width is not None and base.head_width is not None:
        scale = (base.head_width / part.head_width) ** 0.5
        rate, initial = rate * scale, initial * scale
    return PartFactors(rate, initial)
