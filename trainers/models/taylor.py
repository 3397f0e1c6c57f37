"""Taylor coefficients of tokens along a curve, propagated through the layers of a vision transformer.

A curve of tokens `x(t)` is represented by its coefficients `x_j`: the j-th derivative divided by `j!`. The coefficients
of a product of two curves are `(a b)_j = sum_i a_i b_(j-i)`; the sum over `i` is one product of concatenated matrices.
Nothing is stored for a backward pass.

Legend: `K` coefficients (order + 1, at most 3), `R` networks in a stack (1 for an ordinary model), `B` windows of all
images, `N` tokens of a window, `D` width, `H` heads of `d` channels, `I = H d`.
"""

import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from trainers.models.block_options import LayerScale, sigmoid_weights
from trainers.models.blocks import Mlp, SelfAttention
from trainers.models.stacking import linear_parameters

NUMBERS_AT_ONCE = 2**19
"""Numbers in the intermediate results that are computed at once; about as many fit into a core's cache."""
TOKENS_AT_ONCE = 2**18
"""Numbers in the tokens that go through a stage together. With fewer, the overhead of each operation dominates; with
more, memory bandwidth does."""
SCORE_COST = 60
"""Cost of the elementwise operations on one attention score, in multiply-accumulates of a matrix product."""


_ASSUMED: ContextVar[list[Tensor] | None] = ContextVar("assumed", default=None)
"""Conditions that `check_once` has yet to check."""


def derivative_factors(weights: Tensor) -> Tensor:
    """Factors `j!` that turn coefficients into derivatives, shape (K,), in the dtype of `weights` (K, ...)."""
    return weights.new_tensor([math.factorial(index) for index in range(len(weights))])


def slices(total: int, size: int) -> Iterator[slice]:
    """Slices of `size` items (at least 1) that cover `total` items."""
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, total, size))


