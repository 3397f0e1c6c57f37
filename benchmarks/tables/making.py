"""Trains and measures the cells of a table. A killed process continues from the newest checkpoints."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.tables.averages import WEIGHTS, Evaluator, Measurement, measurements_of, state_of
from benchmarks.tables.plan import Cell, TablePlan, cells_of
from benchmarks.tables.records import Environment, Results, TopologyRecord, TrainingRecord
from plugins.registry import create, load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import PLUGIN_FIELDS
from trainers.config import EpochReport, ScoreTask, TaskOutcome, TrainTask
from trainers.data.images import ImageData, ImageSplit, load_images, load_test_images
from trainers.tasks.scoring import score_topology, scoring_batch
from trainers.training.failures import describe_failure, failed_outcome
from trainers.training.loop import train
from trainers.training.methods import Methods
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed, is_tried_alone
from trainers.training.reporting import Reporter

_SCORED_IMAGES = 32
_SCORE_SEED = 0
_MEASURED_AT_ONCE = 64
"""Number of state dicts that are kept in memory."""


class RecordingReporter(Reporter):
    """Keeps the reports of a training, and ends it when asked to."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.reports: dict[int, EpochReport] = {}
        self._should_stop = should_stop

    def report(self, report: EpochReport) -> None:
        self.reports[report.epoch] = report

    def should_stop(self) -> bool:
        return self._should_stop()


