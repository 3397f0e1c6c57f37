"""AZ-NAS's trainability: whether gradients keep their magnitude from one half of a block to the next."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from plugins.protocols import PluginCard
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from plugins.proxies.passes import RecordedPart, RecordedPass

_CHUNK = 16
"""Images of noise in one pass, so that memory does not grow with their number."""


@dataclass(frozen=True, kw_only=True)
class AzTrainability(PassProxy):
    """Mean of `-s - 1 / (s + 1e-6) + 2` over the halves of all blocks; its maximum is 0, at `s` = 1.

    `s` is the largest singular value of `g_in^T g_out / (B N)`. `g_out` are random signs at the output of a block's
    attention or MLP branch with its shortcut, shape (B N, D), and `g_in` is their gradient at the input of the branch.

    All halves are measured, whereas the authors skip the first attention. Nothing is measured between stages, since the
    shape of the stream changes there.

    The score is mostly a noise floor: for a branch that adds nothing, `s` is about `(1 + sqrt(D / (B N)))^2`, the
    largest eigenvalue of the covariance of random signs. With 16 images, this is 80 to 96 % of `s`, and the floor
    alone, without any network, ranks PiT topologies like the score (tau 0.97). `num_noise_images: 64` takes as many
    images as the authors, `without_floor` divides `s` by the floor. The sign is that of the authors' code.

    Source: Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232, and the authors' code for AutoFormer.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source="Lee & Ham 2024 (AZ-NAS), arXiv:2403.19232; real images instead of Gaussian noise, and as many "
        "as the stage's batch has instead of 64; mostly a noise floor that depends on width, tokens and batch",
        cost="per repeat, one shared forward pass of the batch, and a separate backward pass through the activations",
        needs=("images", "a topology that merges no tokens"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    num_noise_images: Annotated[int, Field(ge=2)] | None = None
    """Number of images of Gaussian noise to take instead of the batch, in chunks of 16; the authors use 64."""
    without_floor: bool = False
    """Whether to divide `s` by the value of a branch that adds nothing, so that the score measures the network only."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network."""
        import torch

        from plugins.proxies.block_features import num_blocks, require_all_tokens
        from plugins.proxies.repeats import on_all_cores
        from plugins.proxies.spectra import largest_singular_value

        num_blocks(recorded)
        require_all_tokens(recorded, "az-trainability")
        generator = recorded.generator()
        found: list[Sequence[tuple[Tensor, int]]] = []
        for passed in self._passes(recorded, generator):
            seeds = torch.randint(2**62, (len(passed.parts),), generator=generator).tolist()
            jobs = [(part, torch.Generator().manual_seed(seed)) for part, seed in zip(passed.parts, seeds, strict=True)]
            device = passed.candidate.images.device.type
            found += on_all_cores(lambda job: gradient_products(*job), jobs, device=device)
        scores = []
        for halves in zip(*found, strict=True):
            total, num_tokens = (
                torch.stack([product for product, _ in halves]).sum(0),
                sum(count for _, count in halves),
            )
            largest = float(largest_singular_value(total / num_tokens))
            if self.without_floor:
                largest /= (1 + math.sqrt(len(total) / num_tokens)) ** 2
            scores.append(2 - largest - 1 / (largest + 1e-6))
        return statistics.fmean(scores)

    def _passes(self, recorded: "RecordedPass", generator: "torch.Generator") -> Iterator["RecordedPass"]:
        """The recorded pass, or passes of the same network over chunks of noise, one at a time."""
        import torch

        from plugins.proxies.passes import record_pass

        if self.num_noise_images is None:
            yield recorded
            return
        images = recorded.candidate.images
        left = self.num_noise_images
        while left:
            count = left if left <= _CHUNK + 1 else _CHUNK  # a pass has two parts, so that none has a single image
            noise = torch.randn((count, *images.shape[1:]), generator=generator, dtype=images.dtype).to(images.device)
            labels = torch.zeros(count, dtype=torch.long, device=images.device)
            yield record_pass(replace(recorded.candidate, images=noise, labels=labels), recorded.seed)
            left -= count


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