def products(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows (K, R, B, I) of each network times its weight (R, O, I), shape (K, R, B, O)."""
    found = rows.new_empty(*rows.shape[:3], weight.shape[1])
    for out, part in zip(found, rows, strict=True):
        torch.bmm(part, weight.mT, out=out)
    return found


def add_mlp(tokens: Tensor, mlp: Mlp) -> None:
    """Add the MLP's output to tokens (K, R, B, N, D), in place."""
    weight, bias = scaled_layer(mlp.fc2, mlp.scale)
    rows = tokens.view(*tokens.shape[:2], -1, tokens.shape[-1])
    for some in slices(rows.shape[2], NUMBERS_AT_ONCE // (len(rows) * rows.shape[1] * mlp.fc1.out_features)):
        block = rows[:, :, some]
        for part, hidden in zip(block, hidden_activations(block, mlp), strict=True):
            part.baddbmm_(hidden, weight.mT)
        block[0] += bias


def scaled_layer(layer: nn.Linear, scale: LayerScale | None) -> tuple[Tensor, Tensor]:
    """Weight (R, O, I) and bias (R or 1, 1, O) of a linear layer that includes the layer scale after it."""
    weight, bias = linear_parameters(layer)
    assert bias is not None
    return (weight, bias) if scale is None else (weight * scale.gamma.unsqueeze(1), bias * scale.gamma)


def hidden_activations(rows: Tensor, mlp: Mlp) -> Tensor:
    """The MLP's activations after GELU, (K, R, rows, hidden), from its input (K, R, rows, D)."""
    weight, bias = linear_parameters(mlp.fc1)
    assert bias is not None
    hidden = rows.new_empty(*rows.shape[:3], weight.shape[1])
    for index, (part, row) in enumerate(zip(hidden, rows, strict=True)):
        if index == 0:
            torch.baddbmm(bias, row, weight.mT, out=part)
        else:
            torch.bmm(row, weight.mT, out=part)
    gelu_(hidden)
    return hidden


def gelu_(curve: Tensor) -> None:
    """GELU of a curve (K, ...) in place: `g_1 = g'(x) x_1` and `g_2 = g'(x) x_2 + g''(x) x_1^2 / 2`."""
    value, times_slope = curve[0], torch.ops.aten.gelu_backward.grad_input
    if len(curve) > 2:
        squared = value.square()
        # g''(x) = (2 - x^2) exp(-x^2 / 2) / sqrt(2 pi)
        bend = (squared * -0.5).exp_().mul_(squared.neg_().add_(2)).mul_(curve[1].square())
        times_slope(curve[2], value, grad_input=curve[2]).add_(bend, alpha=0.5 / math.sqrt(2 * math.pi))
    if len(curve) > 1:
        times_slope(curve[1], value, grad_input=curve[1])
    torch.ops.aten.gelu.out(value, out=value)


def add_attention(tokens: Tensor, attention: SelfAttention) -> Tensor:
    """Tokens (K, R, B, N, D) with the output of attention added; their memory may be reused.

    If it is faster, and if the scores are small enough for it to be exact within the dtype's precision, softmax
    attention is computed to first order in its scores, as one matrix per window. An untrained network without
    normalisation is such a case: its scores are below 1e-3. Otherwise, attention is computed exactly.
    """
    count, width = tokens.shape[3:]
    if attention.is_sigmoid:
        return _add_projected(tokens, exact_attention(tokens, attention), attention)
    if count == 1:
        weight, bias = _joint_layer(attention)
        values = products(tokens.flatten(2, 3), weight.chunk(3, 1)[2])
        values[0] += bias.chunk(3, 2)[2]
        return _add_projected(tokens, values, attention)
    inner = attention.heads * attention.head_width
    exact = (8 * width + 6 * count) * inner + SCORE_COST * count * attention.heads
    if exact > 5 * width**2 * (1 + inner / count):
        added = first_order_attention(tokens, attention)
        if added is not None:
            return added
    return _add_projected(tokens, exact_attention(tokens, attention), attention)


def _joint_layer(attention: SelfAttention) -> tuple[Tensor, Tensor]:
    """Weight (R, 3 I, D) and bias (R or 1, 1, 3 I) of queries, keys and values."""
    weight, bias = linear_parameters(attention.qkv)
    assert bias is not None
    return weight, bias


def _add_projected(tokens: Tensor, mixed: Tensor, attention: SelfAttention) -> Tensor:
    """Add the projection of `mixed` (K, R, B N, I) to tokens (K, R, B, N, D) in place, and return them."""
    weight, bias = scaled_layer(attention.proj, attention.scale)
    rows = tokens.view(*tokens.shape[:2], -1, tokens.shape[-1])
    rows[0] += bias
    for part, one in zip(rows, mixed, strict=True):
        part.baddbmm_(one, weight.mT)
    return tokens


def first_order_attention(tokens: Tensor, attention: SelfAttention) -> Tensor | None:
    """Tokens (K, R, B, N, D) plus attention to first order in the scores; `None` if higher orders are not negligible.

    Softmax is invariant to centring the keys within their window. With `exp(s) = 1 + s` the weights then sum to `N`,
    and a token becomes `x + mean(v) + q K^T V / N`. With the covariance `C` of the window's tokens that is
    `x (1 + sum_h Wq_h^T Wk_h C Wv_h^T Wp_h^T / sqrt(d))` and a constant: no query, key or value is computed.

    The error of the weights is about `s^2 / 2`. Its mean over all pairs is kept below the dtype's rounding error by the
    bound `mean(s^2) <= mean(|q|^2) mean(|k|^2) / d`, which depends on the covariance only.
    """
    num, networks, windows, count, width = tokens.shape
    heads, depth = attention.heads, attention.head_width
    weight, bias = _joint_layer(attention)
    query, key, value = weight.chunk(3, 1)
    query_bias, _, value_bias = bias.chunk(3, 2)
    proj, proj_bias = scaled_layer(attention.proj, attention.scale)
    means = tokens.mean(3)
    covariance = _covariance(tokens, means)
    if not _scores_are_negligible(means[0], covariance[0], attention, count):
        return None
    keys = products(covariance.flatten(2, 3), key).view(num, networks, windows, width, heads, depth)
    keys = keys.permute(1, 4, 0, 2, 5, 3).reshape(networks * heads, -1, width)
    mixed = torch.bmm(keys, value.reshape(-1, depth, width).mT)
    projected = torch.bmm(mixed, proj.mT.reshape(-1, depth, width))
    # The transposed products of all heads, (K, R, B D, I), and of the queries' weights with them.
    projected = projected.view(networks, heads, num, windows, depth, width).permute(2, 0, 3, 5, 1, 4)
    projected = projected.reshape(num, networks, windows * width, -1)
    projected *= depth**-0.5
    maps = products(projected, query.mT).view(num, networks * windows, width, width).mT
    maps[0].diagonal(dim1=-2, dim2=-1).add_(1)
    mean_value = products(means, value)
    mean_value[0] += value_bias
    shift = products(mean_value, proj) + products(projected, query_bias.expand(networks, -1, -1)).view_as(means)
    shift[0] += proj_bias
    added = torch.empty_like(tokens)
    parts, sums = (part.view(num, networks * windows, count, width) for part in (tokens, added))
    for index in range(num):
        torch.baddbmm(shift[index].view(-1, 1, width), parts[index], maps[0], out=sums[index])
        for other in range(index):
            sums[index].baddbmm_(parts[other], maps[index - other])
    return added


def _covariance(tokens: Tensor, means: Tensor) -> Tensor:
    """Coefficients (K, R, B, D, D) of the covariance in each window, from tokens (K, R, B, N, D) and their means."""
    num, networks, windows, count, width = tokens.shape
    tokens, means = tokens.view(num, -1, count, width), means.view(num, -1, width)
    covariance = tokens.new_zeros(num, networks * windows, width, width)
    for low in range(num):
        for high in range(low, num - low):
            product = torch.bmm(tokens[low].mT, tokens[high]).div_(count)
            product.baddbmm_(means[low].unsqueeze(2), means[high].unsqueeze(1), alpha=-1)
            covariance[low + high] += product if low == high else product + product.mT
    return covariance.view(num, networks, windows, width, width)


def _scores_are_negligible(mean: Tensor, covariance: Tensor, attention: SelfAttention, count: int) -> bool:
    """Whether first-order attention is exact, given each window's mean token (R, B, D) and covariance (R, B, D, D)."""
    networks, windows, width = mean.shape
    heads, depth = attention.heads, attention.head_width
    weight, bias = _joint_layer(attention)
    weight = weight.mT[..., : 2 * heads * depth]
    spread = torch.bmm(covariance.flatten(1, 2), weight).view(networks, windows, width, -1).mul_(weight.unsqueeze(1))
    spread = spread.view(-1, width, 2, heads, depth).sum((1, 4))
    mean_query = torch.baddbmm(bias[..., : heads * depth], mean, weight[..., : heads * depth])
    squared_query = spread[:, 0] + mean_query.view(-1, heads, depth).square().sum(-1)
    mean_square = (squared_query * spread[:, 1]).max() / depth
    # The second condition bounds the largest score by 1, so that s^2 / 2 dominates the error.
    is_negligible = mean_square <= min(torch.finfo(mean.dtype).eps, count**-2)
    assumed = _ASSUMED.get()
    if assumed is None:
        return bool(is_negligible)
    assumed.append(is_negligible)
    return True


def check_once(compute: Callable[[], Tensor]) -> Tensor:
    """The result of `compute`, with the scores of all attention in it checked together at the end.

    Each check waits for the device. Inside, first-order attention is therefore assumed to be exact; if it is not, the
    result is computed again with a check for each attention.
    """
    assumed: list[Tensor] = []
    token = _ASSUMED.set(assumed)
    try:
        found = compute()
    finally:
        _ASSUMED.reset(token)
    if not assumed or bool(torch.stack(assumed).all()):
        return found
    return compute()


def exact_attention(tokens: Tensor, attention: SelfAttention) -> Tensor:
    """Output of attention before its projection, (K, R, B N, I), from tokens (K, R, B, N, D), in blocks of scores.

    With scores `S_j`, softmax `P` of `S_0`, `E_0 = P`, `E_1 = P S_1` and `E_2 = P (S_2 + S_1^2 / 2)`, the sums
    `n_j = sum_i E_(j-i) [V_i 1_i]` contain both values and normalisers; their quotient is the output. Sigmoid attention
    has no normaliser: with `P = sigmoid(S_0 - log N)`, the factors are `E_1 = P' S_1` and
    `E_2 = P' S_2 + P'' S_1^2 / 2`.
    """
    num, networks, windows, count, _ = tokens.shape
    heads, depth = attention.heads, attention.head_width
    weight, bias = _joint_layer(attention)
    qkv = products(tokens.flatten(2, 3), weight)
    qkv[0] += bias
    windows = networks * windows
    parts = qkv.view(num, windows, count, 3, heads, depth).permute(3, 1, 4, 2, 0, 5)
    query = parts[0].flip(3).mul_(depth**-0.5).reshape(-1, count, num * depth)
    key = parts[1].reshape(-1, count, num * depth)
    value = tokens.new_zeros(windows, heads, count, num, depth + 1)
    value[..., :depth] = parts[2]
    value[..., 0, depth] = 1
    value = value.view(-1, count, num * (depth + 1))
    mixed = tokens.new_empty(windows * heads, count, num, depth)
    rows = min(count, max(1, NUMBERS_AT_ONCE // (num * count)))
    at_once = max(1, NUMBERS_AT_ONCE // (num * count * rows))
    for first in range(0, windows * heads, at_once):
        some = slice(first, first + at_once)
        for top in range(0, count, rows):
            block = slice(top, top + rows)
            mixed[some, block] = _mix(query[some, block], key[some], value[some], num, sigmoid=attention.is_sigmoid)
    mixed = mixed.view(windows, heads, count, num, depth).permute(3, 0, 2, 1, 4)
    return mixed.reshape(num, networks, -1, heads * depth)


def _mix(query: Tensor, key: Tensor, value: Tensor, num: int, *, sigmoid: bool) -> Tensor:
    """Rows of attention, (b, rows, K, d).

    Args:
        query: Concatenated coefficients from last to first, scaled, shape (b, rows, K d).
        key: Concatenated coefficients from first to last, shape (b, N, K d).
        value: Concatenated coefficients, each followed by the coefficient of 1, shape (b, N, K (d + 1)).
        num: Number of coefficients `K`.
        sigmoid: Whether attention has sigmoid weights.
    """
    depth = key.shape[-1] // num
    scores = [
        torch.bmm(query[..., (num - 1 - index) * depth :], key[..., : (index + 1) * depth].mT) for index in range(num)
    ]
    weights = _sigmoid_factors(scores) if sigmoid else _softmax_factors(scores)
    sums = torch.bmm(weights, value)
    for index in range(1, num):
        start = index * (depth + 1)
        sums[..., start:] += torch.bmm(scores[index], value[..., :-start])
    parts = sums.view(*sums.shape[:-1], num, depth + 1)
    out, normalizer = parts[..., :depth], parts[..., depth:]
    if sigmoid:
        return out
    for index in range(1, num):
        for low in range(index):
            out[..., index, :] -= out[..., low, :] * normalizer[..., index - low, :]
    return out


def _softmax_factors(scores: list[Tensor]) -> Tensor:
    """`E_0` of softmax attention; the other scores become `E_1` and `E_2` in place."""
    weights = torch.softmax(scores[0], -1)
    if len(scores) > 2:
        scores[2].addcmul_(scores[1], scores[1], value=0.5).mul_(weights)
    if len(scores) > 1:
        scores[1].mul_(weights)
    return weights


def _sigmoid_factors(scores: list[Tensor]) -> Tensor:
    """`E_0` of sigmoid attention; the other scores become `E_1` and `E_2` in place."""
    weights = sigmoid_weights(scores[0], scores[0].shape[-1])
    slope = weights * (1 - weights)
    if len(scores) > 2:
        bend = (1 - 2 * weights).mul_(scores[1]).mul_(scores[1])
        scores[2].add_(bend, alpha=0.5).mul_(slope)
    if len(scores) > 1:
        scores[1].mul_(slope)
    return weights
