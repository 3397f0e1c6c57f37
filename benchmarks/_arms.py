"""Compares arms, which are recipes: equal work, a tuned learning rate each, paired over seeds, tested once.

Every arm is trained for as many epochs as the work (multiply-accumulates, in closed form) of the control allows, with
the cost of measurements that it needs. Its learning rate is the best of the same number of tries, by validation
accuracy with seeds that are used for nothing else. Then it is trained with the seeds of the comparison, and the final
weights are tested once.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks._pairs import paired_difference
from plugins.protocols import Signal
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, EpochReport, InitialWeights, TaskOutcome, TrainTask
from trainers.data.images import ImageData, load_images, load_test_images
from trainers.models.building import build_model
from trainers.training.checkpoints import load_weights
from trainers.training.course import Course
from trainers.training.evaluation import Normalizer, evaluate
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed
from trainers.training.reporting import SilentReporter
from trainers.weights.prepared import write_prepared
from trainers.weights.reading import SourceWeights

_FIRST_TUNING_SEED = 1000
_MOST_EPOCHS = 100_000
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Arm:
    """A recipe to compare."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe that differ from the control."""
    rates: tuple[float, ...] | None = None
    """Learning rates to try, if not those of the setting; the same number."""
    counts_measurement: bool = True
    """Whether the work of measurements before training counts."""
    work: float = 1.0
    """Share of the control's work that it may use, for a method that takes more time than its multiply-accumulates."""
    is_taught: bool = False
    """Whether its loss needs a teacher."""
    is_refined: bool = False
    """Whether a first training records gradient norms, from which the schedule of the others is refined."""


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison share."""

    data: DataConfig
    topology: str
    recipe: Mapping[str, Any]
    """The recipe of the control."""
    epochs: int
    """Number of epochs of the control."""
    rates: tuple[float, ...]
    """Learning rates to try."""
    seeds: int = 5
    """Number of seeds to compare, at least 2."""
    tuning_seeds: int = 1
    """Number of further seeds with which a learning rate is chosen."""
    teacher: str | None = None
    """Topology of the teacher, which is trained like the control."""

    def configuration(
        self, arm: Arm, *, epochs: int, rate: float, seed: int, teacher: InitialWeights | None = None
    ) -> Configuration:
        """The training of an arm."""
        recipe = Recipe.model_validate({**self.recipe, **arm.changes, "learning_rate": rate})
        return Configuration(
            data=self.data,
            topology=self.topology,
            recipe=recipe,
            epochs=epochs,
            seed=seed,
            teacher=teacher if arm.is_taught else None,
        )

    def described(self) -> dict[str, Any]:
        """The setting as plain data, without the place of the images."""
        data = self.data.model_dump(mode="json") | {"source": Path(self.data.source).name}
        return {**vars(self), "data": data, "rates": list(self.rates)}


Result = dict[str, Any]
"""One arm: `epochs`, `macs`, `rate`, `validation` and `test` (accuracies by seed), `diverged` (number of seeds)."""


def compare(
    arms: Sequence[Arm],
    setting: Setting,
    device: torch.device,
    *,
    known: Mapping[str, Result],
    save: Callable[[str, Result], None],
) -> dict[str, Result]:
    """Train and test all arms; the first is the control.

    Args:
        arms: The arms, with different names.
        setting: What they share.
        device: Device of the trainings.
        known: Results of an earlier call with the same arms and setting, by name; they are not measured again.
        save: Called with the name and the result of each arm as soon as it is known.
    """
    for arm in arms:
        if arm.rates is not None and len(arm.rates) != len(setting.rates):
            raise ValueError(
                f"each arm must try {len(setting.rates)} learning rates, but {arm.name} has {len(arm.rates)}."
            )
    data = load_images(setting.data)
    budget = planned_macs(arms[0], setting, setting.epochs, data)
    found: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as place:
        teacher = None
        for arm in arms:
            if arm.name in known:
                found[arm.name] = known[arm.name]
                continue
            if arm.is_taught and teacher is None:
                teacher = train_teacher(arms[0], setting, data, device, Path(place))
            found[arm.name] = _measure(arm, setting, data, device, budget=budget, teacher=teacher)
            save(arm.name, found[arm.name])
    return found


def train_teacher(control: Arm, setting: Setting, data: ImageData, device: torch.device, place: Path) -> InitialWeights:
    """Train the teacher as the control is trained, with the best of the rates by validation accuracy.

    Raises:
        ValueError: The setting has no teacher.
    """
    if setting.teacher is None:
        raise ValueError("the setting must name the topology of a teacher, because the loss of an arm needs one.")
    own = replace(setting, topology=setting.teacher)
    tasks = [
        TrainTask(
            configuration=own.configuration(control, epochs=own.epochs, rate=rate, seed=_FIRST_TUNING_SEED),
            folder=place / f"teacher-{number}",
        )
        for number, rate in enumerate(own.rates)
    ]
    outcomes = run_all(tasks, data, device)
    best = max(outcomes, key=lambda outcome: validation_accuracy(outcome, data))
    source = SourceWeights(
        source="teacher",
        sha256=best.checkpoints[-1].sha256,
        tensors=load_weights(best.checkpoints[-1].path),
        topology=own.topology,
        task=data.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
    )
    return write_prepared(place, source)


def planned_macs(
    arm: Arm, setting: Setting, epochs: int, data: ImageData, teacher: InitialWeights | None = None
) -> int:
    """Multiply-accumulates of a training of an arm."""
    configuration = setting.configuration(arm, epochs=epochs, rate=setting.rates[0], seed=0, teacher=teacher)
    model = build_model(setting.topology, data.task, seed=0, device=CPU)
    course = Course.lay_out(configuration, data, model, CPU)
    return course.planned_macs(with_prior=arm.counts_measurement)


def affordable_epochs(
    arm: Arm, setting: Setting, data: ImageData, *, budget: int, teacher: InitialWeights | None = None
) -> int:
    """The largest number of epochs whose multiply-accumulates do not exceed the budget.

    Raises:
        ValueError: One epoch exceeds it.
    """

    def macs(epochs: int) -> int:
        return planned_macs(arm, setting, epochs, data, teacher)

    if macs(1) > budget:
        raise ValueError(f"{arm.name} cannot be compared: one epoch takes more than the whole training of the control.")
    low, high = 1, 2
    while high < _MOST_EPOCHS and macs(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if macs(middle) <= budget:
            low = middle
        else:
            high = middle
    return low


def refine_schedule(arm: Arm, setting: Setting, data: ImageData, device: torch.device, *, epochs: int) -> Arm:
    """Train once as the arm says, and return it with the schedule `refined-linear` of the recorded gradient norms.

    The learning rate is the middle one of those to try, and the seed is the first one for choosing them.
    """
    rates = sorted(arm.rates or setting.rates)
    configuration = setting.configuration(arm, epochs=epochs, rate=rates[len(rates) // 2], seed=_FIRST_TUNING_SEED)
    recorder = _NormRecorder()
    with tempfile.TemporaryDirectory() as place:
        task = TrainTask(configuration=configuration, folder=Path(place), signals=(Signal.GRADIENT_NORM,))
        outcome = train(task, data, recorder, device)
    if outcome.state != "complete":
        raise RuntimeError(f"the first training of {arm.name} must end as complete, but got {outcome.reason}")
    norms = ", ".join(f"{recorder.norms[epoch]:.6g}" for epoch in sorted(recorder.norms))
    return replace(arm, changes={**arm.changes, "schedule": {"name": "refined-linear", "norms": norms}})


class _NormRecorder(SilentReporter):
    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def report(self, report: EpochReport) -> None:
        self.norms[report.epoch] = report.signals[Signal.GRADIENT_NORM]


def _measure(
    arm: Arm,
    setting: Setting,
    data: ImageData,
    device: torch.device,
    *,
    budget: int,
    teacher: InitialWeights | None,
) -> Result:
    trainings = 2 if arm.is_refined and arm.counts_measurement else 1
    own_budget = int(arm.work * budget) // trainings
    epochs = affordable_epochs(arm, setting, data, budget=own_budget, teacher=teacher)
    if arm.is_refined:
        arm = refine_schedule(arm, setting, data, device, epochs=epochs)
    rates = arm.rates or setting.rates
    tuning = [_FIRST_TUNING_SEED + number for number in range(setting.tuning_seeds)]
    with tempfile.TemporaryDirectory() as place:
        tries = [(rate, seed) for rate in rates for seed in tuning]
        tasks = [
            TrainTask(
                configuration=setting.configuration(arm, epochs=epochs, rate=rate, seed=seed, teacher=teacher),
                folder=Path(place) / f"tuning-{number}",
            )
            for number, (rate, seed) in enumerate(tries)
        ]
        tried = [validation_accuracy(outcome, data) for outcome in run_all(tasks, data, device)]
        means = {
            rate: sum(value for (own, _), value in zip(tries, tried, strict=True) if own == rate) / len(tuning)
            for rate in rates
        }
        rate = max(rates, key=lambda one: means[one])
        tasks = [
            TrainTask(
                configuration=setting.configuration(arm, epochs=epochs, rate=rate, seed=seed, teacher=teacher),
                folder=Path(place) / f"seed-{seed}",
            )
            for seed in range(setting.seeds)
        ]
        outcomes = run_all(tasks, data, device)
        return {
            "epochs": epochs,
            "macs": trainings * planned_macs(arm, setting, epochs, data, teacher),
            "budget": budget,
            "rate": rate,
            "tried": {str(one): mean for one, mean in means.items()},
            "validation": [validation_accuracy(outcome, data) for outcome in outcomes],
            "test": _test(outcomes, setting, data, device),
            "diverged": sum(outcome.state == "failed" for outcome in outcomes),
        }


def run_all(tasks: Sequence[TrainTask], data: ImageData, device: torch.device) -> list[TaskOutcome]:
    """Outcomes of trainings, computed together if they can be packed, otherwise one after another.

    Raises:
        RuntimeError: A training failed for another reason than a loss that is not finite.
    """
    if all(can_be_packed(tasks[0], task) is None for task in tasks[1:]):
        by_position = dict(train_packed(tasks, data, [SilentReporter() for _ in tasks], device))
        outcomes = [by_position[position] for position in range(len(tasks))]
    else:
        outcomes = [train(task, data, SilentReporter(), device) for task in tasks]
    for outcome in outcomes:
        if outcome.state != "complete" and outcome.error != "not-finite":
            raise RuntimeError(f"a training must end as complete, but it is {outcome.state}: {outcome.reason}")
    return outcomes


def validation_accuracy(outcome: TaskOutcome, data: ImageData) -> float:
    """Validation accuracy of the last epoch; a training that diverged has that of a guess."""
    return outcome.metrics["val_accuracy"] if outcome.state == "complete" else 1 / data.task.num_classes


def _test(outcomes: Sequence[TaskOutcome], setting: Setting, data: ImageData, device: torch.device) -> list[float]:
    """Test accuracy of the final weights of each training."""
    images = load_test_images(setting.data)
    normalizer = Normalizer(data.mean, data.std, device)
    model = build_model(setting.topology, data.task, seed=0, device=device)
    found = []
    for outcome in outcomes:
        if outcome.state != "complete":
            found.append(1 / data.task.num_classes)
            continue
        model.load_state_dict(load_weights(outcome.checkpoints[-1].path))
        found.append(evaluate(model, images, normalizer).accuracy)
    return found


# --- results ---


def rows_of(results: Mapping[str, Result], control: str) -> list[dict[str, Any]]:
    """One row per arm for a table, with its paired difference from the control."""
    plain = results[control]
    rows = []
    for name, result in results.items():
        difference = "" if name == control else paired_difference(result["test"], plain["test"]).text(scale=100)
        rows.append(
            {
                "arm": name,
                "epochs": result["epochs"],
                "work, %": f"{100 * result['macs'] / result['budget']:.0f}",
                "rate": f"{result['rate']:g}",
                "validation, %": f"{100 * _mean(result['validation']):.1f}",
                "test, %": f"{100 * _mean(result['test']):.1f}",
                "difference, points [95 %]": difference,
                "diverged": result["diverged"],
            }
        )
    return rows


class Results:
    """Results in a JSON file, so that an interrupted comparison continues where it was.

    Args:
        file: The file, or `None` to keep nothing.
        head: Facts about the comparison. Results of an earlier run count only if its settings are the same.
    """

    def __init__(self, file: Path | None, head: Mapping[str, Any]) -> None:
        self._file = file
        self._content: dict[str, Any] = {**head, "groups": {}}
        if file is not None and file.exists():
            self._content["groups"] = json.loads(file.read_text())["groups"]

    def known(self, group: str, setting: Setting, arms: Sequence[Arm]) -> dict[str, Result]:
        """Results of the arms of a group that were measured with this setting."""
        earlier = self._content["groups"].get(group, {})
        described = json.loads(json.dumps(setting.described()))
        if earlier.get("setting") != described:
            self._content["groups"][group] = earlier = {"setting": described, "arms": {}}
        wanted = {arm.name: json.loads(json.dumps(vars(arm))) for arm in arms}
        defaults = vars(Arm(""))  # for fields that earlier files lack
        return {
            name: entry["result"]
            for name, entry in earlier["arms"].items()
            if {**defaults, **entry["arm"]} == wanted.get(name)
        }

    def keep(self, group: str, arm: Arm, result: Result) -> None:
        """Add the result of an arm and write the file."""
        self._content["groups"][group]["arms"][arm.name] = {"arm": dict(vars(arm)), "result": result}
        if self._file is not None:
            self._file.write_text(json.dumps(self._content, indent=2))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
