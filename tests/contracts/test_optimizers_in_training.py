"""Rules for every optimizer in the training step, on models of all spaces: resumed in the middle, and in a pack."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.registry import available
from tests.unit.training import CPU, configuration, digits
from trainers.config import Configuration
from trainers.training.batch import Step, prepare
from trainers.training.checkpoints import Checkpoint
from trainers.training.course import Course
from trainers.training.drawn_classes import cross_entropy_of_drawn, draw_numbers
from trainers.training.row import Row
from trainers.training.set_up import make_row, training_images
from trainers.training.step import learn

TOPOLOGIES = {
    "as-vit": "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4",
    "autoformer": "autoformer:2,2|2,2|16,8",
    "pit": "pit:1,1|1,2|1,2|2,4,8",
}
SETTINGS: dict[str, dict[str, Any]] = {"sophia": {"period": 2}}
"""Settings with which something happens within a few steps."""
NUM_STEPS = 4
SOURCE = training_images(digits(), CPU)


def config_of(name: str, space: str, *, seed: int = 5) -> Configuration:
    recipe = {
        "optimizer": {"name": name, **SETTINGS.get(name, {})},
        "rates": {"name": "layer-decay", "decay": 0.9},
        "batch_size": 12,
    }
    made = configuration(recipe=recipe)
    return made.model_copy(update={"topology": TOPOLOGIES[space], "seed": seed})


def row_and_steps(config: Configuration) -> tuple[Row, list[Step]]:
    row = make_row(config, digits(), CPU)
    course = Course.lay_out(config, digits(), row.model, CPU)
    return row, list(course.steps(1, None, []))[:NUM_STEPS]


def take(rows: Sequence[Row], steps: Sequence[Step]) -> list[Tensor]:
    """The losses of one step of each row, computed together."""
    answers = learn(prepare(rows, steps, SOURCE))
    assert all(isinstance(answer, Tensor) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Tensor)]


@pytest.mark.parametrize("space", list(TOPOLOGIES))
@pytest.mark.parametrize("name", sorted(available("optimizers")))
def test_a_training_resumed_between_steps_and_one_in_a_pack_have_the_same_curve(name: str, space: str) -> None:
    config = config_of(name, space)
    straight, steps = row_and_steps(config)
    curve = [float(take([straight], [step])[0]) for step in steps]

    broken, _ = row_and_steps(config)
    found = [float(take([broken], [step])[0]) for step in steps[:2]]
    saved = Checkpoint(
        epoch=1,
        weights={key: value.clone() for key, value in broken.weights().items()},
        optimizer={key: value.clone() for key, value in broken.optimizer_tensors().items()},
        history=(),
    )
    resumed, _ = row_and_steps(config)
    resumed.restore(saved)
    found += [float(take([resumed], [step])[0]) for step in steps[2:]]
    assert found == curve
    assert torch.equal(resumed.values, straight.values)

    packed, _ = row_and_steps(config)
    other, other_steps = row_and_steps(config_of(name, space, seed=6))
    together = [float(take([packed, other], pair)[0]) for pair in zip(steps, other_steps, strict=True)]
    assert together == pytest.approx(curve, rel=1e-4)
    assert not torch.equal(straight.values, make_row(config, digits(), CPU).values)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_the_estimate_of_the_curvature_uses_classes_drawn_from_the_predictions(num_rows: int) -> None:
    """In a pack, one row needs an estimate and one does not."""
    row, steps = row_and_steps(config_of("sophia", "autoformer"))
    others = [row_and_steps(config_of("adamw", "autoformer", seed=6)) for _ in range(num_rows - 1)]
    images = prepare([row], [steps[0]], SOURCE)[0].images
    logits = row.model(images)
    draws = draw_numbers(steps[0].augmentation_seed, len(images))
    classes = [
        next((index for index, total in enumerate(cumulative.tolist()) if total > draw), 9)
        for cumulative, draw in zip(logits.softmax(-1).cumsum(-1), draws.tolist(), strict=True)
    ]
    loss = F.cross_entropy(logits, torch.tensor(classes))
    gradients = torch.autograd.grad(loss, row.parameters())
    take([row, *(other for other, _ in others)], [steps[0], *(own[0] for _, own in others)])
    curvatures = row.layout.views(row.state["curvature"])
    for name, gradient, curvature in zip(row.names, gradients, curvatures, strict=True):
        expected = 0.01 * len(images) * gradient.square()
        torch.testing.assert_close(curvature, expected, rtol=1e-4, atol=1e-9, msg=name)


def test_drawn_classes_have_the_frequencies_of_the_predictions() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    logits = probabilities.log().clamp(min=-30).expand(4000, 4)
    entropy = -(probabilities[[0, 2, 3]] * probabilities[[0, 2, 3]].log()).sum()
    assert float(cross_entropy_of_drawn(logits, draws)) == pytest.approx(float(entropy), abs=0.05)
