"""The optimizer step, alone and with stacked weights, against each model with torch's own optimizers, in float64."""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.protocols import Now
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from tests.rounding import assert_rounded, likely_difference, path_length, rounded
from tests.unit.training import CPU, TOPOLOGY, digits
from trainers.models.building import build_model
from trainers.training.batch import Batch, Step, chunks, drop_path_factors
from trainers.training.checkpoints import Checkpoint
from trainers.training.evaluation import Normalizer, evaluate, judge, logits_of
from trainers.training.packed import StackedModel
from trainers.training.row import Row, pack_problem
from trainers.training.step import learn

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
RATE = 1e-3
"""Learning rate of the first step; later ones are multiples."""


def build(topology: str, seed: int, *, drop_path: float = 0.0, task: ImageTask = TASK) -> nn.Module:
    return build_model(topology, task, seed=seed, device=CPU, drop_path=drop_path).double()


def rows_of(topology: str, recipes: Sequence[Recipe] = RECIPES) -> list[Row]:
    return [Row(build(topology, seed), recipe) for seed, recipe in enumerate(recipes)]


def step_of(row: Row, number: int, **changed: Any) -> Step:
    """A step with the row's recipe. The learning rate grows with `number`."""
    recipe = row.recipe
    numbers = ("weight_decay", "gradient_clip", "label_smoothing", "dropout", "drop_path", "mixing_strength")
    given = {name: getattr(recipe, name) for name in numbers}
    settings = StepSettings(
        batch_size=5,
        image_size=32,
        learning_rate=1e-3 * (number + 1),
        augmentation=recipe.augmentation,
        augmentation_strength=1.0,
        mixing=recipe.mixing,
        **{**given, **changed},
    )
    return Step(
        indices=torch.arange(5),
        weights=None,
        settings=settings,
        now=Now(epoch=1, num_epochs=1, progress=0.0, signals={}),
        augmentation_seed=number,
        mixing=None,
        drop_path=torch.Generator().manual_seed(number),
        dropout_seed=number,
    )


def batches_of(rows: Sequence[Row], number: int, **changed: Any) -> list[Batch]:
    generator = torch.Generator().manual_seed(number)
    batches = []
    for row, size in zip(rows, SIZES, strict=False):
        images = torch.randn(size, 3, 32, 32, dtype=torch.float64, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        step = step_of(row, number, **changed)
        batches.append(
            Batch(
                row=row,
                step=step,
                images=images,
                labels=labels,
                targets=None,
                weights=None,
                keep=drop_path_factors(row, step, images),
                class_counts=torch.ones(10),
            )
        )
    return batches


def torch_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of torch's optimizer under the names of checkpoints."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entries in state.items() for key, value in entries.items()}


class Reference:
    """One model with torch's optimizer, as it is trained alone."""

    def __init__(self, row: Row) -> None:
        self.model = copy.deepcopy(row.model)
        self.drop_path = row.recipe.drop_path
        parameters = [self.model.get_parameter(name) for name in row.names]
        count = row.layout.num_decayed
        groups = [{"params": parameters[:count], "weight_decay": row.recipe.weight_decay}]
        groups += [{"params": parameters[count:], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])

    def learn(self, batch: Batch, step: int) -> Tensor:
        recipe = batch.row.recipe
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = batch.step.settings.learning_rate
        self.model.drop_path = self.drop_path
        logits = self.model(batch.images, generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
        self.optimizer.step()
        return loss.detach()


def learned(batches: list[Batch]) -> list[Tensor]:
    """Losses of a step that every row takes."""
    answers = learn(batches)
    losses = [answer for answer in answers if isinstance(answer, Tensor)]
    assert len(losses) == len(answers), answers
    return losses


def num_terms(model: nn.Module, num_steps: int) -> int:
    """Number of rounded terms in training steps, each a forward and a backward pass over a batch."""
    return num_steps * (2 * path_length(model, num_tokens=257) + max(SIZES))


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], *, num_terms: int, rate: float) -> None:
    """Weights are equal within the rounding of gradients.

    AdamW divides a gradient by its own size plus 1e-8 (`eps`). A gradient that is 0 but for rounding, such as that of a
    key's bias, therefore moves its weight by the learning rate times its error over 1e-8.
    """
    assert found.keys() == expected.keys()
    bound = rate * likely_difference(num_terms) / 1e-8
    assert bound < 1e-3 * rate, "the weights must be compared much more closely than one step moves them"
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= bound, name


