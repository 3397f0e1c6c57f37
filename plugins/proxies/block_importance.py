"""Block importance: how much a fresh network's answers depend on each of its blocks."""

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class BlockImportance(PassProxy):
    """Mean over the blocks of the relative change of the features if the block is skipped.

    A skipped block passes its input on. The change of an image is `||f - f'|| / ||f||`, with `f` the features before
    the classifier with all blocks and `f'` those without one. If skipping blocks changes nothing, they are not needed,
    at least at the start.

    Source: the importance of blocks of trained networks by resetting them: Zhang et al. 2019, arXiv:1902.01996. At
    initialisation a reset changes nothing, so blocks are skipped instead.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Zhang et al. 2019 (Are all layers created equal?), arXiv:1902.01996; at initialisation, blocks are "
        "skipped instead of reset",
        cost="per repeat, one shared forward pass, and one forward pass of `images` images for each block",
        needs=("images", "a topology that merges no tokens"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    images: Annotated[int, Field(ge=1)] = 2
    """Number of images of the batch; all images if the batch is smaller."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import num_blocks, require_all_tokens

        num_blocks(recorded)
        require_all_tokens(recorded, "block-importance")
        images = recorded.candidate.images[: self.images]
        blocks: list[Any] = [record.block for record in recorded.parts[0].blocks]
        with torch.no_grad():
            whole = recorded.model.forward_features(images)  # type: ignore[operator]
            changes = [relative_change(whole, _without(recorded.model, block, images)) for block in blocks]
        return statistics.fmean(changes)


def relative_change(features: "Tensor", other: "Tensor") -> float:
    """Mean over the images of `||f - f'|| / ||f||`, from features (B, D)."""
    rows = features.double()
    return float(((rows - other).norm(dim=-1) / rows.norm(dim=-1)).mean())


def _without(model: "nn.Module", block: "nn.Module", images: "Tensor") -> "Tensor":
    """Features of the model with the input of a block as its output."""
    handle = block.register_forward_hook(lambda _, inputs, output: inputs[0])  # noqa: ARG005 - the hook's signature
    try:
        features: Tensor = model.forward_features(images)  # type: ignore[operator]
        return features
    finally:
        handle.remove()
