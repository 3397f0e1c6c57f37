"""Layers that several vision transformers share.

Tokens are a sequence, (B, N, D), or, if attention has windows, a grid, (B, H, W, D).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.dropout import BlockDropout, DropoutSite

FEW_TOKENS = 64
"""Largest number of tokens for which attention on a CPU is computed as two matrix products."""
_FUSED: ContextVar[bool] = ContextVar("fused", default=True)


class Linear(nn.Linear):
    """A linear layer without initial weights: the model draws all weights from one generator once it is complete."""

    def reset_parameters(self) -> None:
        """Do nothing; the model draws the weights."""


class Convolution(nn.Conv2d):
    """A convolution without initial weights, like `Linear`."""

    def reset_parameters(self) -> None:
        """Do nothing; the model draws the weights."""


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens of an image, (B, N, D) to the same shape.

    The heads together may have fewer or more channels than `width`.
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
        """Attention weights (B, heads, N, N) for the module's input (B, N, D); rows sum to 1."""
        query, key, _ = self._heads(tokens)
        return attention_weights(query, key)

    def attention_logits(self, tokens: Tensor) -> Tensor:
        """The scaled scores before the softmax of `attention_weights`."""
        query, key, _ = self._heads(tokens)
        return attention_logits(query, key)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, D), each (B, heads, N, d)."""
        parts = self.qkv(tokens).view(*tokens.shape[:2], 3, self.heads, self.head_width)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Inside, `attend` always computes two matrix products, which `torch.func.vmap` can batch.

    The backward pass of torch's fused attention fails on a GPU under `vmap`: in one kernel, autocast changes the dtype
    of the softmax, in another, batched tensors are not aligned (torch 2.11).
    """
    token = _FUSED.set(False)
    try:
        yield
    finally:
        _FUSED.reset(token)


def attend(query: Tensor, key: Tensor, value: Tensor, is_real: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, shapes (..., N, d).

    On a CPU and with few tokens, two matrix products take as little as 0.6 of the time of torch's fused kernel.

    Args:
        query: Queries of each head.
        key: Keys of each head.
        value: Values of each head.
        is_real: True for the keys to attend to, broadcast to (..., N, N); `None` for all.
    """
    if not _FUSED.get() or (query.device.type == "cpu" and query.shape[-2] <= FEW_TOKENS):
        mixed: Tensor = attention_weights(query, key, is_real) @ value
        return mixed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=is_real)


def attention_weights(query: Tensor, key: Tensor, is_real: Tensor | None = None) -> Tensor:
    """Weights of the values in `attend`, shape (..., N, N)."""
    weights: Tensor = attention_logits(query, key, is_real).softmax(-1)
    return weights


def attention_logits(query: Tensor, key: Tensor, is_real: Tensor | None = None) -> Tensor:
    """Scaled scores, shape (..., N, N), of queries and keys (..., N, d); -inf for keys that do not take part."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores if is_real is None else scores.masked_fill(~is_real, -torch.inf)


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
            tokens: A grid or a sequence, as the block's attention takes it.
            keep: Factors of the two branches, shape (2, B, 1, 1, 1) or (2, B, 1, 1); 0 drops a branch of an image.
                `None` keeps both.
            dropout: The block's dropout; `None` drops nothing.
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
    """Stochastic depth: the `keep` of each block, 0 with the block's rate and 1 / (1 - rate) otherwise.

    Args:
        model: Nothing is dropped unless it is in training mode.
        images: The batch, (B, C, H, W).
        num_blocks: Number of blocks of the whole model.
        rate: Rate of the last block; it rises linearly from 0 in the first.
        num_dims: Number of dimensions of the tokens; each block's factors have shape (2, B, 1, ...).
        generator: Source of the masks, on the CPU; or factors from `draw_keep_factors`, on the images' device, which
            are used regardless of `rate`.

    Raises:
        ValueError: Random numbers are needed, but `generator` is `None`.
    """
    if not model.training:
        return [None] * num_blocks
    if isinstance(generator, Tensor):
        return generator[(..., *[None] * (num_dims - 1))].unbind(0)
    if rate == 0.0:
        return [None] * num_blocks
    if generator is None:
        raise ValueError(
            f"training with drop_path={rate} draws random numbers and must be given a CPU `generator`, "
            "but got None. Pass a generator, or call `eval()` first."
        )
    factors = draw_keep_factors(num_blocks, len(images), rate=rate, generator=generator)
    factors = factors.to(images.device, images.dtype, non_blocking=True)
    return factors[(..., *[None] * (num_dims - 1))].unbind(0)


def draw_keep_factors(num_blocks: int, num_images: int, *, rate: float, generator: torch.Generator) -> Tensor:
    """Drop-path factors of each block, branch and image, (num_blocks, 2, B), on the CPU; see `keep_factors`."""
    keep_rate = 1 - torch.linspace(0, rate, num_blocks).view(-1, 1, 1)
    draws = torch.rand(num_blocks, 2, num_images, generator=generator)
    return (draws < keep_rate) / keep_rate


def layer_norm(width: int, *, normalization: bool, eps: float = 1e-5) -> nn.Module:
    """A layer norm, or the identity in a model without normalisation."""
    return nn.LayerNorm(width, eps=eps) if normalization else nn.Identity()
