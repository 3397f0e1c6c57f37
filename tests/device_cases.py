"""All computations on a device, as functions from the device to numbers; see `tests.other_device`."""

import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks._references import kernel_by_sample, velocity_by_coordinate
from benchmarks.training import PlainLoop
from plugins.protocols import Signal
from plugins.proxies.input_circle import circle_angles, circle_basis
from plugins.registry import available, create, load, parse_topology, setting_types
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice
from tests.unit.training import TOPOLOGY, Recorder, configuration, digits
from trainers.champion import load_model, save_model
from trainers.config import AverageTask, Configuration, EpochReport, TaskOutcome, TrainTask
from trainers.data.mapping import gather
from trainers.hardware.devices import full_precision
from trainers.models.building import build_model
from trainers.models.dropout import Dropout
from trainers.tasks.averaging import average
from trainers.tasks.comparing import validation_logits
from trainers.tasks.scoring import make_candidate
from trainers.training.checkpoints import load_weights
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.weights.prepared import write_prepared
from trainers.weights.reading import SourceWeights

SPACES = {"as-vit": TOPOLOGY, "autoformer": "autoformer:2,2|2,2|16,8", "pit": "pit:1,2|1,2|1,2|2,8,8"}
WITH_OPTIONS = {"as-vit with options": f"{TOPOLOGY}|qk_norm,layer_scale,grn,sigmoid_attention,deep_supervision"}
FORMULA = "mean(frobenius(minmax(attention.weight)) + sqrt(sigmoid(mean(mlp.gradient))))"
UNMEASURED = [name for name in available("proxies") if name == "latency" or hasattr(load("proxies", name), "combine")]
"""Proxies without comparable values: `latency` is a time, the others rank a pool of topologies."""
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "regularised": {"label_smoothing": 0.1, "drop_path": 0.2, "augmentation": "affine"},
    "shift": {"augmentation": "shift"},
    "flip-crop": {"augmentation": "flip-crop"},
    "randaugment": {"augmentation": "randaugment"},
    "cyclical": {"curriculum": "cyclical"},
    "paced": {"curriculum": "paced"},
    "pruning": {"curriculum": {"name": "pruning", "difficulty_epochs": 1, "difficulty_runs": 1}},
    "weights by difficulty": {
        "curriculum": {"name": "difficulty-weights", "difficulty": "grand", "difficulty_epochs": 1}
    },
    "harmonizing": {"loss": "gradient-harmonizing"},
    "progressive": {"curriculum": "progressive-tokenization"},
    "growth": {"curriculum": {"name": "masked-growth", "until": 0.4, "ramp": 0.6}},
    "cycle": {"curriculum": "v-cycle", "optimizer": "muon"},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.02},
    "muon": {"optimizer": "muon"},
    "sam": {"optimizer": "sam"},
    "lion": {"optimizer": "lion", "learning_rate": 2e-4},
    "lamb": {"optimizer": "lamb"},
    "schedule-free": {"optimizer": "schedule-free-adamw"},
    "root": {"optimizer": "root"},
    "sophia": {"optimizer": {"name": "sophia", "period": 2}, "learning_rate": 2e-4},
    "tvlars": {"optimizer": "tvlars"},
    "rates": {"rates": ["blockwise", {"name": "layer-decay", "decay": 0.8}], "learning_rate": 5e-4},
    "mixup": {"mixing": "mixup"},
    "cutmix": {"mixing": "cutmix"},
    "dropout": {"dropout": 0.2, "class_weights": "balanced", "ema": 0.9, "swa": 0.2},
    "growing": {"batch_size": {"from": 16, "to": 32}},
    "maskmix": {"mixing": "maskmix"},
    "attended": {"mixing": {"name": "maskmix", "labels": "attention"}},
    "focal": {"loss": "focal"},
    "balanced-softmax": {"loss": "balanced-softmax"},
    "z-loss": {"loss": "z-loss"},
    "early-learning": {"loss": "early-learning"},
    "guidance": {"loss": "guidance"},
    "mutual": {"loss": "mutual"},
    "paired": {"loss": {"name": "mutual", "together": True}},
    "cross-split": {"loss": "cross-split"},
    "split together": {"loss": {"name": "cross-split", "together": True, "warmup": 0.0}},
}
TEACHER_LOSSES: dict[str, dict[str, Any]] = {
    "soft": {"loss": {"name": "soft-distillation", "only_where_better": True}},
    "hard": {"loss": "hard-distillation", "augmentation": "shift"},
    "alone": {"loss": "teacher-labels", "mixing": "mixup"},
}


_PACKED = ("regularised", "progressive", "muon", "sam", "sophia", "rates", "mixup", "dropout", "early-learning")


