"""Classifiers of inner features: their place, loss and costs, and that only training knows of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plugins.registry import load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.options import BlockOptions
from tests.rounding import likely_difference
from tests.unit.test_exporting import predictor_of
from tests.unit.test_step import TASK as STEP_TASK
from tests.unit.test_step import batches_of, rows_of
from tests.unit.test_weight_fitting import fit, source_of
from tests.unit.training import CPU, Recorder, configuration, digits, run
from trainers.config import TrainTask
from trainers.export_formats import ExportFormat
from trainers.exporting import export_model, exported_program
from trainers.models.building import build_model, topology_costs
from trainers.training.packed import train_packed
from trainers.training.step import learn

TASK = ImageTask(image_size=32, in_channels=1, num_classes=4)
IMAGES = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
TOPOLOGIES = {
    "as-vit": "as-vit:4,4,2,1|2,4,2,2|2,2,2,1|2,1,2,1|16,4|deep_supervision",
    "autoformer": "autoformer:2,2|2,2|1,2|2,1|8,8|deep_supervision,merged_tokens=2",
    "pit": "pit:1,1|1,2|1,2|2,4,8|deep_supervision",
}
WIDTHS = {"as-vit": (4, 8, 16), "autoformer": (8, 8), "pit": (4, 8)}
SPACES = sorted(TOPOLOGIES)


@pytest.mark.parametrize("space", SPACES)
def test_costs_count_the_heads_in_training(space: str) -> None:
    model = build_model(TOPOLOGIES[space], TASK, seed=0, device=CPU).eval()
    assert topology_costs(TOPOLOGIES[space], TASK).parameters == sum(one.numel() for one in model.parameters())
    for options in ({}, {"auxiliary": True}):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(IMAGES[:1], **options)
        assert topology_costs(TOPOLOGIES[space], TASK, **options).macs == counter.get_total_flops() / 2
    heads = [module for name, module in model.named_modules() if name.endswith("classify")]
    assert tuple(head.in_features for head in heads if isinstance(head, nn.Linear)) == WIDTHS[space]


@pytest.mark.parametrize("space", SPACES)
def test_logits_of_the_heads_are_those_of_pooled_inner_tokens(space: str) -> None:
    model: Any = build_model(TOPOLOGIES[space], TASK, seed=0, device=CPU).eval()
    outputs: list[Tensor] = []
    last = {
        "as-vit": lambda: [stage.blocks[-1] for stage in model.stages[:-1]],
        "autoformer": lambda: [model.blocks[0], model.blocks[1]],
        "pit": lambda: [stage[-1] for stage in model.stages[:-1]],
    }[space]()
    for block in last:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        found = model(IMAGES, auxiliary=True)
    assert found.shape == (3, 1 + len(WIDTHS[space]), 4)
    with torch.no_grad():
        assert torch.equal(found[:, 0], model(IMAGES))
    for place, tokens in enumerate(outputs[: len(last)]):
        if space == "pit":
            pooled = tokens[:, 0]
        elif space == "as-vit":
            pooled = tokens.mean((1, 2))
        else:
            continue  # tokens are weighted by their sizes; see tests/unit/test_token_merging.py
        head = model.auxiliary[place]
        normed = (pooled - pooled.mean(-1, keepdim=True)) / torch.sqrt(
            pooled.var(-1, correction=0, keepdim=True) + head.norm.eps
        )
        expected = normed @ head.classify.weight.t() + head.classify.bias
        torch.testing.assert_close(found[:, 1 + place], expected, rtol=1e-4, atol=1e-6)


def test_heads_follow_a_third_and_two_thirds_of_the_blocks() -> None:
    def places(depth: int) -> tuple[int, ...]:
        blocks = "|".join(["2,2"] * depth)
        found: tuple[int, ...] = load("spaces", "autoformer").parse(f"{blocks}|8,8|deep_supervision").auxiliary_blocks
        return found

    assert [places(depth) for depth in (2, 3, 4, 12, 14)] == [(1,), (1, 2), (1, 2), (4, 8), (4, 9)]


@pytest.mark.parametrize("space", SPACES)
def test_the_loss_of_a_step_adds_those_of_the_heads(space: str) -> None:
    (row, other) = rows_of(TOPOLOGIES[space])[:2]
    batches = [batches_of([row], 0)[0], batches_of([other], 0)[0]]
    expected = []
    for batch in batches:
        smoothing = batch.step.settings.label_smoothing
        logits = batch.row.model(batch.images, generator=batch.keep, auxiliary=True)
        losses = [F.cross_entropy(one, batch.labels, label_smoothing=smoothing) for one in logits.unbind(1)]
        total = losses[0] + 0.3 * sum(losses[1:])
        gradient = torch.autograd.grad(total, list(batch.row.model.parameters()))
        assert all(one.abs().sum() > 0 for one in gradient)
        expected.append(float(total))
    alone = [float(learn([batch])[0]) for batch in (batches_of([row], 0)[0],)]
    assert alone[0] == pytest.approx(expected[0], rel=1e-9)
    rows = rows_of(TOPOLOGIES[space])[:2]
    together = learn([batches_of([rows[0]], 0)[0], batches_of([rows[1]], 0)[0]])
    assert [float(loss) for loss in together] == pytest.approx(expected, rel=1e-9)
    assert STEP_TASK.num_classes == 10


def test_trainings_count_the_heads_and_are_the_same_in_a_pack(tmp_path: Path) -> None:
    topology = TOPOLOGIES["as-vit"]
    configs = [configuration(epochs=2).model_copy(update={"topology": topology, "seed": seed}) for seed in (0, 1)]
    alone = [run(config, tmp_path / f"alone{number}") for number, config in enumerate(configs)]
    tasks = [
        TrainTask(configuration=config, folder=tmp_path / f"pack{number}") for number, config in enumerate(configs)
    ]
    together = dict(train_packed(tasks, digits(), [Recorder() for _ in tasks], CPU))
    tolerance = likely_difference(4 * 12 * 2 * 1600, torch.float32)
    for number, outcome in enumerate(alone):
        for name in ("train_loss", "val_loss"):
            assert together[number].metrics[name] == pytest.approx(outcome.metrics[name], rel=tolerance)
    task = digits().task
    per_image = 3 * topology_costs(topology, task, auxiliary=True).macs
    assert alone[0].metrics["training_macs"] == 2 * len(digits().train) * per_image


def test_exported_models_lack_the_heads(tmp_path: Path) -> None:
    predictor = predictor_of("as-vit", options=BlockOptions(deep_supervision=True))
    named = dict(predictor.model.named_parameters())
    program = exported_program(predictor)
    assert not any("auxiliary" in name for name in program.state_dict)
    file, _ = export_model(predictor, tmp_path / "model.safetensors", ExportFormat.safetensors)
    with safe_open(file, "pt") as content:
        names = set(content.keys())
    assert names == {name for name in named if not name.startswith("auxiliary.")}
    assert named.keys() == dict(predictor.model.named_parameters()).keys()


def test_heads_are_reused_for_the_same_classes_only() -> None:
    topology = "as-vit:8,4,2,1|4,2,2,2|4,2,2,1|2,1,2,1|16,8|deep_supervision"
    source = source_of(topology)
    assert fit(source, topology).text == "starts from all weights as they are"
    other = fit(source, topology, classes=("a", "b", "d"))
    assert {name.partition(".")[0] for name in other.fresh} == {"auxiliary"}
    assert "in the last layer 2 of 3 classes known by name (a, b)" in other.text


def test_a_single_block_has_no_inner_features() -> None:
    with pytest.raises(ValueError, match="deep_supervision needs an inner block, but there is only one"):
        build_model("autoformer:2,2|8,8|deep_supervision", TASK, seed=0, device=CPU)
    assert parse_topology("autoformer:2,2|8,8|deep_supervision").text.endswith("|deep_supervision")
