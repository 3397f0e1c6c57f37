"""Attention entropy: how evenly the heads of an untrained network distribute their attention."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plugins.proxies.passes import RecordedPass

ENTRIES_AT_ONCE = 2**21
"""Maximum number of attention weights in memory at a time, unless one image has more."""


@runtime_checkable
class Attention(Protocol):
    """An attention module that exposes its attention weights."""

    heads: int

    def attention_weights(self, attended: "Tensor") -> "Tensor":
        """The attention weights between the tokens of each window, (..., heads, N, N), for an input of the module."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttentionEntropy(PassProxy):
    """Mean entropy of the attention rows in units of `log N`, averaged over blocks; 1 means uniform attention.

    Lower is better: the most confident heads matter most in trained language models (Voita et al.), and confidence was
    then used to score untrained models. They define confidence as the largest weight of a row; the entropy takes all
    weights of the row into account. Windows of one token leave no choice, so their blocks are skipped.

    Source: confidence of heads, Voita et al. 2019, arXiv:1905.09418; as a training-free score, Serianni & Kalita 2023,
    arXiv:2306.00288.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Serianni & Kalita 2023, arXiv:2306.00288; entropy of the attention rows instead of their maximum",
        cost="per repeat, one shared forward pass of the batch; the attention weights of `images` images again",
        needs=("images", "a topology that merges no tokens"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    images: Annotated[int, Field(ge=1)] = 4
    """Number of images of the batch whose attention is computed; all images if the batch is smaller."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import is_finite, num_blocks, require_all_tokens
        from plugins.proxies.repeats import on_all_cores

        require_all_tokens(recorded, "attention-entropy")
        if not is_finite(recorded):
            return float("nan")

        def entropy(index: int) -> float | None:
            records = [part.blocks[index] for part in recorded.parts]
            attended = torch.cat([record.attended.detach() for record in records])[: self.images]
            return mean_entropy(records[0].block.attn, attended)

        indices = range(num_blocks(recorded))
        found = on_all_cores(entropy, indices, device=recorded.candidate.images.device.type)
        entropies = [value for value in found if value is not None]
        return statistics.fmean(entropies) if entropies else float("nan")


def mean_entropy(module: "nn.Module", attended: "Tensor") -> float | None:
    """Mean entropy of an attention module's rows in units of `log N`; `None` if windows have one token.

    Args:
        module: The attention module, with `attention_weights`.
        attended: Input of the module, (B, ..., D).

    Raises:
        ValueError: The module does not expose its attention weights.
    """
    import torch

    if not isinstance(module, Attention):
        raise ValueError(
            f"attention-entropy reads attention weights: {type(module).__name__} must have `heads` and "
            "`attention_weights(attended)`, but it lacks them. Add them, or remove the proxy from the study."
        )
    num_tokens = attended[0, ..., 0].numel()
    total, num_rows, num_keys = 0.0, 0, 0
    with torch.no_grad():
        for images in torch.split(attended, max(1, ENTRIES_AT_ONCE // (module.heads * num_tokens**2))):
            weights = module.attention_weights(images)
            num_keys = weights.shape[-1]
            if num_keys == 1:
                return None
            num_rows += weights[..., 0].numel()
            logarithms = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_()
            total -= float(logarithms.mul_(weights).sum(dtype=torch.float64))
    return total / num_rows / math.log(num_keys)
