"""Merging of similar tokens inside a block (ToMe).

Legend: `B` images, `N` tokens, `D` width, `d` channels of a head, `r` tokens that are merged into others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.costs import num_merged


class TokenMerging:
    """The tokens of one forward pass, which become fewer with each block.

    Attention weighs a key by the number of tokens that it stands for, and the mean over tokens counts it as often.

    Source: Bolya et al. 2023, ToMe, arXiv:2210.09461 (equations 1 and 2, and the authors' code).

    Args:
        num_per_block: Number of tokens that each block merges; fewer if too few are left (`num_merged`).
        num_kept: Number of tokens at the beginning of the sequence that are never merged: the class token.
    """

    def __init__(self, num_per_block: int, *, num_kept: int) -> None:
        self.num_per_block = num_per_block
        self.num_kept = num_kept
        self.sizes: Tensor | None = None
        """Number of tokens that each token stands for, (B, N); `None` before tokens are merged."""
        self.keys: Tensor | None = None
        """Keys of the last attention, averaged over heads, (B, N, d)."""

    def merge(self, tokens: Tensor) -> Tensor:
        """Merge the tokens (B, N, D) with the most similar keys; returns (B, N - r, D)."""
        count = num_merged(tokens.shape[1], self.num_per_block, num_kept=self.num_kept)
        if not count:
            return tokens
        assert self.keys is not None
        sizes = torch.ones_like(tokens[..., 0]) if self.sizes is None else self.sizes
        merged, self.sizes = merge_similar(tokens, sizes, self.keys, count, num_kept=self.num_kept)
        return merged

    def mean(self, tokens: Tensor) -> Tensor:
        """Mean over the tokens (B, N, D) that may be merged, each as often as it stands for tokens: (B, D)."""
        rest = tokens[:, self.num_kept :]
        if self.sizes is None:
            return rest.mean(1)
        sizes = self.sizes[:, self.num_kept :].unsqueeze(-1)
        return (rest * sizes).sum(1) / sizes.sum(1)


def merge_similar(tokens: Tensor, sizes: Tensor, keys: Tensor, count: int, *, num_kept: int) -> tuple[Tensor, Tensor]:
    """Merge tokens at even places into those at odd places, by bipartite soft matching.

    Each token at an even place is matched with the token at an odd place whose key has the most similar direction. The
    `count` best matches are merged: the mean of the tokens, weighted by their sizes. The others keep their order, with
    those from even places first. No gradient flows through the choice.

    Args:
        tokens: Shape (B, N, D).
        sizes: Number of tokens that each token stands for, shape (B, N).
        keys: Keys, shape (B, N, d).
        count: Number of merged tokens `r`, at most half of the tokens that may be merged.
        num_kept: 1 if the first token is never merged, else 0.

    Returns:
        Tokens (B, N - r, D), and their sizes (B, N - r).
    """
    units = F.normalize(keys.detach(), dim=-1)
    similarity = units[:, ::2] @ units[:, 1::2].transpose(-2, -1)
    if num_kept:
        similarity = torch.cat([torch.full_like(similarity[:, :1], -torch.inf), similarity[:, 1:]], 1)
    best, partner = similarity.max(-1)
    order = best.argsort(-1, descending=True)
    gone, left = order[:, :count], order[:, count:].sort(-1).values
    partner = partner.gather(1, gone)
    weighted = torch.cat([tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)], -1)
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    width = weighted.shape[-1]
    moved = even.gather(1, gone.unsqueeze(-1).expand(-1, -1, width))
    stays = even.gather(1, left.unsqueeze(-1).expand(-1, -1, width))
    sums = torch.cat([stays, odd.scatter_add(1, partner.unsqueeze(-1).expand(-1, -1, width), moved)], 1)
    merged_sizes = sums[..., -1]
    return sums[..., :-1] / merged_sizes.unsqueeze(-1), merged_sizes
