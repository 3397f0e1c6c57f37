"""The features of a network's blocks, read from a recorded pass over the whole batch."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from plugins.proxies.passes import BlockRecord, RecordedPass
from plugins.proxies.repeats import on_all_cores

Result = TypeVar("Result")


def map_blocks(
    recorded: RecordedPass, read: Callable[[BlockRecord], Tensor], work: Callable[[Tensor], Result]
) -> list[Result]:
    """Apply `work` to the features of every block, (B, N, D) without a graph, in forward order and on all cores.

    Args:
        recorded: The pass.
        read: Selects the features from the record of a block in a part of the batch, shape (B / P, ..., D).
        work: Function of the features. It must not modify its argument.

    Raises:
        ValueError: The model has no blocks.
    """

    def of_block(index: int) -> Result:
        pieces = [read(part.blocks[index]).detach().flatten(1, -2) for part in recorded.parts]
        return work(torch.cat(pieces))

    count = num_blocks(recorded)
    return list(on_all_cores(of_block, range(count), device=recorded.candidate.images.device.type))


def num_blocks(recorded: RecordedPass) -> int:
    """Number of blocks of the model.

    Raises:
        ValueError: The model has no blocks.
    """
    count = len(recorded.parts[0].blocks)
    if not count:
        raise ValueError(
            f"the score reads the blocks of a transformer: {type(recorded.model).__name__} must call modules with "
            "`norm1`, `attn`, `norm2` and `mlp` (`plugins.protocols.TransformerBlock`), but it called none. Add such "
            "modules, or remove the proxy from the study."
        )
    return count


def require_all_tokens(recorded: RecordedPass, proxy: str) -> None:
    """Refuse a network that merges tokens, for a proxy that compares the tokens before and after a branch.

    Raises:
        ValueError: A block has fewer tokens after its attention than before.
    """
    for block in recorded.parts[0].blocks:
        before, after = block.stream[:2]
        if before.shape != after.shape:
            raise ValueError(
                f"{proxy} needs the same tokens before and after attention, but {recorded.candidate.topology.id} "
                "merges tokens. Set the option merged_tokens to 0, or remove the proxy from the study."
            )


def is_finite(recorded: RecordedPass) -> bool:
    """Whether the logits are finite. Scores that count signs do not notice non-finite values."""
    return all(bool(torch.isfinite(part.logits).all()) for part in recorded.parts)
