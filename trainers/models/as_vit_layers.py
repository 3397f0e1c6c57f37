"""Layers of As-ViT, whose tokens are a grid with the width last, (B, H, W, D)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.costs import attention_window
from trainers.models.block_options import PLAIN, OptionalParts
from trainers.models.blocks import (
    Block,
    SelfAttention,
    attention_logits,
    layer_norm,
)
from trainers.models.dropout import DropoutSites
from trainers.models.stacking import ImageConvolution, Linear
from trainers.models.token_merging import TokenMerging


class PatchEmbedding(nn.Module):
    """Zero-padded convolution of overlapping patches, then a norm: (B, C, H, W) to (B, H / stride, W / stride, D).

    A `stride_factor` f multiplies stride and dilation of the convolution by f: the same weights are applied to every
    f-th pixel of wider patches, and each side of the grid has f times fewer tokens.
    """

    def __init__(self, in_channels: int, width: int, *, kernel: int, stride: int, normalization: bool) -> None:
        super().__init__()
        self.padding = _around(kernel - stride)
        self.proj = ImageConvolution(in_channels, width, kernel, stride)
        self.norm = layer_norm(width, normalization=normalization)

    def forward(self, images: Tensor, stride_factor: int = 1) -> Tensor:
        if stride_factor > 1:
            overlap = stride_factor * (self.proj.kernel_size[0] - 1) + 1 - stride_factor * self.proj.stride[0]
            # A stride that is a multiple of the dilation never leaves the grid of every f-th pixel.
            padded = F.pad(images, _around(overlap))[:, :, ::stride_factor, ::stride_factor]
        else:
            padded = F.pad(images, self.padding) if any(self.padding) else images
        tokens: Tensor = self.norm(self.proj(padded).permute(0, 2, 3, 1))
        return tokens


def _around(overlap: int) -> tuple[int, int, int, int]:
    """Padding for neighbouring patches that share `overlap` pixels; a negative padding crops the image."""
    return (overlap // 2, (overlap + 1) // 2) * 2


class PatchMerging(nn.Module):
    """Norm and projection of overlapping `kernel` x `kernel` patches of tokens: (B, H, W, D) to (B, H / 2, W / 2, out).

    The input of the projection has index `(column * kernel + row) * D + channel` within a patch. An odd side is padded
    with a row or column of zeros at its end.
    """

    def __init__(self, width: int, out_width: int, *, kernel: int, normalization: bool) -> None:
        super().__init__()
        self.kernel = kernel
        before, after = (kernel - 2) // 2, (kernel - 1) // 2
        self.padding = (0, 0, before, after, before, after)
        self.norm = layer_norm(kernel**2 * width, normalization=normalization)
        self.reduction = Linear(kernel**2 * width, out_width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        missing = (tokens.shape[1] % 2, tokens.shape[2] % 2)
        if any(missing):
            tokens = F.pad(tokens, (0, 0, 0, missing[1], 0, missing[0]))
        rows, columns = tokens.shape[1] - 1, tokens.shape[2] - 1
        padded = F.pad(tokens, self.padding) if any(self.padding) else tokens
        # Concatenated strided slices are a third faster than torch.nn.Unfold on small grids, backward pass included.
        tall = torch.cat([padded[:, start : start + rows : 2] for start in range(self.kernel)], -1)
        patches = torch.cat([tall[:, :, start : start + columns : 2] for start in range(self.kernel)], -1)
        merged: Tensor = self.reduction(self.norm(patches))
        return merged


class WindowAttention(SelfAttention):
    """Multi-head attention within `split` x `split` windows of the grid, without a position bias.

    A head has `width // heads` channels, so that the heads together may have fewer than `width`. In a window of one
    token, the output of softmax attention is the token's value, so that queries and keys do not matter. If `split` does
    not divide a side of the grid, `search_spaces.costs.attention_window` defines the windows.
    """

    def __init__(self, width: int, *, heads: int, split: int, parts: OptionalParts = PLAIN) -> None:
        super().__init__(width, heads=heads, head_width=width // heads, parts=parts)
        self.split = split

    def forward(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:
        assert merging is None, "windows keep all tokens"
        height, across = tokens.shape[1:3]
        inner = self.heads * self.head_width
        rows, columns = self._window(height, across)
        if rows == columns == 1 and not self.is_sigmoid:
            mixed = self.qkv(tokens)[..., 2 * inner :]
        elif (rows, columns) == (height, across):
            query, key, value = self._heads(tokens.flatten(1, 2))
            mixed = self._attend(query, key, value).transpose(1, 2).reshape(-1, height, across, inner)
        else:
            mixed = self._attend_in_windows(self._project(tokens), rows, columns)
        return self._output(mixed)

    def attention_weights(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:  # noqa: ARG002
        """Attention weights (B, windows, heads, N, N) for the module's input (B, H, W, D).

        Rows sum to 1. Tokens that pad a window have weight 0; their own rows are uniform over the other tokens. The
        weights of sigmoid attention are divided by the sum of their row.
        """
        batch, height, across, _ = tokens.shape
        rows, columns = self._window(height, across)
        if rows == columns == 1:
            return tokens.new_ones(batch, height * across, self.heads, 1, 1)
        (query, key, _), is_real = self._windows(self._project(tokens), rows, columns)
        return self._weights(query, key, is_real).view(batch, -1, self.heads, *[rows * columns] * 2)

    def attention_received(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:
        """Share (B, H, W) of each token in what all tokens (B, H, W, D) read, averaged over heads; sums to 1."""
        batch, height, across, _ = tokens.shape
        rows, columns = self._window(height, across)
        down, right = -(-height // rows), -(-across // columns)
        weights = self.attention_weights(tokens, merging).float().mean(2)
        is_real = F.pad(weights.new_ones(height, across), (0, right * columns - across, 0, down * rows - height))
        queries = is_real.view(down, rows, right, columns).transpose(1, 2).reshape(-1, rows * columns)
        received = torch.einsum("wq,bwqk->bwk", queries, weights).view(batch, down, right, rows, columns)
        grid = received.transpose(2, 3).reshape(batch, down * rows, right * columns)
        return grid[:, :height, :across] / (height * across)

    def attention_logits(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:  # noqa: ARG002
        """The scaled scores before the softmax of `attention_weights`, or before the shift and sigmoid.

        They are -inf for tokens that only fill a window up, and 0 for windows of one token with softmax attention.
        """
        batch, height, across, _ = tokens.shape
        rows, columns = self._window(height, across)
        if rows == columns == 1 and not self.is_sigmoid:
            return tokens.new_zeros(batch, height * across, self.heads, 1, 1)
        (query, key, _), is_real = self._windows(self._project(tokens), rows, columns)
        return attention_logits(query, key, is_real).view(batch, -1, self.heads, *[rows * columns] * 2)

    def _window(self, height: int, across: int) -> tuple[int, int]:
        """Height and width of a window, in tokens."""
        return attention_window(height, self.split), attention_window(across, self.split)

    def _attend_in_windows(self, qkv: Tensor, rows: int, columns: int) -> Tensor:
        """Attention within windows of `rows` x `columns` tokens, (B, H, W, 3 * inner) to (B, H, W, inner)."""
        batch, height, across, _ = qkv.shape
        (query, key, value), is_real = self._windows(qkv, rows, columns)
        mixed = self._attend(query, key, value, is_real)
        down, right = -(-height // rows), -(-across // columns)
        mixed = mixed.reshape(batch, down, right, self.heads, rows, columns, self.head_width)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, down * rows, right * columns, -1)
        return mixed[:, :height, :across]

    def _windows(self, qkv: Tensor, rows: int, columns: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Queries, keys and values of each window, and a mask of the keys that are not padding (`None`: all).

        The first three have shape (B * windows, heads, N, d); the mask broadcasts to (B * windows, heads, N, N).
        """
        batch, height, across, _ = qkv.shape
        down, right = -(-height // rows), -(-across // columns)
        is_real = None
        if (down * rows, right * columns) != (height, across):
            spare = (0, right * columns - across, 0, down * rows - height)
            qkv = F.pad(qkv, (0, 0, *spare))
            is_real = F.pad(torch.ones(height, across, dtype=torch.bool, device=qkv.device), spare)
            is_real = is_real.view(down, rows, right, columns).transpose(1, 2).reshape(-1, 1, 1, rows * columns)
            is_real = is_real.repeat(batch, 1, 1, 1)
        grid = qkv.view(batch, down, rows, right, columns, 3, self.heads, self.head_width)
        windows = grid.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.heads, rows * columns, self.head_width)
        return windows.unbind(0), is_real


class StageBlocks(nn.Module):
    """One stage of As-ViT: patch embedding or merging, then its blocks."""

    def __init__(self, embed: PatchEmbedding | PatchMerging, blocks: list[Block]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        inputs: Tensor,
        keep: Sequence[Tensor | None],
        dropout: DropoutSites,
        merging: TokenMerging | None = None,
        **embedding: int,
    ) -> Tensor:
        """Images (B, C, H, W) or the previous stage's tokens to this stage's tokens.

        Args:
            inputs: The input of the patch embedding or merging.
            keep: The `keep` of each block.
            dropout: Dropout after the patch embedding and in the blocks.
            merging: Merges tokens in the blocks, which are then a sequence (B, N, D); `None` keeps them all.
            embedding: Options of the patch embedding.
        """
        tokens = dropout.embed(self.embed(inputs, **embedding))
        if merging is not None:
            tokens = tokens.flatten(1, 2)
            keep = [None if factors is None else factors.squeeze(-1) for factors in keep]
        for block, factors, dropped in zip(self.blocks, keep, dropout.blocks, strict=True):
            tokens = block(tokens, factors, dropped, merging)
        return tokens
