"""Layers that several vision transformers share.

Tokens are a sequence, (B, N, D), or, if attention has windows, a grid, (B, H, W, D).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.block_options import PLAIN, OptionalParts, sigmoid_weights
from trainers.models.dropout import BlockDropout, DropoutSite
from trainers.models.stacking import Linear
from trainers.models.token_merging import TokenMerging

FEW_TOKENS = 64
"""Largest number of tokens for which attention on a CPU is computed as two matrix products."""
_FUSED: ContextVar[bool] = ContextVar("fused", default=True)


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens of an image, (B, N, D) to the same shape.

    The heads together may have fewer or more channels than `width`. With the option `layer_scale`, the output is what
    the block adds to its input: the scale is included.
    """

    def __init__(self, width: int, *, heads: int, head_width: int, parts: OptionalParts = PLAIN) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        self.qkv = Linear(width, 3 * heads * head_width)
        self.query_norm = parts.head_norm(head_width)
        self.key_norm = parts.head_norm(head_width)
        self.proj = Linear(heads * head_width, width)
        self.scale = parts.layer_scale(width)
        self.is_sigmoid = parts.options.sigmoid_attention

    def forward(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:
        query, key, value = self._heads(tokens)
        if merging is not None:
            merging.keys = key.mean(1)
        mixed = self._attend(query, key, value, sizes=_key_sizes(merging))
        return self._output(mixed.transpose(-3, -2).flatten(-2))

    def attention_weights(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:
        """Attention weights (B, heads, N, N) for the module's input (B, N, D); rows sum to 1.

        The weights of sigmoid attention are divided by the sum of their row.
        """
        query, key, _ = self._heads(tokens)
        return self._weights(query, key, sizes=_key_sizes(merging))

    def attention_logits(self, tokens: Tensor, merging: TokenMerging | None = None) -> Tensor:  # noqa: ARG002
        """The scaled scores before the softmax of `attention_weights`, or before the shift and sigmoid."""
        query, key, _ = self._heads(tokens)
        return attention_logits(query, key)

    def _project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values of all heads, each side by side: (..., D) to (..., 3 heads d)."""
        qkv: Tensor = self.qkv(tokens)
        if self.query_norm is None or self.key_norm is None:
            return qkv
        query, key, value = qkv.view(*qkv.shape[:-1], 3, self.heads, self.head_width).unbind(-3)
        normed = [self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)]
        return torch.stack([*normed, value], -3).flatten(-3)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, D), each (B, heads, N, d)."""
        parts = self._project(tokens).view(*tokens.shape[:2], 3, self.heads, self.head_width)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_real: Tensor | None = None,
        *,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """See `attend`."""
        return attend(query, key, value, is_real, sigmoid=self.is_sigmoid, sizes=sizes)

    def _weights(
        self, query: Tensor, key: Tensor, is_real: Tensor | None = None, *, sizes: Tensor | None = None
    ) -> Tensor:
        """Weights of the values, with rows that sum to 1."""
        weights = attention_weights(query, key, is_real, sigmoid=self.is_sigmoid, sizes=sizes)
        return weights / weights.sum(-1, keepdim=True) if self.is_sigmoid else weights

    def _output(self, mixed: Tensor) -> Tensor:
        """What the block adds to its input, from the mixed values of all heads."""
        out: Tensor = self.proj(mixed)
        return out if self.scale is None else self.scale(out)


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


def _key_sizes(merging: TokenMerging | None) -> Tensor | None:
    """Number of tokens that each key stands for, (B, 1, 1, N); `None` if it is 1 for all."""
    if merging is None or merging.sizes is None:
        return None
    return merging.sizes[:, None, None]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_real: Tensor | None = None,
    *,
    sigmoid: bool = False,
    sizes: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, shapes (..., N, d).

    On a CPU and with few tokens, two matrix products take as little as 0.6 of the time of torch's fused kernel.

    Args:
        query: Queries of each head.
        key: Keys of each head.
        value: Values of each head.
        is_real: True for the keys to attend to, broadcast to (..., N, N); `None` for all.
        sigmoid: Whether the weights come from a sigmoid instead of the softmax.
        sizes: Number of tokens that each key stands for, broadcast to (..., N, N), instead of `is_real`; `None`: 1.
    """
    if sigmoid or not _FUSED.get() or (query.device.type == "cpu" and query.shape[-2] <= FEW_TOKENS):
        mixed: Tensor = attention_weights(query, key, is_real, sigmoid=sigmoid, sizes=sizes) @ value
        return mixed
    mask = is_real if sizes is None else sizes.log().to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_weights(
    query: Tensor,
    key: Tensor,
    is_real: Tensor | None = None,
    *,
    sigmoid: bool = False,
    sizes: Tensor | None = None,
) -> Tensor:
    """Weights of the values in `attend`, shape (..., N, N)."""
    logits = attention_logits(query, key, is_real)
    if sigmoid:
        counted = is_real if sizes is None else sizes
        weights = sigmoid_weights(logits, key.shape[-2] if counted is None else counted.sum(-1, keepdim=True))
        return weights if sizes is None else weights * sizes
    if sizes is not None:
        logits = logits + sizes.log()
    return logits.softmax(-1)


def attention_logits(query: Tensor, key: Tensor, is_real: Tensor | None = None) -> Tensor:
    """Scaled scores, shape (..., N, N), of queries and keys (..., N, d); -inf for keys that do not take part."""
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores if is_real is None else scores.masked_fill(~is_real, -torch.inf)


class Mlp(nn.Module):
    """Linear, GELU, linear; with options, GRN before the second layer, and a layer scale after it."""

    def __init__(self, width: int, hidden: int, *, parts: OptionalParts = PLAIN) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.act = nn.GELU()
        self.grn = parts.response_norm(hidden)
        self.fc2 = Linear(hidden, width)
        self.scale = parts.layer_scale(width)

    def forward(self, tokens: Tensor, dropout: DropoutSite | None = None) -> Tensor:
        """Tokens (..., D) to the same shape; `dropout` applies to the hidden activations."""
        hidden = self.act(self.fc1(tokens))
        if self.grn is not None:
            hidden = self.grn(hidden)
        out: Tensor = self.fc2(hidden if dropout is None else dropout(hidden))
        return out if self.scale is None else self.scale(out)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(
        self,
        width: int,
        attention: SelfAttention,
        *,
        hidden: int,
        normalization: bool,
        eps: float = 1e-5,
        parts: OptionalParts = PLAIN,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, normalization=normalization, eps=eps)
        self.attn: SelfAttention = attention
        self.norm2 = layer_norm(width, normalization=normalization, eps=eps)
        self.mlp = Mlp(width, hidden, parts=parts)

    def forward(
        self,
        tokens: Tensor,
        keep: Tensor | None = None,
        dropout: BlockDropout | None = None,
        merging: TokenMerging | None = None,
    ) -> Tensor:
        """Tokens, (B, H, W, D) or (B, N, D), to the same shape, or to fewer tokens if some are merged.

        Args:
            tokens: A grid or a sequence, as the block's attention takes it.
            keep: Factors of the two branches, shape (2, B, 1, 1, 1) or (2, B, 1, 1); 0 drops a branch of an image.
                `None` keeps both.
            dropout: The block's dropout; `None` drops nothing.
            merging: Merges tokens between attention and MLP, a sequence (B, N, D); `None` keeps all tokens.
        """
        normed = self.norm1(tokens)
        branch = self.attn(normed) if merging is None else self.attn(normed, merging)
        if dropout is not None:
            branch = dropout.attention(branch)
        tokens = tokens + branch if keep is None else torch.addcmul(tokens, branch, keep[0])
        if merging is not None:
            tokens = merging.merge(tokens)
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
