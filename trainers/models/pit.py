"""PiT as a torch module, built from its topology."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.base import ImageTask
from search_spaces.pit import PitSpace, PitTopology
from trainers.models.assembly import ModelBuilder, Source, draw_convolutions, draw_normal, draw_uniform
from trainers.models.auxiliary_heads import AuxiliaryHeads, with_auxiliary
from trainers.models.block_options import OptionalParts
from trainers.models.blocks import Block, SelfAttention, keep_factors, layer_norm
from trainers.models.dropout import Dropout, dropout_sites
from trainers.models.image_attention import grid_attention
from trainers.models.positions import resize_positions
from trainers.models.stacking import Convolution, ImageConvolution, Linear, linear_parameters, per_image
from trainers.models.taylor import products
from trainers.models.token_curve import blocks_along, token_features_along
from trainers.models.token_merging import TokenMerging

INIT_STD = 0.02
NORM_EPS = 1e-6


class Pooling(nn.Module):
    """Depth-wise convolution that halves the map and adds channels, and a linear layer for the class token."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv = Convolution(width, out_width, 3, stride=2, padding=1, groups=width)
        self.fc = Linear(width, out_width)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Tokens (B, 1 + side^2, D) to (B, 1 + ceil(side / 2)^2, out width)."""
        grid = tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, side, side)
        return torch.cat([self.fc(tokens[:, :1]), self.conv(grid).flatten(2).transpose(1, 2)], 1)

    def along(self, tokens: Tensor, side: int) -> Tensor:
        """The same for the coefficients (K, R, n, N, D) of a curve of tokens; biases are added to the first one only.

        `K` coefficients, `R` networks in a stack (1 for an ordinary layer), `n` points of the curve.
        """
        num, networks, points, _, width = tokens.shape
        conv = self.conv
        grid = tokens[:, :, :, 1:].permute(0, 2, 1, 4, 3).reshape(num * points, -1, side, side)
        weight = conv.weight.reshape(-1, *conv.weight.shape[-3:])
        smaller = F.conv2d(grid, weight, None, conv.stride, conv.padding, groups=networks * width)
        smaller = smaller.view(num, points, networks, conv.out_channels, -1).permute(0, 2, 1, 4, 3)
        fc_weight, fc_bias = linear_parameters(self.fc)
        pooled = torch.cat([products(tokens[:, :, :, 0], fc_weight).unsqueeze(3), smaller], 3)
        assert conv.bias is not None
        assert fc_bias is not None
        pooled[0, :, :, 0] += fc_bias
        pooled[0, :, :, 1:] += conv.bias.view(-1, 1, 1, conv.out_channels)
        return pooled


class Pit(nn.Module):
    """A vision transformer of three stages on increasingly coarse maps, with one class token for all stages.

    Learned positions are added to the map of the first stage. The classifier reads the class token. Legend: `B` images
    of (C, H, W), `N` tokens with the class token, `D` width of a stage.

    Positions and the class token are drawn from a normal distribution with standard deviation 0.02 (the authors
    truncate it at 100 standard deviations, which has no effect). All other weights and biases have torch's
    initialisation.

    Source: Heo et al. 2021, PiT, arXiv:2103.16302; the network is that of ViT-Bench-101 (Wei et al. 2024, Auto-Prox,
    arXiv:2312.09059). There the drop-path rate would reach its maximum one block after the last; here the last has it.
    """

    initial_exponent: ClassVar[float] = -0.5
    """Exponent of the fan-in in the standard deviation of initial linear weights
    (`plugins.protocols.NetworkDescription`)."""

    def __init__(
        self,
        topology: PitTopology,
        task: ImageTask,
        *,
        generator: Source,
        drop_path: float = 0.0,
        normalization: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.merged_tokens = topology.options.merged_tokens
        if self.merged_tokens:
            self.features_along = None  # type: ignore[assignment,method-assign]  # not a `CurveModel`
            self.image_attention = None  # type: ignore[assignment,method-assign]  # tokens leave their places
        self.depths = topology.depth
        widths = topology.widths
        self.side = (task.image_size - topology.patch_size) // topology.stride + 1
        self.patch_embed = ImageConvolution(task.in_channels, widths[0], topology.patch_size, topology.stride)
        self.class_token = nn.Parameter(torch.empty(1, 1, widths[0]))
        self.position = nn.Parameter(torch.empty(1, widths[0], self.side, self.side))

        parts = OptionalParts(topology.options, sum(topology.depth), normalization, NORM_EPS)

        def block(width: int, heads: int) -> Block:
            attention = SelfAttention(width, heads=heads, head_width=topology.base_dim, parts=parts)
            hidden = topology.mlp_ratio * width
            return Block(width, attention, hidden=hidden, normalization=normalization, eps=NORM_EPS, parts=parts)

        self.stages = nn.ModuleList(
            nn.ModuleList(block(width, heads) for _ in range(depth))
            for width, heads, depth in zip(widths, topology.num_heads, topology.depth, strict=True)
        )
        self.pools = nn.ModuleList([Pooling(widths[0], widths[1]), Pooling(widths[1], widths[2])])
        self.norm = layer_norm(widths[-1], normalization=normalization, eps=NORM_EPS)
        self.head = Linear(widths[-1], task.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw_uniform(module, module.in_features**-0.5, generator)
        draw_convolutions(self, generator)
        draw_normal(self, "class_token", generator, std=INIT_STD)
        draw_normal(self, "position", generator, std=INIT_STD)
        if topology.auxiliary_widths:
            self.auxiliary = AuxiliaryHeads(
                topology.auxiliary_widths, task.num_classes, normalization=normalization, eps=NORM_EPS
            )
            for module in self.auxiliary.modules():
                if isinstance(module, nn.Linear):
                    draw_uniform(module, module.in_features**-0.5, generator)

    def forward(
        self,
        images: Tensor,
        *,
        generator: torch.Generator | Tensor | None = None,
        dropout: Dropout | None = None,
        auxiliary: bool = False,
    ) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Args:
            images: A batch of normalised, square images. Positions are interpolated if the task has another image size.
            generator: Source of the drop-path masks, on the CPU, needed in training mode if `drop_path` is above 0; or
                the factors of `draw_keep_factors`, which apply regardless of `drop_path`.
            dropout: Rate and seed of dropout in training mode; `None` drops nothing.
            auxiliary: Whether to return (B, 1 + heads, classes): the logits, then those of the auxiliary heads.
        """
        inner: list[Tensor] | None = [] if auxiliary else None
        logits: Tensor = self.head(self.norm(self._tokens(images, generator, dropout, inner)[:, 0]))
        return logits if inner is None else with_auxiliary(logits, self.auxiliary, inner)

    def forward_features(self, images: Tensor, *, generator: torch.Generator | Tensor | None = None) -> Tensor:
        """Features (B, D): the class token after the last stage, before the final norm."""
        return self._tokens(images, generator)[:, 0]

    def _tokens(
        self,
        images: Tensor,
        generator: torch.Generator | Tensor | None,
        dropout: Dropout | None = None,
        inner: list[Tensor] | None = None,
    ) -> Tensor:
        """The tokens (B, N, D) after the last stage; the features of auxiliary heads are added to `inner`."""
        keep = self._keep_factors(images, generator)
        sites = dropout_sites(self, images, num_blocks=sum(self.depths), dropout=dropout)
        grid = self.patch_embed(images)
        side = grid.shape[-1]
        grid = grid + per_image(self._positions(side), grid.shape[0])
        patches = grid.flatten(2).transpose(1, 2)
        tokens = sites.embed(torch.cat([per_image(self.class_token, grid.shape[0]), patches], 1))
        start = 0
        for index, (stage, depth) in enumerate(zip(self.stages, self.depths, strict=True)):
            if index:
                tokens = self.pools[index - 1](tokens, side)
                side = -(-side // 2)
            merges = self.merged_tokens and index == len(self.depths) - 1
            merging = TokenMerging(self.merged_tokens, num_kept=1) if merges else None
            some = slice(start, start + depth)
            for block, factors, dropped in zip(stage.children(), keep[some], sites.blocks[some], strict=True):
                tokens = block(tokens, factors, dropped, merging)
            if inner is not None and index < len(self.depths) - 1:
                inner.append(tokens[:, 0])
            start += depth
        return tokens

    def image_attention(self, *inputs: Any) -> Tensor:
        """See `plugins.protocols.AttendsToImage`: what the class token reads."""
        weights = cast("Any", self.stages[-1])[-1].attn.attention_weights(*inputs)
        return grid_attention(weights, num_class_tokens=1, by_class_token=True)

    def features_along(self, directions: Tensor, weights: Tensor) -> Tensor:
        """Features and derivatives along a curve of images, without norms; see `plugins.protocols.CurveModel`."""
        constant = torch.cat([self.class_token, self.position.flatten(2).mT], 1)
        return token_features_along(self.patch_embed, constant, self._features_of_curve, directions, weights)

    def _features_of_curve(self, tokens: Tensor) -> Tensor:
        """Coefficients of the features (K, R, n, D) from those of the first tokens (K, R, n, N, D), without norms."""
        side = self.side
        for index, stage in enumerate(self.stages):
            if index:
                tokens = cast("Pooling", self.pools[index - 1]).along(tokens, side)
                side = -(-side // 2)
            tokens = blocks_along(tokens, cast("nn.ModuleList", stage))
        return tokens[:, :, :, 0]

    def _positions(self, side: int) -> Tensor:
        """Positions (1, D, side, side) of the first stage's map."""
        if side == self.side:
            return self.position
        return resize_positions(self.position[0].permute(1, 2, 0), side, side).permute(2, 0, 1)[None]

    def _keep_factors(self, images: Tensor, generator: torch.Generator | Tensor | None) -> Sequence[Tensor | None]:
        """The `keep` of each block, (2, B, 1, 1)."""
        return keep_factors(
            self, images, num_blocks=sum(self.depths), rate=self.drop_path, num_dims=3, generator=generator
        )


build_pit = ModelBuilder(Pit, PitSpace)
"""The `models` plug-in of PiT."""
