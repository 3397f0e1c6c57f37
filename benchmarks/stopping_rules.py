"""What early stopping saves and costs: every criterion, replayed over the curves of a table of trainings.

`python -m benchmarks.stopping_rules` takes seconds; it trains nothing. Each curve is cut where the criterion stops, and
the best validation epoch up to there is compared with the best of the whole curve. With `--average`, an average of the
newest weights at the next epoch in which the table has it is also compared with the end of the whole training, because
the learning rate of a training that stops in the middle has not decayed: the average stands in for the decay.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks._timing import print_table
from plugins.protocols import CurvePoint, Signal, Stopper, needed_signals
from plugins.registry import available, create
from search_spaces.recipes import PluginChoice, describe_plugin
from trainers.tasks.replay import Replayed, replay_curves
from vitsearch import tables

SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "curve-extrapolation": [{"compare_with": value} for value in ("self", "study")],
    "evidence": [{"window": value} for value in (1, 3)],
    "generalization-loss": [{"threshold": value} for value in (1.0, 2.0, 5.0)],
    "gradient-disparity": [{"increases": value} for value in (2, 3, 5)],
    "label-wave": [{"window": value} for value in (1, 3)],
    "memorization-onset": [{"per_class": value} for value in (True, False)],
    "neural-persistence": [{"patience": value} for value in (1, 2)],
    "patience": [{"epochs": value} for value in (1, 2, 3)],
    "plateau": [
        {"signal": "val_accuracy", "patience": 2},
        {"signal": "gradient_noise", "patience": 2},
        {"signal": "changed_training_predictions", "patience": 2},
        {"signal": "weight_persistence", "patience": 2},
    ],
    "progress-quotient": [{"strip": 3, "threshold": value} for value in (0.5, 1.0)],
    "successive-halving": [{"first_epochs": value} for value in (1, 2)],
    "successive-rises": [{"rises": value} for value in (1, 2, 3)],
}
"""Settings to compare. Criteria that are not listed are replayed with their defaults."""
_SIGNAL = "signal."
_PART = "test"


class Curve(NamedTuple):
    """A training of the table."""

    topology: str
    points: tuple[CurvePoint, ...]
    test: tuple[float, ...]
    """Test accuracy after each epoch; NaN if it was not measured."""
    average: tuple[float, ...]
    """Test accuracy of the average after each epoch; NaN if it was not measured."""
    macs: tuple[float, ...]


class Stopped(NamedTuple):
    """The effect of a criterion on one curve. Accuracies are fractions."""

    topology: str
    is_stopped: bool
    epochs_saved: float
    macs_saved: float
    val_lost: float
    test_lost: float
    """Test accuracy lost at the best validation epoch; NaN if one of the two was not measured."""
    average_lost: float
    """Test accuracy after the last epoch minus that of the average after the stop; NaN if it was not measured."""


def curves_of(table: tables.BenchmarkTable, *, average: str | None = None) -> list[Curve]:
    """The curves of all trainings that were not cut short by divergence.

    Args:
        table: The table.
        average: Name of an average of the table, such as `lawa-3`.

    Raises:
        ValueError: The table has no such average.
    """
    rows = table.epochs[table.epochs["state"] == "complete"]
    column = None if average is None else f"{_PART}_accuracy.{average}"
    if column is not None and column not in rows.columns:
        known = [name.partition(".")[2] for name in rows.columns if name.startswith(f"{_PART}_accuracy.")]
        raise ValueError(f"`average` must be one of {', '.join(known)}, but got {average!r}.")
    found = []
    for (topology, _, _), training in rows.groupby(list(tables.TRAINING), observed=True, sort=False):
        ordered = training.sort_values("epoch").to_dict("records")
        found.append(
            Curve(
                topology=str(topology),
                points=tuple(map(_point, ordered)),
                test=tuple(_number(row[f"{_PART}_accuracy"]) for row in ordered),
                average=tuple(math.nan if column is None else _number(row[column]) for row in ordered),
                macs=tuple(float(row["training_macs"]) for row in ordered),
            )
        )
    return found


def recorded_signals(table: tables.BenchmarkTable) -> frozenset[Signal]:
    """The signals that the table has."""
    names = {name.removeprefix(_SIGNAL).partition(".")[0] for name in table.epochs.columns if name.startswith(_SIGNAL)}
    return frozenset(signal for signal in Signal if signal.value in names)


def criteria(recorded: frozenset[Signal]) -> Iterator[tuple[PluginChoice, str | None]]:
    """Every installed criterion with the settings to compare, and why it cannot be replayed, or `None`."""
    for name in available("stopping"):
        for settings in SETTINGS.get(name, [{}]):
            choice = PluginChoice(name=name, settings=dict(settings))
            try:
                missing = needed_signals(create("stopping", name, settings)) - recorded
            except ValueError as error:
                yield choice, str(error)
                continue
            yield choice, f"the table lacks {', '.join(sorted(missing))}" if missing else None


def effect(replayed: Replayed, curve: Curve) -> Stopped:
    """The effect of stopping a curve."""
    count = len(curve.points) if replayed.stopped_after is None else replayed.stopped_after
    scores = [point.val_accuracy for point in curve.points]
    at, best = int(np.argmax(scores[:count])), int(np.argmax(scores))
    later = [value for value in curve.average[count - 1 :] if not math.isnan(value)]
    return Stopped(
        topology=curve.topology,
        is_stopped=replayed.stopped_after is not None,
        epochs_saved=replayed.epochs_saved,
        macs_saved=1 - sum(curve.macs[:count]) / sum(curve.macs),
        val_lost=replayed.accuracy_lost,
        test_lost=curve.test[best] - curve.test[at],
        average_lost=curve.test[-1] - later[0] if later else math.nan,
    )


class Mean(NamedTuple):
    """A mean over trainings with its 95 % interval, for which topologies, not trainings, are independent."""

    mean: float
    half: float

    @classmethod
    def over(cls, results: Sequence[Stopped], name: str) -> "Mean":
        """The mean of a field; NaN if a value is missing, since the others would be of trainings that stop late."""
        by_topology: dict[str, list[float]] = {}
        for result in results:
            by_topology.setdefault(result.topology, []).append(float(getattr(result, name)))
        means = [fmean(values) for values in by_topology.values()]
        if not means or any(map(math.isnan, means)):
            return cls(math.nan, math.nan)
        if len(means) == 1:
            return cls(means[0], math.inf)
        half = float(stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5)
        return cls(fmean(means), half)

    def text(self) -> str:
        """In percent or points: `+0.31 [+0.10, +0.52]`."""
        if math.isnan(self.mean):
            return "-"
        if math.isinf(self.half):
            return f"{100 * self.mean:+.2f}"
        low, high = self.mean - self.half, self.mean + self.half
        return f"{100 * self.mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def compare(curves: Sequence[Curve], chosen: Sequence[PluginChoice]) -> list[tuple[PluginChoice, list[Stopped]]]:
    """The results of each criterion on all curves, in order of the epochs saved.

    The trainings of a topology count as one study, trained in the order of the curves, for criteria that compare a
    training with earlier ones.
    """
    studies: dict[str, list[Curve]] = {}
    for curve in curves:
        studies.setdefault(curve.topology, []).append(curve)
    found = []
    for choice in chosen:
        criterion: Stopper = create("stopping", choice.name, choice.settings)
        results = []
        for study in studies.values():
            replayed = replay_curves(criterion, [curve.points for curve in study])
            results += [effect(one, curve) for one, curve in zip(replayed, study, strict=True)]
        found.append((choice, results))
    return sorted(found, key=lambda entry: -fmean(one.epochs_saved for one in entry[1]))


def row_of(choice: PluginChoice, results: Sequence[Stopped], *, average: str | None) -> dict[str, Any]:
    """A row of the printed table."""
    row = {
        "criterion": describe_plugin(choice),
        "stopped, %": f"{100 * fmean(one.is_stopped for one in results):.0f}",
        "epochs saved, %": f"{100 * fmean(one.epochs_saved for one in results):.0f}",
        "MACs saved, %": f"{100 * fmean(one.macs_saved for one in results):.0f}",
        "validation lost, points [95 %]": Mean.over(results, "val_lost").text(),
        "test lost, points [95 %]": Mean.over(results, "test_lost").text(),
    }
    return row if average is None else row | {f"test lost with {average}": Mean.over(results, "average_lost").text()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", help="the parquet file (that of the repository)")
    parser.add_argument("--average", metavar="NAME", help="an average of the table, such as lawa-3 or ema-0.98")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results")
    options = parser.parse_args()
    if options.table is None and not tables.DEFAULT.is_file():
        print(
            f"nothing to replay: make {tables.DEFAULT.name} with `python -m benchmarks.tables`, or name another table"
        )
        return
    try:
        table = tables.load(options.table)
        curves = curves_of(table, average=options.average)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    if not curves:
        parser.exit(1, "error: the table must have a complete training, but has none. Make more of it.\n")
    print(f"{len(curves)} curves of {len({curve.topology for curve in curves})} topologies, ", end="")
    print(f"{len(curves[0].points)} epochs" + ("; the table is partial" if table.is_partial else ""))
    found = list(criteria(recorded_signals(table)))
    compared = compare(curves, [choice for choice, why_not in found if why_not is None])
    rows = [row_of(choice, results, average=options.average) for choice, results in compared]
    print_table("early stopping, replayed", rows, medians=False)
    for choice, why_not in found:
        if why_not is not None:
            print(f"not replayed: {describe_plugin(choice)}: {why_not}")
    if options.json:
        content = {"table": table.card["table"], "num_curves": len(curves), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _point(row: Mapping[str, Any]) -> CurvePoint:
    signals = {
        name.removeprefix(_SIGNAL): float(value)
        for name, value in row.items()
        if name.startswith(_SIGNAL) and value is not None and not math.isnan(value)
    }
    accuracy = float(row["val_accuracy"])
    return CurvePoint(
        int(row["epoch"]), float(row["train_loss"]), float(row["val_loss"]), accuracy, signals, score=accuracy
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


if __name__ == "__main__":
    main()
