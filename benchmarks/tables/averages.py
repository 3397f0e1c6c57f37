"""Measures weights of a training's checkpoints, and averages of them, on the validation and test part.

Legend: `K` state dicts, `B` images.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.tables.plan import TablePlan
from plugins.averaging.lawa import average_latest
from plugins.protocols import StateDict
from trainers.config import Configuration
from trainers.data.images import ImageData, ImageSplit
from trainers.models.blocks import unfused_attention
from trainers.models.building import build_model
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, judge, logits_of

WEIGHTS = "weights"
_LAWA = "lawa-"
_STACKED_ON_GPU = 32
"""Number of state dicts that a GPU evaluates at once."""


class Measurement(NamedTuple):
    """What to measure: a state dict on parts of the data."""

    epoch: int
    name: str
    """`WEIGHTS`, or the name of an average."""
    parts: tuple[str, ...]
    """`val`, `test` or both."""


def measurements_of(plan: TablePlan, num_epochs: int) -> list[Measurement]:
    """All measurements of a training that has reached `num_epochs` epochs.

    The weights are not measured on the validation part again. An average of more checkpoints than there are is left
    out.
    """
    found = []
    for epoch in range(1, num_epochs + 1):
        if plan.measures_test(epoch):
            found.append(Measurement(epoch, WEIGHTS, ("test",)))
        if plan.measures_averages(epoch):
            found += [
                Measurement(epoch, name, ("val", "test"))
                for name in plan.averages
                if not name.startswith(_LAWA) or int(name.removeprefix(_LAWA)) <= epoch
            ]
    return found


def state_of(wanted: Measurement, folder: Path) -> StateDict:
    """The state dict to measure, from the checkpoints of every epoch in a folder."""
    if wanted.name.startswith(_LAWA):
        window = int(wanted.name.removeprefix(_LAWA))
        newest = [folder / f"epoch-{epoch:04d}" for epoch in range(wanted.epoch - window + 1, wanted.epoch + 1)]
        return average_latest([load_weights(one) for one in newest], window=window)
    average = None if wanted.name == WEIGHTS else wanted.name
    return load_weights(folder / f"epoch-{wanted.epoch:04d}", average=average)


class Evaluator:
    """Evaluates many state dicts of one topology.

    A GPU computes several of them at once, with stacked weights; a CPU one per thread.

    Args:
        configuration: Its topology is built.
        data: Validation part, image task, mean and standard deviation.
        test: Test part.
        device: Device of the models.
        threads: Number of CPU threads.
    """

    def __init__(
        self, configuration: Configuration, data: ImageData, test: ImageSplit, device: torch.device, *, threads: int
    ) -> None:
        self._configuration = configuration
        self._task = data.task
        self._parts = {"val": data.validation, "test": test}
        self._normalizer = Normalizer(data.mean, data.std, device)
        self._device = device
        self._threads = threads

    def measure(self, items: Sequence[tuple[Measurement, StateDict]]) -> list[dict[str, float]]:
        """`loss` and `accuracy` by part, such as `test_accuracy`, for each state dict."""
        if self._device.type == "cpu":
            with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                results = list(pool.map(lambda item: self._alone(*item), items))
            torch.set_num_threads(self._threads)
            return results
        found: list[dict[str, float]] = [{} for _ in items]
        for part in self._parts:
            members = [number for number, (wanted, _) in enumerate(items) if part in wanted.parts]
            for start in range(0, len(members), _STACKED_ON_GPU):
                chosen = members[start : start + _STACKED_ON_GPU]
                values = self._together([items[number][1] for number in chosen], part)
                for number, value in zip(chosen, values, strict=True):
                    found[number] |= value
        return found

    def _alone(self, wanted: Measurement, state: StateDict) -> dict[str, float]:
        model = self._build()
        model.load_state_dict(dict(state))
        found: dict[str, float] = {}
        for part in wanted.parts:
            split = self._parts[part]
            logits = torch.cat(list(logits_of(model, split.images, self._normalizer)))
            found |= _values(part, logits, split.labels)
        return found

    def _together(self, states: Sequence[StateDict], part: str) -> list[dict[str, float]]:
        split = self._parts[part]
        model = _StackedStates(self._build(), states)
        logits = torch.cat(list(logits_of(model, split.images, self._normalizer)))
        labels = split.labels.to(logits.device)
        return [_values(part, logits[:, number], labels) for number in range(len(states))]

    def _build(self) -> nn.Module:
        return build_model(self._configuration.topology, self._task, seed=0, device=self._device)


def _values(part: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    evaluation = judge(logits, labels)
    return {f"{part}_loss": evaluation.loss, f"{part}_accuracy": evaluation.accuracy}


class _StackedStates(nn.Module):
    """Several state dicts of one model, evaluated as one model: from images (B, C, S, S) to logits (B, K, classes)."""

    def __init__(self, inner: nn.Module, states: Sequence[StateDict]) -> None:
        super().__init__()
        self.inner = inner
        named: Mapping[str, Tensor] = dict(inner.named_parameters())
        self._stacked = {
            name: torch.stack([state[name] for state in states]).to(parameter.device)
            for name, parameter in named.items()
        }

    def forward(self, images: Tensor) -> Any:
        def one(parameters: dict[str, Tensor], given: Tensor) -> Any:
            return functional_call(self.inner, parameters, (given,))

        with unfused_attention():
            return vmap(one, in_dims=(0, None), out_dims=1)(self._stacked, images)
