"""As-ViT as a torch module, built from its topology."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from search_spaces.as_vit import PATCH_STRIDE, AsViTSpace, AsViTTopology
from search_spaces.base import ImageTask
from trainers.models.as_vit_curve import grid_features_along
from trainers.models.as_vit_layers import PatchEmbedding, PatchMerging, StageBlocks, WindowAttention
from trainers.models.assembly import ModelBuilder, draw_convolutions, draw_linears
from trainers.models.blocks import Block, Linear, keep_factors, layer_norm
from trainers.models.dropout import Dropout, DropoutSites, dropout_sites

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
        generator: torch.Generator,
        drop_path: float = 0.0,
        normalization: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        widths, heads = topology.widths, topology.stage_heads
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
                    WindowAttention(width, heads=heads[index], split=stage.split),
                    hidden=stage.expansion * width,
                    normalization=normalization,
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

    def forward(
        self,
        images: Tensor,
        *,
        generator: torch.Generator | Tensor | None = None,
        dropout: Dropout | None = None,
        stride_factor: int = 1,
    ) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Args:
            images: A batch of normalised images.
            generator: Source of the drop-path masks, on the CPU, needed in training mode if `drop_path` is above 0; or
                the factors of `draw_keep_factors`, which apply regardless of `drop_path`.
            dropout: Rate and seed of dropout in training mode; `None` drops nothing.
            stride_factor: Factor of the stride and dilation of the first projection. Each side of every token grid is
                divided by it (rounded up); the weights are the same.
        """
        logits: Tensor = self.head(self.norm(self._tokens(images, generator, dropout, stride_factor)).mean((1, 2)))
        return logits

    def forward_features(self, images: Tensor, *, generator: torch.Generator | Tensor | None = None) -> Tensor:
        """Features (B, D): the mean of the last stage's tokens before the final norm."""
        return self._tokens(images, generator).mean((1, 2))

    def features_along(self, directions: Tensor, weights: Tensor) -> Tensor:
        """Features and derivatives along a curve of images, without norms; see `plugins.protocols.CurveModel`."""
        return grid_features_along([cast("StageBlocks", stage) for stage in self.stages], directions, weights)

    def _tokens(
        self,
        images: Tensor,
        generator: torch.Generator | Tensor | None,
        dropout: Dropout | None = None,
        stride_factor: int = 1,
    ) -> Tensor:
        """The last stage's tokens, (B, H, W, D)."""
        keep = self._keep_factors(images, generator)
        sites = dropout_sites(self, images, num_blocks=sum(self.depths), dropout=dropout)
        embedding = {"stride_factor": stride_factor} if stride_factor > 1 else {}
        tokens, start = images, 0
        for stage, depth in zip(self.stages, self.depths, strict=True):
            some = slice(start, start + depth)
            dropped = DropoutSites(sites.embedding if start == 0 else None, sites.blocks[some])
            tokens = stage(tokens, keep[some], dropped, **embedding)
            embedding = {}
            start += depth
        return tokens

    def _keep_factors(self, images: Tensor, generator: torch.Generator | Tensor | None) -> Sequence[Tensor | None]:
        """The `keep` of each block, (2, B, 1, 1, 1)."""
        return keep_factors(
            self, images, num_blocks=sum(self.depths), rate=self.drop_path, num_dims=4, generator=generator
        )


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