def _score(space: str, name: str, device: torch.device, *, repeats: int = 1) -> dict[str, float]:
    task = ImageTask(image_size=32, in_channels=1, num_classes=10)
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)
    labels = (torch.arange(8) % 3).to(device)
    settings: dict[str, Any] = {"formula": FORMULA} if name == "expression" else {}
    if "repeats" in setting_types("proxies", name):
        settings["repeats"] = repeats  # the simulated device is slow
    proxy = create("proxies", name, settings)
    candidate = make_candidate(parse_topology(SPACES[space]), images, task, seed=0, labels=labels, companions=(proxy,))
    with full_precision():
        return proxy.score(candidate)._asdict()


def _train(space: str, recipe: str, device: torch.device) -> dict[str, float]:
    config = _configuration(space, RECIPES[recipe], epochs=3 if recipe == "cycle" else 2)
    with tempfile.TemporaryDirectory() as folder:
        return _checked(train(TrainTask(configuration=config, folder=Path(folder)), digits(), Recorder(), device))


def _signals(space: str, device: torch.device) -> dict[str, float]:
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        task = TrainTask(configuration=_configuration(space, {}, epochs=2), folder=Path(folder), signals=tuple(Signal))
        with patch("trainers.training.gradient_signals.NUM_PRODUCTS", 2):  # the simulated device is slow
            _checked(train(task, digits(), recorder, device))
    return recorder.reports[-1].signals


def _drop_and_resize(space: str, device: torch.device) -> dict[str, float]:
    """A step with dropout, on images of a different size from that for which the model was built."""
    task = ImageTask(image_size=64, in_channels=1, num_classes=10)
    model = build_model(SPACES[space], task, seed=0, device=device)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)
    with full_precision():
        logits = model(images, dropout=Dropout(0.3, torch.tensor(2)))
        logits.logsumexp(-1).sum().backward()
    gradients = {f"gradient.{name}": float(value.grad.norm()) for name, value in model.named_parameters()}
    return gradients | {f"logit {place}": float(value) for place, value in enumerate(logits.detach().cpu().flatten())}


def _pack(space: str, recipe: str, device: torch.device) -> dict[str, float]:
    configs = [_configuration(space, {**RECIPES[recipe], "learning_rate": rate}) for rate in (1e-3, 3e-3)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            TrainTask(configuration=config, folder=Path(folder) / str(place)) for place, config in enumerate(configs)
        ]
        outcomes = dict(train_packed(tasks, digits(), [Recorder() for _ in tasks], device))
    return {f"{place}.{name}": value for place in outcomes for name, value in _checked(outcomes[place]).items()}


def _go_on_average_and_predict(device: torch.device) -> dict[str, float]:
    config = _configuration("as-vit", {}, epochs=3)
    lawa = PluginChoice(name="lawa", settings={"window": 2, "spacing": 1})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = TrainTask(configuration=config, folder=folder / "trial", keep_checkpoints=3)
        assert train(task, digits(), _StopsAfterAnEpoch(), device).state == "interrupted"
        outcome = train(task, digits(), Recorder(), device)
        found = _checked(outcome)
        paths = tuple(record.path for record in outcome.checkpoints)
        averaged = average(AverageTask(configuration=config, checkpoints=paths, averaging=lawa), digits(), device)
        weights = load_weights(paths[-1])
        save_model(folder / "model", weights, configuration=config, data=digits(), metrics={})
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "image.png")
        model = load_model(folder / "model", device=device)
        (prediction,) = model.predict([folder / "image.png"])
        with patch("trainers.results.intervals._MAX_RESAMPLES", 20):
            report = model.evaluate_on()
        (logits,) = validation_logits([(config, paths[-1])], digits(), torch.arange(5), device)
    found |= {"test loss": report.metrics["loss"].value, "first logit": float(logits[0, 0])}
    found |= {f"averaged.{key}": value for key, value in _checked(averaged).items()}
    return found | {"probability": prediction.probability}


def _start_from_weights(space: str, device: torch.device) -> dict[str, float]:
    """A training that starts from a larger model of another image size and with more channels."""
    large = {"as-vit": TOPOLOGY.replace("16,4", "16,8"), "autoformer": "autoformer:4,2|4,2|32,8"}[space]
    task = ImageTask(image_size=64, in_channels=3, num_classes=3)
    model = build_model(large, task, seed=1, device=torch.device("cpu"))
    weights = SourceWeights(
        source="s", sha256="0" * 64, tensors=model.state_dict(), topology=large, task=task, class_names=tuple("abc")
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = _configuration(space, {}).model_copy(update={"weights": write_prepared(folder, weights)})
        return _checked(train(TrainTask(configuration=given, folder=folder / "trial"), digits(), Recorder(), device))


def _learn_from_teacher(loss: str, device: torch.device) -> dict[str, float]:
    data = digits()
    model = build_model(SPACES["autoformer"], data.task, seed=9, device=torch.device("cpu"))
    source = SourceWeights(
        source="here",
        sha256="0" * 64,
        tensors=dict(model.state_dict()),
        topology=SPACES["autoformer"],
        task=data.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
    )
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_prepared(Path(folder), source)
        config = _configuration("as-vit", TEACHER_LOSSES[loss]).model_copy(update={"teacher": teacher})
        task = TrainTask(configuration=config, folder=Path(folder) / "training")
        return _checked(train(task, data, Recorder(), device))


def _references(device: torch.device) -> dict[str, float]:
    """The literal references with which benchmarks compare scores."""
    task = ImageTask(image_size=32, in_channels=1, num_classes=10)
    model = build_model(SPACES["as-vit"], task, seed=0, device=device)
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 1, 32, 32, generator=generator).to(device)
    basis = circle_basis(images.shape[1:], generator=generator).to(images)
    with full_precision():
        kernel = kernel_by_sample(model, images)
        velocity = velocity_by_coordinate(model, circle_angles(4, like=basis), basis)
    return {"kernel": float(kernel.norm()), "velocity": float(velocity.norm())}


