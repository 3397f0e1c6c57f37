"""Closed-form costs of the layers of vision transformers. MACs of norms and activations are not counted."""

from collections.abc import Iterable, Iterator

from search_spaces.base import Costs
from search_spaces.options import NO_OPTIONS, BlockOptions


def linear(inputs: int, outputs: int, *, tokens: int, bias: bool = True) -> Costs:
    """A linear layer applied to `tokens` tokens."""
    return Costs(outputs * (inputs + bias), tokens * inputs * outputs)


def convolution(inputs: int, outputs: int, *, kernel: int, positions: int, groups: int = 1) -> Costs:
    """A square convolution with bias and `positions` output positions (height times width)."""
    return linear(inputs // groups * kernel**2, outputs, tokens=positions)


def layer_norm(width: int) -> Costs:
    """A layer norm with scale and shift."""
    return Costs(2 * width, 0)


def attention_products(inner: int, *, windows: int, tokens: int) -> Costs:
    """The products QK^T and AV of attention within `windows` windows of `tokens` tokens each.

    Args:
        inner: Width of the queries of all heads together.
        windows: Number of windows, 1 for global attention.
        tokens: Number of tokens in a window.
    """
    return Costs(0, 2 * windows * tokens**2 * inner)


def attention_window(side: int, split: int) -> int:
    """Tokens along one side of a window, if a side of `side` tokens is split into about `split` windows.

    If the split does not divide the side, the window is rounded up, so that there are at most `split` windows, and the
    last one is padded with tokens of attention weight 0. A side shorter than the split has windows of one token.
    """
    return -(-side // min(split, side))


def windowed_attention_products(inner: int, *, side: int, split: int, sigmoid: bool = False) -> Costs:
    """`attention_products` on a grid of `side` x `side` tokens with the windows of `attention_window`.

    Windows of one token cost nothing, unless attention is `sigmoid`: the output of softmax attention is the token's
    value.
    """
    window = attention_window(side, split)
    windows = (-(-side // window)) ** 2
    return attention_products(inner, windows=windows if window > 1 or sigmoid else 0, tokens=window**2)


def num_merged(tokens: int, wanted: int, *, num_kept: int) -> int:
    """Tokens that a block merges: `wanted`, but at most half of those that may be merged, all but `num_kept`."""
    return min(wanted, (tokens - num_kept) // 2)


def merging_products(tokens: int, *, merged: int, head_width: int) -> Costs:
    """The products of keys by which `merged` of `tokens` tokens are matched; none if none are merged."""
    return Costs(0, (tokens + 1) // 2 * (tokens // 2) * head_width if merged else 0)


def transformer_block(
    width: int,
    *,
    heads: int,
    head_width: int,
    hidden: int,
    tokens: int,
    products: Costs,
    options: BlockOptions = NO_OPTIONS,
    merged: int = 0,
) -> Costs:
    """A pre-norm block: attention and MLP with biases, their two layer norms, and its optional parts.

    Args:
        width: Width of the residual stream.
        heads: Number of attention heads.
        head_width: Width of the queries of one head.
        hidden: Hidden width of the MLP.
        tokens: Number of tokens of an image.
        products: Costs of attention without its linear layers.
        options: The optional parts.
        merged: Number of tokens that are merged between attention and MLP.
    """
    inner = heads * head_width
    return total(
        (
            linear(width, 3 * inner, tokens=tokens),
            products,
            linear(inner, width, tokens=tokens),
            merging_products(tokens, merged=merged, head_width=head_width),
            linear(width, hidden, tokens=tokens - merged),
            linear(hidden, width, tokens=tokens - merged),
            times(2, layer_norm(width)),
            *option_parts(width, head_width=head_width, hidden=hidden, options=options),
        )
    )


def option_parts(width: int, *, head_width: int, hidden: int, options: BlockOptions) -> Iterator[Costs]:
    """The parts that options add to a block; all of them are elementwise, without MACs."""
    if options.qk_norm:
        yield times(2, layer_norm(head_width))
    if options.layer_scale:
        yield Costs(2 * width, 0)
    if options.grn:
        yield Costs(2 * hidden, 0)


def auxiliary_classifiers(widths: Iterable[int], num_classes: int, *, computed: bool) -> Costs:
    """Classifiers of inner features of these widths, each with a layer norm; without MACs unless `computed`."""
    return total(
        Costs(layer_norm(width).parameters + classifier.parameters, classifier.macs if computed else 0)
        for width in widths
        for classifier in (linear(width, num_classes, tokens=1),)
    )


def total(parts: Iterable[Costs]) -> Costs:
    """The sum of the costs of several layers."""
    parameters = macs = 0
    for part in parts:
        parameters += part.parameters
        macs += part.macs
    return Costs(parameters, macs)


def times(count: int, part: Costs) -> Costs:
    """The costs of `count` equal layers."""
    return Costs(count * part.parameters, count * part.macs)
