"""AutoFormer as a torch module, built from its topology."""

from itertools import starmap
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from search_spaces.autoformer import AutoFormerSpace, AutoFormerTopology
from search_spaces.base import ImageTask
from trainers.models.assembly import ModelBuilder, Source, draw_convolutions, draw_linears, draw_normal
from trainers.models.auxiliary_heads import AuxiliaryHeads, with_auxiliary
from trainers.models.block_options import OptionalParts
from trainers.models.blocks import Block, SelfAttention, keep_factors, layer_norm
from trainers.models.dropout import Dropout, dropout_sites
from trainers.models.image_attention import grid_attention
from trainers.models.positions import resize_positions
from trainers.models.stacking import ImageConvolution, Linear, per_image
from trainers.models.token_curve import blocks_along, token_features_along
from trainers.models.token_merging import TokenMerging

INIT_STD = 0.02
NORM_EPS = 1e-6


class AutoFormer(nn.Module):
    """A plain vision transformer in which the number of heads and the MLP ratio differ between blocks.

    The input of the first block is a class token and the embedded patches, plus learned positions. The classifier reads
    the mean of the patch tokens. Legend: `B` images of (C, H, W), `N` tokens with the class token, `D` width.

    Linear weights, positions and the class token are drawn from a normal distribution with standard deviation 0.02 (the
    authors truncate it at 100 standard deviations, which has no effect) and linear biases are 0. The convolution has
    torch's initialisation.

    Source: Chen et al. 2021, AutoFormer, arXiv:2107.00651; the network is that of ViT-Bench-101 (Wei et al. 2024,
    Auto-Prox, arXiv:2312.09059): without the supernet's relative position and shared weights.
    """

    initial_exponent: ClassVar[float] = 0.0
    """Exponent of the fan-in in the standard deviation of initial linear weights
    (`plugins.protocols.NetworkDescription`)."""

    def __init__(
        self,
        topology: AutoFormerTopology,
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
        width = topology.hidden_dim
        self.side = task.image_size // topology.patch_size
        self.patch_embed = ImageConvolution(task.in_channels, width, topology.patch_size, topology.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + self.side**2, width))

        parts = OptionalParts(topology.options, topology.depth, normalization, NORM_EPS)

        def block(heads: int, head_width: int, hidden: int) -> Block:
            attention = SelfAttention(width, heads=heads, head_width=head_width, parts=parts)
            return Block(width, attention, hidden=hidden, normalization=normalization, eps=NORM_EPS, parts=parts)

        sizes = zip(topology.num_heads, topology.head_widths, topology.hidden_widths, strict=True)
        self.blocks = nn.ModuleList(starmap(block, sizes))
        self.norm = layer_norm(width, normalization=normalization, eps=NORM_EPS)
        self.head = Linear(width, task.num_classes)
        draw_linears(self, generator, std=INIT_STD)
        draw_convolutions(self, generator)
        draw_normal(self, "class_token", generator, std=INIT_STD)
        draw_normal(self, "position", generator, std=INIT_STD)
        self.auxiliary_blocks = topology.auxiliary_blocks
        if self.auxiliary_blocks:
            widths = (width,) * len(self.auxiliary_blocks)
            self.auxiliary = AuxiliaryHeads(widths, task.num_classes, normalization=normalization, eps=NORM_EPS)
            draw_linears(self.auxiliary, generator, std=INIT_STD)

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
        merging = self._merging()
        inner: list[Tensor] | None = [] if auxiliary else None
        tokens = self.norm(self._tokens(images, generator, merging, dropout, inner))
        logits: Tensor = self.head(_mean(tokens, merging))
        return logits if inner is None else with_auxiliary(logits, self.auxiliary, inner)

    def forward_features(self, images: Tensor, *, generator: torch.Generator | Tensor | None = None) -> Tensor:
        """Features (B, D): the mean of the patch tokens before the final norm."""
        merging = self._merging()
        return _mean(self._tokens(images, generator, merging), merging)

    def image_attention(self, *inputs: Any) -> Tensor:
        """See `plugins.protocols.AttendsToImage`: what the patches read, whose mean is classified."""
        weights = cast("Any", self.blocks[-1]).attn.attention_weights(*inputs)
        return grid_attention(weights, num_class_tokens=1, by_class_token=False)

    def features_along(self, directions: Tensor, weights: Tensor) -> Tensor:
        """Features and derivatives along a curve of images, without norms; see `plugins.protocols.CurveModel`."""
        constant = torch.cat([self.class_token + self.position[:, :1], self.position[:, 1:]], 1)

        def features_of(tokens: Tensor) -> Tensor:
            return blocks_along(tokens, self.blocks)[:, :, :, 1:].mean(3)

        return token_features_along(self.patch_embed, constant, features_of, directions, weights)

    def _merging(self) -> TokenMerging | None:
        return TokenMerging(self.merged_tokens, num_kept=1) if self.merged_tokens else None

    def _tokens(
        self,
        images: Tensor,
        generator: torch.Generator | Tensor | None,
        merging: TokenMerging | None,
        dropout: Dropout | None = None,
        inner: list[Tensor] | None = None,
    ) -> Tensor:
        """The tokens (B, N, D) after the last block; the features of auxiliary heads are added to `inner`."""
        sites = dropout_sites(self, images, num_blocks=len(self.blocks), dropout=dropout)
        keep = keep_factors(
            self, images, num_blocks=len(self.blocks), rate=self.drop_path, num_dims=3, generator=generator
        )
        grid = self.patch_embed(images)
        patches = grid.flatten(2).transpose(1, 2)
        positions = per_image(self._positions(grid.shape[-2], grid.shape[-1]), grid.shape[0])
        tokens = sites.embed(torch.cat([per_image(self.class_token, grid.shape[0]), patches], 1) + positions)
        for number, (block, factors, dropped) in enumerate(zip(self.blocks, keep, sites.blocks, strict=True), start=1):
            tokens = block(tokens, factors, dropped, merging)
            if inner is not None and number in self.auxiliary_blocks:
                inner.append(_mean(tokens, merging))
        return tokens

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Positions (1, N, D) for a grid of patches; the class token's position does not depend on the grid."""
        if (rows, columns) == (self.side, self.side):
            return self.position
        grid = self.position[0, 1:].reshape(self.side, self.side, -1)
        return torch.cat([self.position[:, :1], resize_positions(grid, rows, columns).flatten(0, 1)[None]], 1)


def _mean(tokens: Tensor, merging: TokenMerging | None) -> Tensor:
    """Mean over the patch tokens of (B, N, D)."""
    return tokens[:, 1:].mean(1) if merging is None else merging.mean(tokens)


build_autoformer = ModelBuilder(AutoFormer, AutoFormerSpace)
"""The `models` plug-in of AutoFormer."""