def _plain_loop(device: torch.device) -> dict[str, float]:
    """The loop with which benchmarks compare trainings."""
    loop = PlainLoop(_configuration("as-vit", {}), device, digits())
    return {"loss": loop.learn(), "accuracy": loop.validate()}


def _gather(device: torch.device) -> dict[str, float]:
    """Images that do not fit on the device stay on the CPU, and their batches are sent to it."""
    images = torch.arange(240, dtype=torch.uint8).reshape(20, 3, 2, 2)
    indices = torch.tensor([3, 17, 3])
    batch = gather(images, indices.to(device))
    assert batch.device == indices.to(device).device
    return {str(number): float(value) for number, value in enumerate(batch.float().sum((1, 2, 3)))}


class _StopsAfterAnEpoch(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self._is_over = False

    def report(self, report: EpochReport) -> None:
        super().report(report)
        self._is_over = True

    def should_stop(self) -> bool:
        return self._is_over


def _configuration(space: str, recipe: dict[str, Any], *, epochs: int = 1) -> Configuration:
    given = {"batch_size": 32, **recipe}
    topology = (SPACES | WITH_OPTIONS)[space]
    return configuration(recipe=given, epochs=epochs).model_copy(update={"topology": topology})


def _checked(outcome: TaskOutcome) -> dict[str, float]:
    assert outcome.state == "complete", (outcome.reason, outcome.details)
    return {name: value for name, value in outcome.metrics.items() if not name.endswith("_s")}


def differences(here: dict[str, float], there: dict[str, float], *, tolerance: float = 1e-3) -> list[str]:
    """Values that differ by more than a fraction of `tolerance`, one line each."""
    return [
        f"{name}: {here.get(name)} on the CPU, {there.get(name)} on the device"
        for name in sorted(here.keys() | there.keys())
        if not math.isclose(here.get(name, math.inf), there.get(name, -math.inf), rel_tol=tolerance, abs_tol=1e-5)
    ]


def _cases() -> dict[str, Callable[[torch.device], dict[str, float]]]:
    scores: Sequence[str] = [name for name in available("proxies") if name not in UNMEASURED]
    return {
        **{f"score {name} on {space}": partial(_score, space, name) for space in SPACES for name in scores},
        **{
            f"score {name} stacked on {space}": partial(_score, space, name, repeats=2)
            for space in SPACES
            for name in ("length-distortion", "ntk-condition")
        },
        **{f"train {space} {recipe}": partial(_train, space, recipe) for space in SPACES for recipe in _of(space)},
        **{f"pack {space} plain": partial(_pack, space, "plain") for space in SPACES},
        **{f"pack as-vit {recipe}": partial(_pack, "as-vit", recipe) for recipe in _PACKED},
        **{f"pack {space} plain": partial(_pack, space, "plain") for space in WITH_OPTIONS},
        **{f"signals {space}": partial(_signals, space) for space in (*SPACES, *WITH_OPTIONS)},
        **{f"drop and resize {space}": partial(_drop_and_resize, space) for space in SPACES},
        **{f"start from weights {space}": partial(_start_from_weights, space) for space in ("as-vit", "autoformer")},
        **{f"learn from a teacher {loss}": partial(_learn_from_teacher, loss) for loss in TEACHER_LOSSES},
        "gather images from the CPU": _gather,
        "literal references": _references,
        "plain loop": _plain_loop,
        "go on, average and predict": _go_on_average_and_predict,
    }


def _of(space: str) -> Sequence[str]:
    """Recipes to test in a space; augmentations and curricula need only one space, because they do not depend on it."""
    if space == "as-vit":
        return [name for name in RECIPES if name != "growth"]  # which needs a stage with two blocks
    return ["plain", "regularised", *(["growth"] if space == "autoformer" else [])]


CASES = _cases()
FEW = [name for name in CASES if "on as-vit" in name or name.endswith(("as-vit plain", "predict")) or "resize" in name]
FEW += ["literal references", "plain loop"]
"""A small selection with one case of each type."""
