"""Dropout with hashed masks: the share of dropped values, and the independence of masks."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from trainers.models.dropout import BlockDropout, Dropout, DropoutSite, dropout_sites

IMAGES = torch.zeros(1, 3, 4, 4)


def site_list(rate: float | Tensor, seed: int | Tensor = 0, num_blocks: int = 2) -> list[DropoutSite]:
    """Every site of a model, the embedding's first."""
    dropout = Dropout(rate, torch.as_tensor(seed))
    found = dropout_sites(nn.Identity(), IMAGES, num_blocks=num_blocks, dropout=dropout)
    assert found.embedding is not None
    blocks = [block for block in found.blocks if block is not None]
    assert len(blocks) == num_blocks
    return [found.embedding, *(site for block in blocks for site in block)]


def dropped(site: DropoutSite, *shape: int) -> Tensor:
    return site(torch.ones(shape)) == 0


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_values_is_the_rate_and_the_mean_is_preserved(rate: float) -> None:
    count = 10**6
    five_deviations = 5 * (rate * (1 - rate) / count) ** 0.5 + 2**-16
    for site in site_list(rate):
        values = site(torch.ones(count))
        assert (values == 0).float().mean().item() == pytest.approx(rate, abs=five_deviations)
        assert values.double().mean().item() == pytest.approx(1.0, abs=five_deviations / (1 - rate))
        kept = values[values != 0]
        assert torch.equal(kept, kept[:1].expand_as(kept))


@pytest.mark.parametrize("seeds", [(0, 1), (0, 2**32), (-1, 0), (7, 7)])
def test_masks_of_two_sites_or_seeds_are_independent(seeds: tuple[int, int]) -> None:
    rate, count = 0.3, 10**5
    masks = [dropped(site, count).float() for seed in dict.fromkeys(seeds) for site in site_list(rate, seed)]
    correlations = torch.corrcoef(torch.stack(masks)).fill_diagonal_(0)
    assert correlations.abs().max() < 5 * count**-0.5


def test_neighbours_rows_and_images_have_independent_masks() -> None:
    rate = 0.3
    mask = dropped(site_list(rate)[3], 64, 65, 48).float() - rate
    columns, rows, images = mask.flatten(0, 1), mask.transpose(1, 0).flatten(1), mask.flatten(1)
    for parts in (columns.T, rows, images):
        correlations = torch.corrcoef(parts).fill_diagonal_(0)
        assert correlations.abs().max() < 6 * parts.shape[1] ** -0.5
    shares = mask.mean((1, 2)) / (rate * (1 - rate) / (65 * 48)) ** 0.5
    assert shares.std().item() == pytest.approx(1.0, abs=0.4)


def test_masks_of_the_first_images_do_not_depend_on_the_number_of_images() -> None:
    (site, *_) = site_list(0.4)
    assert torch.equal(dropped(site, 5, 3, 7)[:2], dropped(site, 2, 3, 7))


def test_known_masks_stay_as_they_are() -> None:
    (_, site, *_) = site_list(0.5, 42)
    found = "".join(str(int(kept)) for kept in ~dropped(site, 40))
    assert found == "1000000011010000100110011010001010111110"


def test_stacked_rates_and_seeds_give_the_masks_of_each_alone() -> None:
    rates, seeds = torch.tensor([0.0, 0.25, 0.6]), torch.tensor([3, 3, -(2**40)])
    values = torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(0))

    def last(rate: Tensor, seed: Tensor, values: Tensor) -> Tensor:
        return site_list(rate, seed)[-1](values)

    found = vmap(last)(rates, seeds, values)
    for index in range(3):
        assert torch.equal(found[index], last(rates[index], seeds[index], values[index]))
        if index:
            assert torch.equal(found[index], site_list(float(rates[index]), seeds[index])[-1](values[index]))
    assert torch.equal(found[0], values[0])


def test_values_keep_their_dtype() -> None:
    (site, *_) = site_list(0.5)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert site(torch.ones(8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"dropout rate must lie in \[0, 1\), but got"):
        site_list(rate)


def test_nothing_is_dropped_in_evaluation_without_dropout_or_at_rate_zero() -> None:
    nothing = (None, [None, None])
    dropout = Dropout(0.5, torch.tensor(0))
    assert dropout_sites(nn.Identity().eval(), IMAGES, num_blocks=2, dropout=dropout) == nothing
    assert dropout_sites(nn.Identity(), IMAGES, num_blocks=2, dropout=None) == nothing
    assert dropout_sites(nn.Identity(), IMAGES, num_blocks=2, dropout=dropout._replace(rate=0.0)) == nothing
    assert isinstance(dropout_sites(nn.Identity(), IMAGES, num_blocks=1, dropout=dropout).blocks[0], BlockDropout)
