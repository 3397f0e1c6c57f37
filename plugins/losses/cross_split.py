"""CrossSplit: two models learn from one half of the images each, with labels softened by the other model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.losses.teaching import peer_of
from plugins.losses.visits import mean_of_visits
from plugins.protocols import LossContext, LossInput, PluginCard

if TYPE_CHECKING:
    from torch import Tensor

_HALF, _CLASS, _DIVERGENCE = "half", "class", "divergence"
_UNSEEN = -1.0
_TRUSTS = ((20 / 300, 0.6), (30 / 300, 0.8))
"""How much the other model may change a label, until a fraction of the training after the warm-up; 1 afterwards. The
authors' epochs of 300."""


def softening(divergence: "Tensor", low: "Tensor", high: "Tensor", *, trust: float) -> "Tensor":
    """Weight of the other model in a label, `trust * (normalised divergence - 1/2) + 1/2`, shape (B,).

    Args:
        divergence: Jensen-Shannon divergence of each label from the other model's prediction, shape (B,).
        low: Smallest divergence in the class of each image, shape (B,).
        high: Largest divergence in the class of each image, shape (B,).
        trust: How far the weight may depart from 1/2.
    """
    span = (high - low).clamp(min=1e-12)
    return trust * (((divergence - low) / span).clamp(0, 1) - 0.5) + 0.5


def label_divergence(targets: "Tensor", probabilities: "Tensor") -> "Tensor":
    """Jensen-Shannon divergence of each target (B, classes) from a prediction (B, classes), shape (B,)."""
    import torch

    middle = (targets + probabilities) / 2
    parts = [torch.special.xlogy(one, one) - torch.special.xlogy(one, middle) for one in (targets, probabilities)]
    both: Tensor = parts[0] + parts[1]
    return both.sum(1) / 2


@dataclass(frozen=True, kw_only=True)
class CrossSplit:
    """Cross-entropy with the sharpened mixture of label and other model, over a model's half of each batch."""

    card: ClassVar[PluginCard] = PluginCard(
        source="Kim et al. 2023, CrossSplit, arXiv:2212.01674, Eq. 1 to 4, with constants of the authors' code. The "
        "range of divergences in a class is that of the latest visits instead of an extra pass. Left out: the "
        "semi-supervised and contrastive losses on the other half (so that a model has half of the images), two views "
        "of each image, and the ensemble of both models, of which the first one is the trial's. They take turns in "
        "every step, so that the trial is not packed, unless `together` is set. Images must not be mixed",
        cost="as `mutual`, and two numbers per training image",
        needs=("labels that may be wrong",),
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the training in which both models learn all labels as they are."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """Sharpens the softened labels: they are raised to the power of its inverse."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the halves."""
    together: bool = False
    """Computes both models as one pack, as in `mutual`."""

    @property
    def packs(self) -> bool:
        """Two models that take turns cannot be stacked with those of other trials."""
        return self.together

    @property
    def inputs(self) -> frozenset[LossInput]:
        """The other model."""
        return frozenset({LossInput.MATE if self.together else LossInput.PEER})

    def initial_state(
        self,
        num_images: int,
        num_classes: int,  # noqa: ARG002 - the protocol's signature
    ) -> "dict[str, Tensor]":
        """The model that learns from each image, 0 or 1, its class, and the latest divergence, shape (N,) each."""
        import torch

        order = torch.randperm(num_images, generator=torch.Generator().manual_seed(self.split_seed))
        half = torch.zeros(num_images, dtype=torch.int64)
        half[order[: num_images // 2]] = 1
        return {
            _HALF: half,
            _CLASS: torch.zeros(num_images, dtype=torch.int64),
            _DIVERGENCE: torch.full((num_images,), _UNSEEN),
        }

    def loss(self, logits: "Tensor", targets: "Tensor", context: LossContext) -> "Tensor":
        """Loss of each image, shape (B,): 0 for the other half, and scaled so that the mean is that of the own half."""
        from torch.nn import functional as F

        progress = context.now.progress
        if progress < self.warmup:
            return F.cross_entropy(logits, targets, reduction="none")
        peer = peer_of(context).to(logits.dtype).softmax(1)
        low, high = _ranges(self._updated(context), num_classes=peer.shape[1])
        trust = next((value for end, value in _TRUSTS if progress < self.warmup + end), 1.0)
        found = _divergences(context).to(logits.dtype)
        share = softening(found, low[context.labels], high[context.labels], trust=trust)[:, None].to(logits.dtype)
        soft = (share * peer + (1 - share) * targets) ** (1 / self.temperature)
        losses = F.cross_entropy(logits, soft / soft.sum(1, keepdim=True), reduction="none")
        is_own = (context.state[_HALF][context.indices] == context.member).to(logits.dtype)
        return losses * is_own * (len(is_own) / is_own.sum().clamp(min=1))

    def observe(self, logits: "Tensor", context: LossContext) -> None:  # noqa: ARG002 - the protocol's signature
        """Store the divergences of the step's labels."""
        for name, value in self._updated(context).items():
            context.state[name].copy_(value)

    def _updated(self, context: LossContext) -> "dict[str, Tensor]":
        """Classes and divergences (N,) after the step."""
        classes, divergences = context.state[_CLASS].clone(), context.state[_DIVERGENCE].clone()
        classes[context.indices] = context.labels
        divergences[context.indices] = _divergences(context).to(divergences.dtype)
        return {_CLASS: classes, _DIVERGENCE: divergences}


def _divergences(context: LossContext) -> "Tensor":
    """Divergence of each label from the other model's prediction, shape (B,)."""
    from torch.nn import functional as F

    peer = peer_of(context).softmax(1)
    labels = F.one_hot(context.labels, peer.shape[1]).to(peer.dtype)
    return mean_of_visits(label_divergence(labels, peer)[:, None], context.indices)[:, 0]


def _ranges(state: "dict[str, Tensor]", *, num_classes: int) -> "tuple[Tensor, Tensor]":
    """Smallest and largest known divergence of each class, shape (classes,); 0 for both in a class without any."""
    import torch

    divergences, classes = state[_DIVERGENCE], state[_CLASS]
    is_known = divergences >= 0
    nothing = torch.zeros(num_classes, dtype=divergences.dtype, device=divergences.device)
    ranges = []
    for reduce, absent in (("amin", torch.inf), ("amax", -torch.inf)):
        values = torch.where(is_known, divergences, absent)
        found = torch.full_like(nothing, absent).scatter_reduce(0, classes, values, reduce)
        ranges.append(torch.where(found.isinf(), nothing, found))
    return ranges[0], ranges[1]
