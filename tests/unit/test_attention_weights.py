"""Attention weights as proxies read them."""

import pytest
import torch
from torch import Tensor, nn

from tests.rounding import assert_rounded
from trainers.models.as_vit_layers import WindowAttention
from trainers.models.blocks import SelfAttention

NUM_TERMS = 6 + 2 + 16
"""Rounded terms in a query or key, in a score, and in a sum of exponentials over at most 16 tokens."""


def attention(split: int) -> WindowAttention:
    made = WindowAttention(6, heads=3, split=split).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made


def grid(side: int) -> Tensor:
    return torch.randn(2, side, side, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def alone(made: WindowAttention, tokens: Tensor) -> Tensor:
    """Weights of the tokens of one window, (B, rows, columns, D), as a sequence of their own."""
    plain = SelfAttention(6, heads=3, head_width=2).double()
    plain.load_state_dict(made.state_dict())
    return plain.attention_weights(tokens.flatten(1, 2))


def test_each_window_has_the_weights_of_its_own_tokens() -> None:
    made, tokens = attention(split=2), grid(4)
    weights = made.attention_weights(tokens)
    assert weights.shape == (2, 4, 3, 4, 4)
    for window, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        expected = alone(made, tokens[:, row : row + 2, column : column + 2])
        assert_rounded(weights[:, window], expected, NUM_TERMS)


def test_nobody_attends_to_tokens_that_only_fill_a_window_up() -> None:
    made, tokens = attention(split=2), grid(3)
    weights = made.attention_weights(tokens)
    assert weights.shape == (2, 4, 3, 4, 4)
    assert_rounded(weights.sum(-1), torch.ones_like(weights[..., 0]), 2 * 16)
    corner = weights[:, 3]  # one token and three that fill up
    assert torch.equal(corner[..., 0], torch.ones_like(corner[..., 0]))
    right = weights[:, 1][:, :, [0, 2]][..., [0, 2]]  # one column of two tokens
    assert_rounded(right, alone(made, tokens[:, :2, 2:]), NUM_TERMS)


@pytest.mark.parametrize("split", [1, 4])
def test_one_window_and_windows_of_one_token_have_the_same_form(split: int) -> None:
    weights = attention(split=split).attention_weights(grid(4))
    assert weights.shape == ((2, 1, 3, 16, 16) if split == 1 else (2, 16, 3, 1, 1))
    assert_rounded(weights.sum(-1), torch.ones_like(weights[..., 0]), 2 * 16)
