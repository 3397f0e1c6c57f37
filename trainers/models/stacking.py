"""Stacked networks: one module computes several fresh networks of one topology, with one operation for all of them.

The weights that the networks draw differently have a first dimension of `R` networks; parameters that are equal in all
of them, such as those of layer norms, do not. A stacked module takes one batch of `B` images. From the first layer on,
its tensors hold the `R B` results of all networks, those of the first network first, so that layers without stacked
weights need not know about the stack. For small images, the number of operations determines the time; stacked networks
need as many as one.

Legend: `R` networks, `B` images, `I` and `O` inputs and outputs of a layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer without initial weights: the model draws all weights from one generator once it is complete.

    Its weight (O, I) may be stacked, (R, O, I), and so may its bias.
    """

    def reset_parameters(self) -> None:
        """Do nothing; the model draws the weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        """Features (..., I) to (..., O)."""
        weight = self.weight
        if weight.ndim == 2:
            return F.linear(input, weight, self.bias)
        rows = input.reshape(len(weight), -1, input.shape[-1])
        if self.bias is None:
            out = torch.bmm(rows, weight.mT)
        else:
            out = torch.baddbmm(self.bias.view(-1, 1, weight.shape[1]), rows, weight.mT)
        return out.view(*input.shape[:-1], -1)


class Convolution(nn.Conv2d):
    """A convolution without initial weights, like `Linear`; its weight and bias may be stacked."""

    def reset_parameters(self) -> None:
        """Do nothing; the model draws the weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        """Images (B, C, H, W), or (R B, C, H, W) if the weight is stacked, to the same number of maps."""
        if self.weight.ndim == 4:
            return super().forward(input)
        num = len(self.weight)
        images = input.view(num, -1, *input.shape[1:]).transpose(0, 1).flatten(1, 2)
        return unfold_stack(self._convolve(images, groups=num * self.groups), num)

    def _convolve(self, images: Tensor, *, groups: int) -> Tensor:
        """Maps (B, R O, ...) of all networks."""
        bias = None if self.bias is None else self.bias.flatten()
        weight = self.weight.flatten(0, 1)
        return F.conv2d(images, weight, bias, self.stride, self.padding, self.dilation, groups)


class ImageConvolution(Convolution):
    """The convolution of the images: stacked, it takes one batch (B, C, H, W) for all networks, to (R B, O, ...)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        """Images (B, C, H, W) to maps."""
        if self.weight.ndim == 4:
            return super().forward(input)
        return unfold_stack(self._convolve(input, groups=1), len(self.weight))


def unfold_stack(maps: Tensor, num: int) -> Tensor:
    """From maps (B, R O, H, W) of all networks side by side to (R B, O, H, W)."""
    return maps.view(len(maps), num, -1, *maps.shape[2:]).transpose(0, 1).flatten(0, 1)


def per_image(parameter: Tensor, count: int) -> Tensor:
    """A parameter (1, ...) that is added to each of `count` inputs, or a stacked one (R, ...), as (count, ...)."""
    if len(parameter) == 1:
        return parameter.expand(count, *parameter.shape[1:])
    return parameter.repeat_interleave(count // len(parameter), 0)


def linear_parameters(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight (R, O, I) and bias (R, 1, O) or (1, 1, O) of a linear layer; R is 1 if it is not stacked."""
    weight = layer.weight if layer.weight.ndim == 3 else layer.weight.unsqueeze(0)
    return weight, None if layer.bias is None else layer.bias.view(-1, 1, weight.shape[1])


def spanned_tokens(embed: ImageConvolution, directions: Tensor) -> Tensor:
    """The patches of images without the bias, (R, r, H, W, D).

    Args:
        embed: The convolution of the images, applied without its own padding.
        directions: Each network's images, shape (R, r, C, H, W), or (r, C, H, W) for an ordinary convolution.
    """
    if directions.ndim == 4:
        maps = F.conv2d(directions, embed.weight, None, embed.stride)
        return maps.permute(0, 2, 3, 1).unsqueeze(0)
    num = len(directions)
    images = directions.transpose(0, 1).flatten(1, 2)
    maps = F.conv2d(images, embed.weight.flatten(0, 1), None, embed.stride, groups=num)
    return maps.view(len(maps), num, -1, *maps.shape[2:]).permute(1, 0, 3, 4, 2)
