"""As-ViT as a torch module, built from its topology."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from search_spaces.as_vit import PATCH_STRIDE, AsViTSpace, AsViTTopology
from search_spaces.base import ImageTask
from trainers.models.as_vit_curve import grid_features_along
from trainers.models.as_vit_layers import PatchEmbedding, PatchMerging, StageBlocks, WindowAttention
from trainers.models.assembly import ModelBuilder, Source, draw_convolutions, draw_linears
from trainers.models.auxiliary_heads import AuxiliaryHeads, with_auxiliary
from trainers.models.block_options import OptionalParts
from trainers.models.blocks import Block, SelfAttention, keep_factors, layer_norm
from trainers.models.dropout import Dropout, DropoutSites, dropout_sites
from trainers.models.stacking import Linear
from trainers.models.token_merging import TokenMerging

INIT_STD = 0.02


class AsViT(nn.Module):
    """As-ViT: four stages of windowed attention on increasingly coarse grids, without position embeddings.

    Legend: `B` images of (C, H, W), `D` width of the last stage.

    Linear weights are drawn from a normal distribution with standard deviation 0.02 (the authors truncate it at 100
    standard deviations, which has no effect) and their biases are 0. The convolution has torch's initialisation, as in
    the authors' code.

    Source: Chen et al. 2022, As-ViT, arXiv:2202.11921; head (linear, tanh, linear) and padding as in the authors' code.
    """

    initial_exponent: ClassVar[float] = 0.0
    """Exponent of the fan-in in the standard deviation of initial linear weights
    (`plugins.protocols.NetworkDescription`)."""

    def __init__(
        self,
        topology: AsViTTopology,
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
        widths, heads = topology.widths, topology.stage_heads
        parts = OptionalParts(topology.options, num_blocks=sum(topology.depths), normalization=normalization)
        self.stages = nn.ModuleList()
        for index, stage in enumerate(topology.stages):
            width = widths[index]
            embed: PatchEmbedding | PatchMerging
            if index == 0:
                embed = PatchEmbedding(
                    task.in_channels, width, kernel=stage.kernel, stride=PATCH_STRIDE, normalization=normalization
                )
            else:
                embed = PatchMerging(widths[index - 1], width, kernel=stage.kernel, normalization=normalization)
            blocks = [
                Block(
                    width,
                    self._attention(width, heads[index], stage.split, parts, is_last=index == len(widths) - 1),
                    hidden=stage.expansion * width,
                    normalization=normalization,
                    parts=parts,
                )
                for _ in range(stage.depth)
            ]
            self.stages.append(StageBlocks(embed, blocks))
        last = widths[-1]
        self.norm = layer_norm(last, normalization=normalization)
        self.head = nn.Sequential(Linear(last, last), nn.Tanh(), Linear(last, task.num_classes))
        self.depths = topology.depths
        draw_linears(self, generator, std=INIT_STD)
        draw_convolutions(self, generator)
        if topology.auxiliary_widths:
            self.auxiliary = AuxiliaryHeads(topology.auxiliary_widths, task.num_classes, normalization=normalization)
            draw_linears(self.auxiliary, generator, std=INIT_STD)

    def forward(
        self,
        images: Tensor,
        *,
        generator: torch.Generator | Tensor | None = None,
        dropout: Dropout | None = None,
        stride_factor: int = 1,
        auxiliary: bool = False,
    ) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Args:
            images: A batch of normalised images.
            generator: Source of the drop-path masks, on the CPU, needed in training mode if `drop_path` is above 0; or
                the factors of `draw_keep_factors`, which apply regardless of `drop_path`.
            dropout: Rate and seed of dropout in training mode; `None` drops nothing.
            stride_factor: Factor of the stride and dilation of the first projection. Each side of every token grid is
                divided by it (rounded up); the weights are the same.
            auxiliary: Whether to return (B, 1 + heads, classes): the logits, then those of the auxiliary heads.
        """
        merging = self._merging()
        inner: list[Tensor] | None = [] if auxiliary else None
        tokens = self.norm(self._tokens(images, generator, merging, dropout, stride_factor, inner))
        logits: Tensor = self.head(_mean(tokens, merging))
        return logits if inner is None else with_auxiliary(logits, self.auxiliary, inner)

    def forward_features(self, images: Tensor, *, generator: torch.Generator | Tensor | None = None) -> Tensor:
        """Features (B, D): the mean of the last stage's tokens before the final norm."""
        merging = self._merging()
        return _mean(self._tokens(images, generator, merging), merging)

    def image_attention(self, *inputs: Any) -> Tensor:
        """See `plugins.protocols.AttendsToImage`: what the tokens read, whose mean is classified."""
        attention = cast("Any", self.stages[-1]).blocks[-1].attn
        received: Tensor = cast("WindowAttention", attention).attention_received(*inputs)
        return received

    def features_along(self, directions: Tensor, weights: Tensor) -> Tensor:
        """Features and derivatives along a curve of images, without norms; see `plugins.protocols.CurveModel`."""
        return grid_features_along([cast("StageBlocks", stage) for stage in self.stages], directions, weights)

    def _attention(self, width: int, heads: int, split: int, parts: OptionalParts, *, is_last: bool) -> SelfAttention:
        """Attention in windows of a grid; of a sequence in the last stage if its tokens are merged."""
        if is_last and self.merged_tokens:
            return SelfAttention(width, heads=heads, head_width=width // heads, parts=parts)
        return WindowAttention(width, heads=heads, split=split, parts=parts)

    def _merging(self) -> TokenMerging | None:
        return TokenMerging(self.merged_tokens, num_kept=0) if self.merged_tokens else None

    def _tokens(
        self,
        images: Tensor,
        generator: torch.Generator | Tensor | None,
        merging: TokenMerging | None,
        dropout: Dropout | None = None,
        stride_factor: int = 1,
        inner: list[Tensor] | None = None,
    ) -> Tensor:
        """The last stage's tokens, (B, H, W, D), or (B, N, D) if they are merged.

        The features of auxiliary heads are added to `inner`.
        """
        keep = self._keep_factors(images, generator)
        sites = dropout_sites(self, images, num_blocks=sum(self.depths), dropout=dropout)
        embedding = {"stride_factor": stride_factor} if stride_factor > 1 else {}
        tokens, start = images, 0
        for stage, depth in zip(self.stages, self.depths, strict=True):
            some = slice(start, start + depth)
            dropped = DropoutSites(sites.embedding if start == 0 else None, sites.blocks[some])
            is_last = start + depth == sum(self.depths)
            tokens = stage(tokens, keep[some], dropped, merging if is_last else None, **embedding)
            if inner is not None and not is_last:
                inner.append(tokens.mean((1, 2)))
            embedding = {}
            start += depth
        return tokens

    def _keep_factors(self, images: Tensor, generator: torch.Generator | Tensor | None) -> Sequence[Tensor | None]:
        """The `keep` of each block, (2, B, 1, 1, 1)."""
        return keep_factors(
            self, images, num_blocks=sum(self.depths), rate=self.drop_path, num_dims=4, generator=generator
        )


def _mean(tokens: Tensor, merging: TokenMerging | None) -> Tensor:
    """Mean over the tokens, (B, D)."""
    return tokens.mean((1, 2)) if merging is None else merging.mean(tokens)


build_as_vit = ModelBuilder(AsViT, AsViTSpace)
"""The `models` plug-in of As-ViT."""


def from_authors_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights saved by the authors' code for `AsViT.load_state_dict`.

    The authors store the merging between two stages with the earlier stage (`layers.0.downsample`), we with the later
    one (`stages.1.embed`). Its patches are ordered by channel, row and column there, by column, row and channel here.
    """
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            parts[:1] = ["stages", "0", "embed"]
        elif parts[0] == "layers" and parts[2] == "downsample":
            value = _reorder_patches(value, width=state[f"layers.{parts[1]}.blocks.0.attn.proj.bias"].numel())
            parts[:3] = ["stages", str(int(parts[1]) + 1), "embed"]
        elif parts[0] == "layers":
            parts[0] = "stages"
            if parts[4] == "mlps":
                parts[4:7] = ["norm2"] if parts[6] == "0" else ["mlp"]
        renamed[".".join(parts)] = value
    return renamed


def _reorder_patches(weight: Tensor, *, width: int) -> Tensor:
    """Reorder the last dimension from (width, row, column) to (column, row, width)."""
    kernel = math.isqrt(weight.shape[-1] // width)
    return weight.view(*weight.shape[:-1], width, kernel, kernel).transpose(-3, -1).flatten(-3)
