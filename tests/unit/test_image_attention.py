"""What models tell of their attention to parts of an image, and the targets of mixed images that follow it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.protocols import attends_to_image, is_block
from search_spaces.base import ImageTask
from tests.unit.test_losses_in_training import SPACES
from tests.unit.test_memory import batch_of
from tests.unit.training import CPU, configuration, run
from trainers.models.as_vit_layers import WindowAttention
from trainers.models.building import build_model
from trainers.models.image_attention import grid_attention
from trainers.training import companions
from trainers.training.companions import watched_attention
from trainers.training.step import learn

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
MIXING = {"name": "maskmix", "labels": "attention"}


@pytest.mark.parametrize("space", SPACES)
def test_the_shares_of_all_parts_sum_to_one(space: str) -> None:
    model = build_model(SPACES[space], TASK, seed=0, device=CPU)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with watched_attention(model) as seen:
        model(images)
    (attention,) = seen
    assert attention.shape[0] == 3
    assert attention.shape[1] == attention.shape[2]
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum((1, 2)), torch.ones(3))


@pytest.mark.parametrize("space", SPACES)
def test_indifferent_queries_attend_to_all_parts_alike(space: str) -> None:
    model = build_model(SPACES[space], TASK, seed=0, device=CPU)
    last = [module for module in model.modules() if is_block(module)][-1]
    attention: Any = last.attn
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.zero_()
    with watched_attention(model) as seen:
        model(torch.randn(2, 1, 32, 32))
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 1 / seen[0][0].numel()))


@pytest.mark.parametrize(("by_class_token", "expected"), [(True, [0.5, 0.25, 0.125, 0.125]), (False, [0.25] * 4)])
def test_the_tokens_that_the_classifier_reads_are_the_queries(by_class_token: bool, expected: list[float]) -> None:
    weights = torch.zeros(1, 1, 5, 5)
    weights[..., 0, :] = torch.tensor([0.2, 0.4, 0.2, 0.1, 0.1])
    weights[..., 1:, :] = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    found = grid_attention(weights, num_class_tokens=1, by_class_token=by_class_token)
    torch.testing.assert_close(found, torch.tensor(expected).view(1, 2, 2))


def test_a_class_token_that_sees_only_itself_leaves_equal_shares() -> None:
    weights = torch.eye(5).expand(2, 3, 5, 5)
    found = grid_attention(weights, num_class_tokens=1, by_class_token=True)
    torch.testing.assert_close(found, torch.full((2, 2, 2), 0.25))


@pytest.mark.parametrize(("height", "across", "split"), [(4, 4, 2), (5, 5, 2), (3, 5, 2), (4, 4, 4), (3, 3, 1)])
def test_windows_give_each_token_what_the_tokens_of_its_window_read(height: int, across: int, split: int) -> None:
    attention = WindowAttention(8, heads=2, split=split)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(generator=generator)
    tokens = torch.randn(2, height, across, 8, generator=generator)
    found = attention.attention_received(tokens)
    rows, columns = attention._window(height, across)
    expected = torch.zeros(2, height, across)
    whole = WindowAttention(8, heads=2, split=1)
    whole.load_state_dict(attention.state_dict())
    for top in range(0, height, rows):
        for left in range(0, across, columns):
            window = tokens[:, top : top + rows, left : left + columns]
            weights = whole.attention_weights(window)[:, 0]  # (B, heads, n, n) of this window alone
            expected[:, top : top + rows, left : left + columns] = weights.mean(1).sum(1).view(window.shape[:3])
    torch.testing.assert_close(found, expected / (height * across))


def test_a_model_whose_tokens_are_merged_tells_nothing_and_is_refused(tmp_path: Path) -> None:
    merged = f"{SPACES['autoformer']}|merged_tokens=2"
    assert not attends_to_image(build_model(merged, TASK, seed=0, device=CPU))
    config = configuration(recipe={"mixing": MIXING}).model_copy(update={"topology": merged})
    with pytest.raises(ValueError, match="`merged_tokens`"):
        run(config, tmp_path)


@pytest.mark.parametrize("space", SPACES)
def test_a_step_learns_the_targets_of_the_attention_in_its_own_forward_pass(
    space: str, caplog: pytest.LogCaptureFixture
) -> None:
    companions.say_there_is_one_part.cache_clear()
    recipe = {"batch_size": 18, "mixing": MIXING, "label_smoothing": 0.1}
    batch = batch_of(space, recipe)
    assert batch.mixture is not None
    with torch.no_grad():
        for name, parameter in batch.row.model.named_parameters():
            parameter.mul_(40.0 if "qkv" in name else 1.0)  # fresh models attend to all parts alike
    model = copy.deepcopy(batch.row.model).train()
    with watched_attention(model) as seen:
        logits = model(batch.images)
    own, partner = batch.mixture.own, batch.mixture.partner
    kept = torch.nn.functional.adaptive_avg_pool2d(batch.mixture.kept.float()[:, None], seen[0].shape[1:])[:, 0]
    by_area = batch.mixture.kept.float().mean((1, 2))
    by_attention = (kept * seen[0]).sum((1, 2))
    target = by_area[:, None] * own + (1 - by_area[:, None]) * partner
    cosine = torch.nn.functional.cosine_similarity(target, logits.detach().softmax(1))
    share = (cosine * by_attention + (1 - cosine) * by_area)[:, None]
    follows_area = torch.allclose(share[:, 0], by_area, atol=1e-3)
    assert follows_area == (seen[0][0].numel() == 1)  # the last grid of as-vit has one token at 32 px
    assert space != "autoformer" or not follows_area
    smooth = 0.9 * (share * own + (1 - share) * partner) + 0.1 / 10
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    (found,) = learn([batch])
    assert ("one token" in caplog.text) == follows_area
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