@pytest.mark.filterwarnings("error:There is a performance drop", "ignore:.*_scaled_dot_product_flash_attention_for_cpu")
@pytest.mark.parametrize("size", [1, 3], ids=["apart", "stacked"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_model_learns_what_it_learns_alone(topology: str, size: int) -> None:
    rows = rows_of(topology)
    references = [Reference(row) for row in rows]
    for step in range(3):
        batches = batches_of(rows, step)
        losses = [loss for members in chunks(batches, size) for loss in learned(members)]
        expected = [one.learn(batch, step) for one, batch in zip(references, batches, strict=True)]
        assert_rounded(torch.stack(losses), torch.stack(expected), num_terms(rows[0].model, step + 1))
    for row, reference in zip(rows, references, strict=True):
        terms = num_terms(row.model, 3)
        assert_same_weights(row.weights(), reference.model.state_dict(), num_terms=terms, rate=6 * RATE)
        moments, wanted = row.optimizer_tensors(), torch_state(reference.optimizer)
        assert moments.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_rounded(moments[name], value, terms, size=max(float(value.abs().max()), 1.0))


def test_a_row_goes_on_from_the_state_of_the_usual_optimizer() -> None:
    rows = rows_of(TOPOLOGIES[1])
    references = [Reference(row) for row in rows]
    for reference, batch in zip(references, batches_of(rows, 0), strict=True):
        reference.learn(batch, 0)
    fresh = [Row(build(TOPOLOGIES[1], 99), row.recipe) for row in rows]
    for row, reference in zip(fresh, references, strict=True):
        row.restore(
            Checkpoint(
                epoch=1,
                weights=reference.model.state_dict(),
                optimizer=torch_state(reference.optimizer),
                history=(),
            )
        )
    batches = batches_of(fresh, 1)
    learn(batches)
    for row, reference, batch in zip(fresh, references, batches, strict=True):
        reference.learn(batch, 1)
        terms = num_terms(row.model, 2)
        assert_same_weights(row.weights(), reference.model.state_dict(), num_terms=terms, rate=3 * RATE)


def test_the_model_of_a_row_has_its_weights() -> None:
    row, *_ = rows_of(TOPOLOGY)
    row.values.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in row.model.parameters())


def test_a_model_whose_loss_is_not_finite_leaves_the_others_alone() -> None:
    rows, healthy = rows_of(TOPOLOGIES[1]), rows_of(TOPOLOGIES[1])
    batches = batches_of(rows, 0)
    batches[1].images.fill_(math.nan)
    losses = learned(batches)
    learn(batches_of(healthy, 0))
    assert [bool(loss.isfinite()) for loss in losses] == [True, False, True]
    for number in (0, 2):
        mine, theirs = rows[number].weights(), healthy[number].weights()
        assert_same_weights(mine, theirs, num_terms=num_terms(rows[number].model, 1), rate=RATE)


def test_an_optimizer_that_raises_stops_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, healthy = rows_of(TOPOLOGIES[1]), rows_of(TOPOLOGIES[1])
    before = rows[1].values.clone()

    def update(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(rows[1], "update", update)
    answers = learn(batches_of(rows, 0))
    learned(batches_of(healthy, 0))
    assert [type(answer) for answer in answers] == [Tensor, torch.OutOfMemoryError, Tensor]
    assert torch.equal(rows[1].values, before)
    for number in (0, 2):
        assert torch.equal(rows[number].values, healthy[number].values)


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
        terms = path_length(row.model, num_tokens=64) + len(data.validation)
        assert found.loss == rounded(expected.loss, terms, torch.float32)
        assert found.accuracy == pytest.approx(expected.accuracy, abs=1 / len(data.validation))


def test_models_that_cannot_be_stacked_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    problem = pack_problem(Row(model, Recipe()))
    assert problem is not None
    assert "but 2 of Sequential keeps running statistics. Train it without a pack" in problem
    problem = pack_problem(Row(model[:2], Recipe(drop_path=0.1)))
    assert problem is not None
    assert re.search(r"drop_path=0\.1 in a pack needs a model with blocks .*, but Sequential has none", problem)


@pytest.mark.parametrize(("count", "size", "lengths"), [(7, 3, [2, 2, 3]), (6, 8, [6]), (4, 1, [1] * 4), (0, 3, [])])
def test_chunks_are_about_equally_long(count: int, size: int, lengths: list[int]) -> None:
    found = list(chunks(range(count), size))
    assert [len(one) for one in found] == lengths
    assert [item for one in found for item in one] == list(range(count))
