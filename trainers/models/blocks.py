"""Layers that several vision transformers share.

Tokens are a grid with the width last, (B, H, W, D), where attention has windows, and else a sequence, (B, N, D).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.costs import attention_window
from trainers.models.dropout import BlockDropout, DropoutSite

FEW_TOKENS = 64
"""Up to so many tokens, attention on a CPU is computed as two matrix products."""


class Linear(nn.Linear):
    """A linear layer whose weights the model draws, from a generator of its own, after it was put together."""

    def reset_parameters(self) -> None:
        """Leaves the memory as it is."""


class Convolution(nn.Conv2d):
    """A convolution whose weights the model draws, like `Linear`."""

    def reset_parameters(self) -> None:
        """Leaves the memory as it is."""


class PatchEmbedding(nn.Module):
    """Overlapping patches by a zero-padded convolution, then a norm: (B, C, H, W) to (B, H / stride, W / stride, D).

    With `stride_factor` f, stride and dilation of the convolution are f times as large: the same weights see every
    f-th pixel of wider patches, and each side of the grid has f times fewer tokens.
    """

    def __init__(self, in_channels: int, width: int, *, kernel: int, stride: int, normalization: bool) -> None:
        super().__init__()
        self.padding = _around(kernel - stride)
        self.proj = Convolution(in_channels, width, kernel, stride)
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
    """Padding of an image whose neighbouring patches share `overlap` pixels; below zero, pixels are cut off."""
    return (overlap // 2, (overlap + 1) // 2) * 2


class PatchMerging(nn.Module):
    """Half the grid, from overlapping patches of `kernel` x `kernel` tokens: (B, H, W, D) to (B, H / 2, W / 2, out).

    A patch is laid out column by column, row by row, channel by channel: `(column * kernel + row) * D + channel`.
    An odd side is filled up with one row or column of zeros at its end.
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
        # Strided slices put side by side: on small grids, with the backward pass, a third faster than torch.nn.Unfold.
        tall = torch.cat([padded[:, start : start + rows : 2] for start in range(self.kernel)], -1)
        patches = torch.cat([tall[:, :, start : start + columns : 2] for start in range(self.kernel)], -1)
        merged: Tensor = self.reduction(self.norm(patches))
        return merged


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens of an image, (B, N, D) to the same shape.

    All heads together may have fewer or more channels than `width`.
    """

    def __init__(self, width: int, *, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        self.qkv = Linear(width, 3 * heads * head_width)
        self.proj = Linear(heads * head_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self._heads(tokens)
        out: Tensor = self.proj(attend(query, key, value).transpose(-3, -2).flatten(-2))
        return out

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """How much each token attends to each, (B, heads, N, N), of the module's input; rows add up to 1."""
        query, key, _ = self._heads(tokens)
        return attention_weights(query, key)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, D), each (B, heads, N, d)."""
        parts = self.qkv(tokens).view(*tokens.shape[:2], 3, self.heads, self.head_width)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class WindowAttention(SelfAttention):
    """Multi-head attention within `split` x `split` windows of the grid, without a position bias.

    A head has `width // heads` channels, so that all heads together may have fewer than `width`. A window of one token
    attends to itself alone: its output is its value, whatever query and key are. Where `split` does not divide a side
    of the grid, the windows are those of `search_spaces.costs.attention_window`.
    """

    def __init__(self, width: int, *, heads: int, split: int) -> None:
        super().__init__(width, heads=heads, head_width=width // heads)
        self.split = split

    def forward(self, tokens: Tensor) -> Tensor:
        height, across = tokens.shape[1:3]
        inner = self.heads * self.head_width
        rows, columns = self._window(height, across)
        if rows == columns == 1:
            mixed = self.qkv(tokens)[..., 2 * inner :]
        elif (rows, columns) == (height, across):
            query, key, value = self._heads(tokens.flatten(1, 2))
            mixed = attend(query, key, value).transpose(1, 2).reshape(-1, height, across, inner)
        else:
            mixed = self._attend_in_windows(self.qkv(tokens), rows, columns)
        out: Tensor = self.proj(mixed)
        return out

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """How much each token of a window attends to each, of the module's input.

        Shape (B, windows, heads, N, N). Rows add up to 1; tokens that only fill a window up are attended to by none,
        and attend evenly to the others.
        """
        batch, height, across, _ = tokens.shape
        rows, columns = self._window(height, across)
        if rows == columns == 1:
            return tokens.new_ones(batch, height * across, self.heads, 1, 1)
        (query, key, _), is_real = self._windows(self.qkv(tokens), rows, columns)
        return attention_weights(query, key, is_real).view(batch, -1, self.heads, *[rows * columns] * 2)

    def _window(self, height: int, across: int) -> tuple[int, int]:
        """Tokens along the sides of a window."""
        return attention_window(height, self.split), attention_window(across, self.split)

    def _attend_in_windows(self, qkv: Tensor, rows: int, columns: int) -> Tensor:
        """Attention within windows of `rows` x `columns` tokens, (B, H, W, 3 * inner) to (B, H, W, inner)."""
        batch, height, across, _ = qkv.shape
        (query, key, value), is_real = self._windows(qkv, rows, columns)
        mixed = attend(query, key, value, is_real)
        down, right = -(-height // rows), -(-across // columns)
        mixed = mixed.reshape(batch, down, right, self.heads, rows, columns, self.head_width)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, down * rows, right * columns, -1)
        return mixed[:, :height, :across]

    def _windows(self, qkv: Tensor, rows: int, columns: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Queries, keys and values of each window, and which keys are tokens of the grid (`None`: all).

        The three have shape (B * windows, heads, N, d); the fourth broadcasts to (B * windows, heads, N, N).
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


def attend(query: Tensor, key: Tensor, value: Tensor, is_real: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, shapes (..., N, d).

    On a CPU and for few tokens, two matrix products take as little as 0.6 of the time of torch's fused kernel.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        is_real: Which keys take part, broadcast to (..., N, N); `None` for all.
    """
    if query.device.type == "cpu" and query.shape[-2] <= FEW_TOKENS:
        mixed: Tensor = attention_weights(query, key, is_real) @ value
        return mixed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=is_real)


