"""AZ-NAS's trainability: whether gradients keep their magnitude from one half of a block to the next."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import Candidate, PluginCard, ProxyScore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from plugins.proxies.passes import RecordedPart, RecordedPass


@dataclass(frozen=True, kw_only=True)
class AzTrainability:
    """Mean of `-s - 1 / (s + 1e-6) + 2` over the halves of all blocks; its maximum is 0, at `s` = 1.

    `s` is the largest singular value of `g_in^T g_out / (B N)`. `g_out` are random signs at the output of a block's
    attention or MLP branch with its shortcut, shape (B N, D), and `g_in` is their gradient at the input of the branch.

    All halves are measured, whereas the authors skip the first attention. Nothing is measured between stages, since the
    shape of the stream changes there. For a branch that adds nothing, `s` is about `(1 + sqrt(D / (B N)))^2`, the
    largest eigenvalue of the covariance of random signs. The score therefore depends on the batch size, and is lower
    for wide networks with few tokens.

    Source: Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232, and the authors' code for AutoFormer.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232; real images instead of Gaussian noise",
        cost="per repeat, one shared forward pass of the batch, and a separate backward pass through the activations",
        needs=("images", "a topology that merges no tokens"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""

    def score(self, candidate: Candidate) -> ProxyScore:
        from plugins.proxies.passes import score_passes

        return score_passes(self, candidate)

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import num_blocks, require_all_tokens
        from plugins.proxies.repeats import on_all_cores
        from plugins.proxies.spectra import largest_singular_value

        num_blocks(recorded)
        require_all_tokens(recorded, "az-trainability")
        seeds = torch.randint(2**62, (len(recorded.parts),), generator=recorded.generator()).tolist()
        jobs = [(part, torch.Generator().manual_seed(seed)) for part, seed in zip(recorded.parts, seeds, strict=True)]
        device = recorded.candidate.images.device.type
        scores = []
        for halves in zip(*on_all_cores(lambda job: gradient_products(*job), jobs, device=device), strict=True):
            total = torch.stack([product for product, _ in halves]).sum(0)
            largest = float(largest_singular_value(total / sum(num_tokens for _, num_tokens in halves)))
            scores.append(2 - largest - 1 / (largest + 1e-6))
        return statistics.fmean(scores)


def gradient_products(part: "RecordedPart", generator: "torch.Generator") -> Sequence[tuple["Tensor", int]]:
    """`g_in^T g_out`, (D, D), and its number of tokens, for both halves of every block. The graph is retained."""
    import torch

    found = []
    for block in part.blocks:
        for inputs, outputs in zip(block.stream, block.stream[1:], strict=False):
            signs = torch.empty(outputs.shape, dtype=outputs.dtype).random_(0, 2, generator=generator)
            signs = signs.mul_(2).sub_(1).to(outputs.device)
            (gradient,) = torch.autograd.grad(outputs, inputs, signs, retain_graph=True)
            rows, errors = gradient.flatten(0, -2), signs.flatten(0, -2)
            found.append((rows.mT @ errors, len(rows)))
    return found
