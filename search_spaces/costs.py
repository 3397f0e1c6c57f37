"""Closed-form costs of the layers of vision transformers. MACs of norms and activations are not counted."""

from collections.abc import Iterable

from search_spaces.base import Costs


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


def windowed_attention_products(inner: int, *, side: int, split: int) -> Costs:
    """`attention_products` on a grid of `side` x `side` tokens with the windows of `attention_window`.

    Windows of one token cost nothing: the output of attention is the token's value.
    """
    window = attention_window(side, split)
    windows = (-(-side // window)) ** 2
    return attention_products(inner, windows=windows if window > 1 else 0, tokens=window**2)


def transformer_block(width: int, *, inner: int, hidden: int, tokens: int, products: Costs) -> Costs:
    """A pre-norm block: attention and MLP with biases, and their two layer norms.

    Args:
        width: Width of the residual stream.
        inner: Width of the queries of all heads together.
        hidden: Hidden width of the MLP.
        tokens: Number of tokens of an image.
        products: Costs of attention without its linear layers.
    """
    return total(
        (
            linear(width, 3 * inner, tokens=tokens),
            products,
            linear(inner, width, tokens=tokens),
            linear(width, hidden, tokens=tokens),
            linear(hidden, width, tokens=tokens),
            times(2, layer_norm(width)),
        )
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