def attention_weights(query: Tensor, key: Tensor, is_real: Tensor | None = None) -> Tensor:
    """The weights that `attend` mixes the values with, shape (..., N, N)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_real is not None:
        scores = scores.masked_fill(~is_real, -torch.inf)
    weights: Tensor = scores.softmax(-1)
    return weights


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, width)

    def forward(self, tokens: Tensor, dropout: DropoutSite | None = None) -> Tensor:
        """Tokens (..., D) to the same shape; `dropout` applies to the hidden activations."""
        hidden = self.act(self.fc1(tokens))
        out: Tensor = self.fc2(hidden if dropout is None else dropout(hidden))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(
        self, width: int, attention: SelfAttention, *, hidden: int, normalization: bool, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, normalization=normalization, eps=eps)
        self.attn: SelfAttention = attention
        self.norm2 = layer_norm(width, normalization=normalization, eps=eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens: Tensor, keep: Tensor | None = None, dropout: BlockDropout | None = None) -> Tensor:
        """Tokens, (B, H, W, D) or (B, N, D), to the same shape.

        Args:
            tokens: What its attention takes.
            keep: Factors of the two branches, shape (2, B, 1, 1, 1) or (2, B, 1, 1); 0 drops a branch of an image.
                `None` keeps all.
            dropout: Where the block drops values; `None` drops none.
        """
        branch = self.attn(self.norm1(tokens))
        if dropout is not None:
            branch = dropout.attention(branch)
        tokens = tokens + branch if keep is None else torch.addcmul(tokens, branch, keep[0])
        if dropout is None:
            branch = self.mlp(self.norm2(tokens))
        else:
            branch = dropout.output(self.mlp(self.norm2(tokens), dropout.hidden))
        return tokens + branch if keep is None else torch.addcmul(tokens, branch, keep[1])


def keep_factors(
    model: nn.Module,
    images: Tensor,
    *,
    num_blocks: int,
    rate: float,
    num_dims: int,
    generator: torch.Generator | Tensor | None,
) -> Sequence[Tensor | None]:
    """Stochastic depth: per block, the `keep` of its two branches, 0 with the block's rate, else 1 / (1 - rate).

    Args:
        model: Drops nothing unless it is in training mode.
        images: The batch, (B, C, H, W).
        num_blocks: Blocks of the whole model.
        rate: Of the last block; it rises evenly to it from 0 in the first.
        num_dims: Dimensions of the tokens, so that factors have the shape (2, B, 1, ...).
        generator: Source of the masks, on the CPU; or what `draw_keep_factors` gave, on the device.

    Raises:
        ValueError: Random numbers are needed, but there is no generator.
    """
    if not model.training:
        return [None] * num_blocks
    if isinstance(generator, Tensor):  # of several models at once, each with a generator and a rate of its own
        return generator[(..., *[None] * (num_dims - 1))].unbind(0)
    if rate == 0.0:
        return [None] * num_blocks
    if generator is None:
        raise ValueError(
            f"training with drop_path={rate} draws random numbers and must be given a CPU `generator`, "
            "but got None. Pass one, or call `eval()` first."
        )
    factors = draw_keep_factors(num_blocks, len(images), rate=rate, generator=generator)
    factors = factors.to(images.device, images.dtype, non_blocking=True)
    return factors[(..., *[None] * (num_dims - 1))].unbind(0)


def draw_keep_factors(num_blocks: int, num_images: int, *, rate: float, generator: torch.Generator) -> Tensor:
    """Factors of both branches of each block for each image, (num_blocks, 2, B), on the CPU; see `keep_factors`."""
    keep_rate = 1 - torch.linspace(0, rate, num_blocks).view(-1, 1, 1)
    draws = torch.rand(num_blocks, 2, num_images, generator=generator)
    return (draws < keep_rate) / keep_rate


def layer_norm(width: int, *, normalization: bool, eps: float = 1e-5) -> nn.Module:
    """A layer norm, or the identity where a score asks for a model without normalisation."""
    return nn.LayerNorm(width, eps=eps) if normalization else nn.Identity()
