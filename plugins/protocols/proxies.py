"""The interfaces of training-free scores, and what they are computed from."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

from plugins.protocols.cards import PluginCard
from search_spaces.base import Costs, ImageTask, Topology

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ProxyModel(Protocol):
    """The part of a built model that proxies use. It is also a `torch.nn.Module`."""

    def forward_features(self, images: "Tensor") -> "Tensor":
        """Pooled features of images (B, C, H, W) before the final normalisation, shape (B, D)."""
        ...


@runtime_checkable
class CurveModel(ProxyModel, Protocol):
    """A model that computes the derivatives of its features along a curve of images faster than autograd does."""

    def features_along(self, directions: "Tensor", weights: "Tensor") -> "Tensor":
        """Features of linear combinations of a few images, and their derivatives, computed without normalisation.

        Args:
            directions: The `r` images that span the curve, shape (r, C, H, W).
            weights: Coefficients of the `n` points of the curve and of their first K - 1 derivatives, shape (K, n, r);
                K is 1, 2 or 3.

        Returns:
            Shape (K, n, D), without an autograd graph.
        """
        ...


def is_curve_model(module: "torch.nn.Module") -> TypeGuard[CurveModel]:
    """Whether a model computes derivatives along curves itself.

    `isinstance` tells this of a class. A single model whose options rule it out has `features_along = None`.
    """
    return isinstance(module, CurveModel) and module.features_along is not None


class TransformerBlock(Protocol):
    """A pre-norm block: `stream = x + attn(norm1(x))`, then `stream + mlp(norm2(stream))`.

    Proxies find the blocks of a model by these four names, which are customary, and register hooks on the modules. The
    inputs of `norm1` and `norm2` and the output of the block are the residual stream.
    """

    norm1: "torch.nn.Module"
    attn: "torch.nn.Module"
    """Has the linear layers `qkv` and `proj`, the number of `heads`, and `attention_weights`: from the module's inputs,
    the attention weights between the tokens of each window, shape (B, ..., heads, N, N), with rows that sum to 1. The
    signal `attention_logit` also needs `attention_logits`, the scores before the softmax."""
    norm2: "torch.nn.Module"
    mlp: "torch.nn.Module"
    """Has the linear layers `fc1` and `fc2`, with the activation module `act` between them.

    If the output of a branch is multiplied by a factor of each channel, `attn` and `mlp` apply it and have it as the
    parameter `scale.gamma`; other models have no `scale`, or `None`."""


@runtime_checkable
class AttendsToImage(Protocol):
    """An optional part of a model: how much its last block attends to each part of an image."""

    def image_attention(self, *inputs: Any) -> "Tensor":
        """Share of each part of the image in what the classifier reads from the attention of the last block.

        Args:
            inputs: Those of the attention module of the last block, in a forward pass.

        Returns:
            Shape (B, rows, columns), averaged over the heads; sums to 1 for each image.
        """
        ...


def attends_to_image(module: "torch.nn.Module") -> TypeGuard[AttendsToImage]:
    """Whether a model tells its attention to parts of an image, and has blocks.

    A single model whose tokens leave their places has `image_attention = None`.
    """
    tells = isinstance(module, AttendsToImage) and module.image_attention is not None
    return tells and any(is_block(one) for one in module.modules())


def is_block(module: "torch.nn.Module") -> TypeGuard[TransformerBlock]:
    """Whether a module has the parts of a transformer block.

    `isinstance` cannot tell: since Python 3.12, it does not find submodules.
    """
    return all(hasattr(module, name) for name in ("norm1", "attn", "norm2", "mlp"))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A topology to be scored, with everything that a proxy may use."""

    topology: Topology
    task: ImageTask
    costs: Costs
    images: "Tensor"
    """One batch of normalised training images, shape (B, C, H, W), on the scoring device and in its dtype."""
    labels: "Tensor"
    """Classes of the images, shape (B,), int64, on the same device."""
    build: Callable[..., "torch.nn.Module"]
    """`build(seed=7, normalization=True)` returns a freshly initialised `ProxyModel` on the device and in the dtype of
    the images. With `normalization=False`, the identity replaces every LayerNorm."""
    seed: int
    """Seed of the proxy's random numbers. The same seed gives the same score."""
    build_stack: "Callable[..., torch.nn.Module] | None" = field(default=None, compare=False, repr=False)
    """`build_stack(seeds=(7, 8))` returns the networks of several seeds as one `ProxyModel`, or it is `None`.

    From one batch (B, C, H, W), `forward_features` computes (R B, D): the features of the first of `R` networks, then
    of the second, and so on. `features_along` has directions (R, r, C, H, W) and results (R, K, n, D). The weights that
    differ between networks are stacked, such as (R, O, I) in a `torch.nn.Linear`."""
    companions: tuple["Proxy", ...] = field(default=(), compare=False, repr=False)
    """All proxies that score this candidate. Several of them can use the same pass of a network."""
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """Results shared between proxies, such as built networks (`plugins.proxies.repeats`). Do not modify them."""


class ProxyScore(NamedTuple):
    """A score and its spread over repeats. A non-finite value marks the topology as bad."""

    value: float
    spread: float = 0.0
    """Standard deviation (ddof 1) over the repeats; 0 if the value is exact or measured once."""


class Proxy(Protocol):
    """A training-free score.

    The class may also have `is_exact = True`: the seed has no influence, so that the score is not computed again for
    further seeds. `fitted_to` has the digests of accuracies that the score was fitted to
    (`orchestrator.evaluation.repeated_truths.accuracies_digest`), by which it cannot be judged.
    """

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]

    def score(self, candidate: Candidate) -> ProxyScore: ...


@runtime_checkable
class TrainingProxy(Protocol):
    """A proxy that trains for a few steps. It is not training-free, and its work is reported with its scores."""

    def training_macs(self, macs: int, num_images: int) -> int:
        """Multiply-accumulates of one score.

        Args:
            macs: Multiply-accumulates of the topology per image and forward pass.
            num_images: Number of images of the batch.
        """
        ...


@runtime_checkable
class PoolProxy(Protocol):
    """A score that depends on the other topologies of a pool, computed from the scores of other proxies."""

    card: ClassVar[PluginCard]
    direction: ClassVar[Literal["maximize", "minimize"]]
    parts: ClassVar[tuple[str, ...]]
    """Names of the proxies that are combined."""

    def combine(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """Compute one value per topology of the pool.

        Args:
            scores: For each part, one score per topology, oriented so that higher is better. A failed score is not
                finite.

        Returns:
            One value per topology, not finite if any of its parts is not.
        """
        ...
