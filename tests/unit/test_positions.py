"""Position embeddings on another grid."""

import pytest
import torch
import torch.nn.functional as F

from trainers.models.positions import interpolation_matrix, resize_positions


@pytest.mark.parametrize(("old", "new"), [(14, 7), (14, 12), (7, 14), (4, 1), (1, 3), (2, 5)])
def test_positions_are_interpolated_as_torch_does(old: int, new: int) -> None:
    positions = torch.randn(old, old + 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(
        positions.permute(2, 0, 1)[None], size=(new, new + 2), mode="bicubic", align_corners=False
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(resize_positions(positions, new, new + 2), expected)


def test_positions_of_the_same_grid_are_returned_unchanged() -> None:
    positions = torch.randn(3, 4, 2)
    assert resize_positions(positions, 3, 4) is positions


def test_weights_of_an_interpolation_add_up_to_one() -> None:
    assert interpolation_matrix(9, 5).sum(1) == pytest.approx(1.0, abs=1e-12)


def test_autocast_leaves_positions_in_their_precision() -> None:
    positions = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resized = resize_positions(positions, 2, 2)
    assert resized.dtype == torch.float32
    assert torch.equal(resized, resize_positions(positions, 2, 2))
