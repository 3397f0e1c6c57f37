"""Few-step loss: the loss of a network after a few training steps, between a training-free score and training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKWARD = 2
"""Multiply-accumulates of a backward pass, in forward passes."""


@dataclass(frozen=True, kw_only=True)
class FewStepLoss:
    """Mean cross-entropy of the batch after `steps` steps of AdamW on it; lower is better.

    Each step takes one half of the batch, alternately. The norm of the gradient is cut at 1, and there is no weight
    decay. This is not a training-free score: `training_macs` counts its work, which is reported with the score.

    Source: ours; early losses as predictors of the final accuracy: Ru et al. 2021, arXiv:2006.04492.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Ru et al. 2021 (sum of training losses), arXiv:2006.04492; here the loss after a few steps on one "
        "batch; this score trains",
        cost="per repeat, `steps` training steps of half the batch and one forward pass of the batch: about "
        "(1.5 steps + 1) MACs B multiply-accumulates for B images, that is 16 MACs B with 10 steps",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""
    steps: Annotated[int, Field(ge=1, le=20)] = 10
    """Number of training steps."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Learning rate of AdamW."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.repeats import repeat_seeds, summarize

        seeds = repeat_seeds(candidate.seed, self.repeats)
        return summarize([self.of_network(candidate.build(seed=seed), candidate) for seed in seeds])

    def of_network(self, model: "nn.Module", candidate: Candidate) -> float:
        """Train a network, which is modified, and return its loss."""
        import torch
        import torch.nn.functional as F

        images, labels = candidate.images, candidate.labels
        size = -(-len(images) // 2)
        halves = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.0)
        for step in range(self.steps):
            some, classes = halves[step % len(halves)]
            optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(model(some), classes)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            return float(F.cross_entropy(model(images), labels))

    def training_macs(self, macs: int, num_images: int) -> int:
        """Multiply-accumulates for a topology with `macs` per image and forward pass."""
        half = -(-num_images // 2)
        return self.repeats * macs * ((1 + BACKWARD) * self.steps * half + num_images)
