"""Takes the trainings of a written table into a work folder, so that the table is continued without its work folder."""

import math
from typing import Any

from benchmarks.tables.plan import Cell, TablePlan
from benchmarks.tables.records import Environment, Results, TrainingRecord
from benchmarks.tables.writing import OF_TOPOLOGY, OF_TRAINING
from vitsearch.tables import PROXY, TRAINING, BenchmarkTable


def take_trainings(table: BenchmarkTable, results: Results, *, data_digest: str) -> int:
    """Write a record of each training that `results` lacks, and return their number.

    A training counts for a plan if its configuration, images and measurements are the same, whatever else the plan
    has. Numbers are those of the table, in float32. Scores of topologies are not taken: computing them takes seconds.

    Args:
        table: A table, complete or partial.
        results: Results of the table in the making.
        data_digest: Digest of its images. The trainings of a table of other images are left where they are.
    """
    if table.card["images"]["digest"] != data_digest:
        return 0
    plan = TablePlan.model_validate(table.card["plan"])
    environments = [
        Environment.model_validate({name: one[name] for name in Environment.model_fields})
        for one in table.card["environments"]
    ]
    num_taken = 0
    for (topology, recipe, seed), rows in table.epochs.groupby(list(TRAINING), observed=True, sort=False):
        cell = Cell(topology=topology, recipe=recipe, seed=int(seed))
        key = cell.key(plan, data_digest)
        if results.training(key) is None:
            results.keep_training(key, _record(cell, rows, environments))
            num_taken += 1
    return num_taken


def _record(cell: Cell, rows: Any, environments: list[Environment]) -> TrainingRecord:
    first = rows.iloc[0]
    own = [name for name in rows.columns if name not in (*OF_TRAINING, *OF_TOPOLOGY) and not name.startswith(PROXY)]
    return TrainingRecord(
        cell=cell,
        state=first["state"],
        reason=first["reason"] if isinstance(first["reason"], str) else None,
        epochs=tuple({name: _number(row[name]) for name in own} for _, row in rows.iterrows()),
        pack_size=int(first["pack_size"]),
        measuring_s=float(first["measuring_s"]),
        environment=environments[int(first["environment"])],
    )


def _number(value: Any) -> float | None:
    """A number of the table; what was not measured is `None`."""
    return None if value is None or math.isnan(value) else float(value)
