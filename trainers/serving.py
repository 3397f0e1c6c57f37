"""A trained model as one graph, from uint8 images of any size to class probabilities.

`Predictor` reads files with Pillow and needs this package. The graph here needs neither: it repeats in tensor
operations what Pillow does to a decoded image, so that it can be exported.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.training.evaluation import class_probabilities

_FIXED_POINT = 2.0**22
"""Pillow keeps 22 binary digits of a weight."""


class ServingGraph(nn.Module):
    """Crops, resizes, scales and normalises images, and computes class probabilities and logits.

    Legend: `B` images of equal size, `H` and `W` pixels, `C` channels (1 grey, 3 RGB), `S` the model's image size.

    Args:
        model: The trained model, from normalised images (B, C, S, S) to logits (B, classes).
        image_size: `S`.
        mean: Mean of each channel on a scale of 0 to 1.
        std: Standard deviation of each channel on the same scale.
        crop: Whether the centre square is cut out before resizing; otherwise the image is stretched.
        temperature: See `class_probabilities`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop: bool,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.image_size, self.crop, self.temperature = image_size, crop, temperature
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and logits, each (B, classes), float32, of images (B, H, W, C), uint8."""
        pixels = resize_pixels(images.permute(0, 3, 1, 2).double(), self.image_size, crop=self.crop)
        logits = self.model((pixels.float() / 255 - self.mean) / self.std).float()
        return class_probabilities(logits, self.temperature), logits


def resize_pixels(pixels: Tensor, size: int, *, crop: bool) -> Tensor:
    """Images (B, C, H, W) as (B, C, size, size), equal to Pillow's bilinear resampling of 8-bit images.

    Pillow resizes one axis after the other, with weights in fixed-point numbers, and rounds to whole numbers after
    each. In float64 the same sums are exact.

    Args:
        pixels: Whole values from 0 to 255, float64.
        size: Height and width of the result.
        crop: Whether the centre square is cut out first.
    """
    rows, columns = _positions(pixels.shape[2], pixels.device), _positions(pixels.shape[3], pixels.device)
    height, width = rows[-1] + 0.5, columns[-1] + 0.5  # as tensors, because sizes are symbols in an exported graph
    side = torch.minimum(height, width)
    across = _resize_weights(columns, side if crop else width, width, size)
    down = _resize_weights(rows, side if crop else height, height, size)
    columns_last = _rounded(down @ _rounded(pixels @ across.T))
    if crop:
        return columns_last
    # Pillow 13 begins with the columns of images that are much taller than wide; earlier versions never do.
    is_tall = (height > size) & (height - size > 2 * (width - size))
    return torch.where(is_tall, _rounded(_rounded(down @ pixels) @ across.T), columns_last)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor()


def _positions(length: int, device: torch.device) -> Tensor:
    """Centres of pixels along one axis."""
    return torch.arange(length, dtype=torch.float64, device=device) + 0.5


def _resize_weights(positions: Tensor, extent: Tensor, length: Tensor, size: int) -> Tensor:
    """Weights (size, length) of the pixels along one axis: triangles that are wider if the image shrinks.

    Args:
        positions: Centres of the pixels.
        extent: Length of the central part that is used.
        length: Length of the axis.
        size: Number of new pixels.
    """
    start = ((length - extent) / 2).floor()
    scale = extent / size
    centres = start + _positions(size, positions.device) * scale
    distances = (positions[None] - centres[:, None]).abs() / scale.clamp(min=1)
    is_inside = (positions > start) & (positions < start + extent)
    weights = (1 - distances).clamp(min=0) * is_inside
    weights = weights / weights.sum(1, keepdim=True)
    return _rounded(weights * _FIXED_POINT) / _FIXED_POINT
