"""The arithmetic of stacked models, against each model and torch's own AdamW alone, in float64."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from tests.unit.training import CPU, TOPOLOGY, digits
from trainers.models.building import build_model
from trainers.training.checkpoints import Checkpoint, optimizer_tensors
from trainers.training.evaluation import Normalizer, evaluate, judge, logits_of
from trainers.training.loop import build_optimizer
from trainers.training.stacked import Batch, Row, StackedModel, chunks, drop_path_factors, learn, stacked_loss

TASK = ImageTask(image_size=32, in_channels=3, num_classes=10)
TOPOLOGIES = (
    TOPOLOGY,
    "as-vit:6,2,3,2|3,4,2,1|2,2,2,1|3,1,2,1|16,4",
    "autoformer:2,2|4,1.5|32,8",
    "autoformer:2,2|16,2",  # 257 tokens: torch's fused attention
    "pit:1,1|1,2|1,2|2,4,8",
)
RECIPES = (
    Recipe(weight_decay=0.3, label_smoothing=0.2),
    Recipe(gradient_clip=None, drop_path=0.5),
    Recipe(gradient_clip=1e-2, weight_decay=0.0),
)
SIZES = (5, 3, 4)


def build(topology: str, seed: int, *, drop_path: float = 0.0, task: ImageTask = TASK) -> nn.Module:
    return build_model(topology, task, seed=seed, device=CPU, drop_path=drop_path).double()


def rows_of(topology: str) -> list[Row]:
    return [Row(build(topology, seed, drop_path=recipe.drop_path), recipe) for seed, recipe in enumerate(RECIPES)]


def batches_of(rows: Sequence[Row], step: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(step)
    batches = []
    for row, size in zip(rows, SIZES, strict=True):
        images = torch.randn(size, 3, 32, 32, dtype=torch.float64, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        keep = drop_path_factors(row, size, torch.Generator().manual_seed(step), images)
        batches.append(Batch(row=row, images=images, labels=labels, keep=keep, options={}, rate=1e-3 * (step + 1)))
    return batches


class Reference:
    """One model with torch's optimizer, as it is trained alone."""

    def __init__(self, row: Row) -> None:
        self.model = copy.deepcopy(row.model)
        self.optimizer = build_optimizer(self.model, row.recipe)

    def learn(self, batch: Batch, step: int) -> Tensor:
        recipe = batch.row.recipe
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = batch.rate
        logits = self.model(batch.images, generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
        self.optimizer.step()
        return loss.detach()


@pytest.mark.filterwarnings("error:There is a performance drop", "ignore:.*_scaled_dot_product_flash_attention_for_cpu")
@pytest.mark.parametrize("size", [1, 3], ids=["apart", "stacked"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_model_learns_what_it_learns_alone(topology: str, size: int) -> None:
    rows = rows_of(topology)
    references = [Reference(row) for row in rows]
    for step in range(3):
        batches = batches_of(rows, step)
        losses = [loss for members in chunks(batches, size) for loss in learn(members)]
        expected = [one.learn(batch, step) for one, batch in zip(references, batches, strict=True)]
        torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-9, atol=0)
    for row, reference in zip(rows, references, strict=True):
        torch.testing.assert_close(row.weights(), reference.model.state_dict(), rtol=0, atol=1e-9)
        torch.testing.assert_close(
            row.optimizer_tensors(), optimizer_tensors(reference.optimizer), rtol=1e-6, atol=1e-12
        )


def test_a_row_goes_on_from_the_state_of_the_usual_optimizer() -> None:
    rows = rows_of(TOPOLOGIES[1])
    references = [Reference(row) for row in rows]
    for reference, batch in zip(references, batches_of(rows, 0), strict=True):
        reference.learn(batch, 0)
    fresh = [Row(build(TOPOLOGIES[1], 99, drop_path=row.recipe.drop_path), row.recipe) for row in rows]
    for row, reference in zip(fresh, references, strict=True):
        row.restore(
            Checkpoint(
                epoch=1,
                weights=reference.model.state_dict(),
                optimizer=optimizer_tensors(reference.optimizer),
                history=(),
            )
        )
    batches = batches_of(fresh, 1)
    learn(batches)
    for row, reference, batch in zip(fresh, references, batches, strict=True):
        reference.learn(batch, 1)
        torch.testing.assert_close(row.weights(), reference.model.state_dict(), rtol=0, atol=1e-9)


def test_the_model_of_a_row_has_its_weights() -> None:
    row, *_ = rows_of(TOPOLOGY)
    row.values.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in row.model.parameters())


def test_a_model_whose_loss_is_not_finite_leaves_the_others_alone() -> None:
    rows, healthy = rows_of(TOPOLOGIES[1]), rows_of(TOPOLOGIES[1])
    batches = batches_of(rows, 0)
    batches[1].images.fill_(math.nan)
    losses = learn(batches)
    learn(batches_of(healthy, 0))
    assert [bool(loss.isfinite()) for loss in losses] == [True, False, True]
    for number in (0, 2):
        torch.testing.assert_close(rows[number].values, healthy[number].values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.9)])
def test_the_stacked_loss_is_that_of_each_model(smoothing: tuple[float, ...]) -> None:
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[1, 3:] = math.inf  # what fills up a batch counts nothing
    labels = torch.arange(15).view(3, 5) % 7
    losses = stacked_loss(logits, labels, SIZES, smoothing)
    for number, (size, share) in enumerate(zip(SIZES, smoothing, strict=True)):
        expected = F.cross_entropy(logits[number, :size], labels[number, :size], label_smoothing=share)
        assert losses[number].item() == pytest.approx(expected.item(), rel=1e-12)


def test_stacked_models_are_judged_as_each_alone() -> None:
    data = digits()
    rows = [Row(build(TOPOLOGY, seed, task=data.task).float(), Recipe()) for seed in range(3)]
    normalizer = Normalizer(data.mean, data.std, CPU)
    logits = torch.cat(list(logits_of(StackedModel(rows), data.validation.images, normalizer)))
    for number, row in enumerate(rows):
        found, expected = (
            judge(logits[:, number], data.validation.labels),
            evaluate(row.model, data.validation, normalizer),
        )
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.accuracy == pytest.approx(expected.accuracy, abs=1 / len(data.validation))


def test_models_that_cannot_be_stacked_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"but 2 of Sequential keeps running statistics\. Train it unpacked"):
        Row(model, Recipe())
    with pytest.raises(ValueError, match=r"drop_path=0\.1 needs a model with blocks .*, but Sequential has none"):
        Row(model[:2], Recipe(drop_path=0.1))


@pytest.mark.parametrize(("count", "size", "lengths"), [(7, 3, [2, 2, 3]), (6, 8, [6]), (4, 1, [1] * 4), (0, 3, [])])
def test_chunks_are_about_equally_long(count: int, size: int, lengths: list[int]) -> None:
    found = list(chunks(range(count), size))
    assert [len(one) for one in found] == lengths
    assert [item for one in found for item in one] == list(range(count))