@dataclass(frozen=True, kw_only=True)
class TableMaker:
    """Makes the trainings of a plan that are not finished yet."""

    plan: TablePlan
    source: Path
    """The images: a source of vitsearch with its own test part."""
    results: Results
    data: ImageData
    test: ImageSplit
    device: torch.device
    pack_size: int
    """Maximum number of trainings that are computed together."""
    should_stop: Callable[[], bool]
    say: Callable[[str], None]
    problems: list[str] = field(default_factory=list)
    """Trainings that could not be made, with the reason. They are tried again when the table is continued."""

    @classmethod
    def of(
        cls,
        plan: TablePlan,
        *,
        source: Path,
        results: Results,
        device: torch.device,
        pack_size: int,
        should_stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = print,
    ) -> "TableMaker":
        """Load the data of a plan.

        Raises:
            trainers.data.listing.DataError: The images cannot be used.
            ValueError: The source has fewer images than the plan, or no separate test part; a topology does not fit
                its images; or a recipe names an unknown plug-in or setting.
        """
        check_recipes(plan)
        config = plan.data.config(source)
        data, test = load_images(config), load_test_images(config)
        found = (len(data.train), len(data.validation), len(test))
        wanted = (plan.data.train, plan.data.validation, plan.data.test)
        if found != wanted:
            raise ValueError(
                f"the source must give {wanted} images for training, validation and test, but {source} gives {found}. "
                "Name a source with its own test part and enough images, or change `data` of the plan."
            )
        check_topologies(plan, data.task)
        return cls(
            plan=plan,
            source=source,
            results=results,
            data=data,
            test=test,
            device=device,
            pack_size=pack_size,
            should_stop=should_stop,
            say=say,
        )

    def key(self, cell: Cell) -> str:
        """Identifies the results of a cell."""
        return cell.key(self.plan, self.data.digest)

    def topology_key(self, topology: str) -> str:
        """Identifies the scores of a topology."""
        return self.plan.score_key(topology, self.data.digest)

    def make(self) -> None:
        """Score all topologies, then train all cells, until finished or asked to stop.

        What another process with the same work folder is computing is left to it. Trainings that are not packed begin
        with the first recipe of every topology, which shows early whether the topologies differ; further seeds come
        last, so that a table that is stopped early has as many pairs as possible.
        """
        for topology in self.plan.topologies:
            if self.should_stop():
                return
            key = self.topology_key(topology)
            with self.results.claimed(key) as is_ours:
                if is_ours and self.results.topology(key) is None:
                    self._score(topology)
        cells = cells_of(self.plan)
        if self.pack_size == 1:
            first = next(iter(self.plan.recipes))
            cells.sort(key=lambda cell: (cell.seed, cell.recipe != first))
        for group in self._groups([cell for cell in cells if not self._is_finished(cell)]):
            if self.should_stop():
                return
            with ExitStack() as claims:
                ours = [cell for cell in group if claims.enter_context(self.results.claimed(self.key(cell)))]
                if left := [cell for cell in ours if not self._is_finished(cell)]:
                    self._make_group(left)

    def _is_finished(self, cell: Cell) -> bool:
        return self.results.training(self.key(cell)) is not None

    def _groups(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells of one topology that can share a pack."""
        groups: list[list[Cell]] = []
        for cell in cells:
            task = self._task(cell)
            for group in groups:
                if len(group) < self.pack_size and all(
                    can_be_packed(self._task(other), task) is None for other in group
                ):
                    group.append(cell)
                    break
            else:
                groups.append([cell])
        return groups

    def _task(self, cell: Cell) -> TrainTask:
        return TrainTask(
            configuration=cell.configuration(self.plan, self.source),
            folder=self.results.running(self.key(cell)),
            keep_checkpoints=self.plan.epochs,
            signals=self.plan.signals,
        )

    def _make_group(self, cells: Sequence[Cell]) -> None:
        tasks = [self._task(cell) for cell in cells]
        reporters = [RecordingReporter(self.should_stop) for _ in cells]
        outcomes: dict[int, TaskOutcome] = {}
        if len(cells) > 1:
            outcomes = dict(train_packed(tasks, self.data, reporters, self.device))
        else:
            outcomes[0] = self._alone(tasks[0], reporters[0])
        for number, outcome in outcomes.items():
            if is_tried_alone(outcome):
                outcomes[number] = self._alone(tasks[number], reporters[number])
        ended = []
        for number, outcome in outcomes.items():
            if outcome.error not in (None, "not-finite"):
                self.problems.append(f"{_name(cells[number])}: {outcome.reason}")
                self.say(f"failed: {self.problems[-1]}")
            elif outcome.state != "interrupted":
                ended.append(number)
        self._measure(cells, tasks, reporters, outcomes, ended)

    def _alone(self, task: TrainTask, reporter: Reporter) -> TaskOutcome:
        try:
            return train(task, self.data, reporter, self.device)
        except Exception as error:  # a training may raise any exception; the others are still made
            return failed_outcome(describe_failure(error))

    def _measure(
        self,
        cells: Sequence[Cell],
        tasks: Sequence[TrainTask],
        reporters: Sequence[RecordingReporter],
        outcomes: dict[int, TaskOutcome],
        ended: Sequence[int],
    ) -> None:
        """Measure the checkpoints of ended trainings, write their records and remove their checkpoints."""
        if not ended:
            return
        began = time.perf_counter()
        evaluator = Evaluator(
            tasks[0].configuration, self.data, self.test, self.device, threads=torch.get_num_threads()
        )
        wanted = [
            (number, one) for number in ended for one in measurements_of(self.plan, len(reporters[number].reports))
        ]
        values: dict[tuple[int, Measurement], dict[str, float]] = {}
        for start in range(0, len(wanted), _MEASURED_AT_ONCE):
            chunk = wanted[start : start + _MEASURED_AT_ONCE]
            states = [(one, state_of(one, tasks[number].folder)) for number, one in chunk]
            values |= zip(chunk, evaluator.measure(states), strict=True)
        spent = (time.perf_counter() - began) / len(ended)
        environment = Environment.here(self.device)
        for number in ended:
            outcome, reports = outcomes[number], reporters[number].reports
            measured = {one: found for (owner, one), found in values.items() if owner == number}
            record = TrainingRecord(
                cell=cells[number],
                state="failed" if outcome.state == "failed" else "complete",
                reason=outcome.reason,
                epochs=tuple(
                    epoch_columns(
                        self.plan, reports[epoch], {one: v for one, v in measured.items() if one.epoch == epoch}
                    )
                    for epoch in sorted(reports)
                ),
                pack_size=len(cells),
                measuring_s=spent,
                environment=environment,
            )
            self.results.keep_training(self.key(cells[number]), record)
            shutil.rmtree(tasks[number].folder, ignore_errors=True)
            self.say(_line(record))

    def _score(self, topology: str) -> None:
        images, labels = scoring_batch(
            self.data, split_seed=self.plan.data.split_seed, size=_SCORED_IMAGES, device=self.device
        )
        task = ScoreTask(
            data=self.plan.data.config(self.source),
            topology=topology,
            proxies=self.plan.proxy_choices(),
            batch_size=_SCORED_IMAGES,
            seed=_SCORE_SEED,
            need_all=False,
        )
        outcome = score_topology(task, images, self.data.task, labels)
        names = [choice.name for choice in task.proxies]
        failures = outcome.details.get("failures", {})
        record = TopologyRecord(
            topology=topology,
            parameters=int(outcome.metrics["parameters"]),
            macs=int(outcome.metrics["macs"]),
            scores={name: outcome.metrics[name] for name in names if name in outcome.metrics},
            failures={name: str(failure["reason"]) for name, failure in failures.items()},
            wall_time_s=outcome.metrics["wall_time_s"],
            environment=Environment.here(self.device),
        )
        self.results.keep_topology(self.topology_key(topology), record)
        self.say(
            f"{topology}: {record.macs / 1e6:.2f} M MACs, {len(record.scores)} scores in {record.wall_time_s:.1f} s"
        )


def check_recipes(plan: TablePlan) -> None:
    """Raise ValueError if a recipe names a plug-in or setting that does not exist, or methods that conflict."""
    for name, recipe in plan.recipes.items():
        try:
            Methods.of(recipe.curriculum)
            for place, kind in PLUGIN_FIELDS.items():
                value = getattr(recipe, place)
                for choice in value if isinstance(value, tuple) else (value,):
                    create(kind, choice.name, choice.settings)
        except ValueError as error:
            raise ValueError(f"recipe {name!r}: {error}") from error


def check_topologies(plan: TablePlan, task: ImageTask) -> None:
    """Raise ValueError if a topology cannot be built for the images."""
    for text in plan.topologies:
        problem = load("spaces", text.partition(":")[0]).problem(parse_topology(text), task)
        if problem is not None:
            raise ValueError(f"each topology must fit the images, but {text} does not: {problem}")


def epoch_columns(
    plan: TablePlan, report: EpochReport, measured: dict[Measurement, dict[str, float]]
) -> dict[str, float | None]:
    """The columns of one epoch; what was not measured is `None`."""
    columns: dict[str, float | None] = {
        "epoch": report.epoch,
        "train_loss": report.train_loss,
        "val_loss": report.val_loss,
        "val_accuracy": report.val_accuracy,
        "test_loss": None,
        "test_accuracy": None,
        **dict.fromkeys(
            f"{part}_{metric}.{name}"
            for name in plan.averages
            for part in ("val", "test")
            for metric in ("loss", "accuracy")
        ),
        "learning_rate": report.learning_rate,
        "num_images": report.num_images,
        "training_macs": report.training_macs,
        "wall_time_s": report.wall_time_s,
        "averages_measured": float(plan.measures_averages(report.epoch)),
        "test_measured": float(plan.measures_test(report.epoch)),
        **{f"signal.{name}": value for name, value in report.signals.items()},
    }
    for one, values in measured.items():
        suffix = "" if one.name == WEIGHTS else f".{one.name}"
        columns |= {f"{name}{suffix}": value for name, value in values.items()}
    return columns


def _name(cell: Cell) -> str:
    return f"{cell.topology} {cell.recipe} seed {cell.seed}"


def _line(record: TrainingRecord) -> str:
    if not record.epochs:
        return f"{_name(record.cell)}: {record.reason}"
    last = record.epochs[-1]
    spent = sum(float(epoch["wall_time_s"] or 0) for epoch in record.epochs) / record.pack_size
    return (
        f"{_name(record.cell)}: validation {100 * float(last['val_accuracy'] or 0):.1f} %, "
        f"{spent:.0f} s of training and {record.measuring_s:.0f} s of measuring"
    )
