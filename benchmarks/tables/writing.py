"""Writes the finished trainings of a plan as one parquet file, with its card inside and as a text beside it."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from benchmarks.tables.making import TableMaker
from benchmarks.tables.plan import TablePlan, cells_of
from benchmarks.tables.records import Environment, TopologyRecord, TrainingRecord
from search_spaces.base import ImageTask
from trainers.models.building import topology_costs
from vitsearch.tables import CARD_KEY, PROXY, TRAINING, BenchmarkTable

OF_TRAINING = (
    "topology",
    "recipe",
    "seed",
    "space",
    "state",
    "reason",
    "device",
    "environment",
    "pack_size",
    "measuring_s",
)
"""Columns with one value for each training."""
OF_TOPOLOGY = ("parameters", "macs")
"""Columns with one value for each topology, besides its scores."""
_TEXTS = ("topology", "recipe", "space", "state", "reason", "device")
_WHOLE = {
    "seed": pa.int32(),
    "epoch": pa.int32(),
    "num_images": pa.int32(),
    "environment": pa.int32(),
    "pack_size": pa.int32(),
    "parameters": pa.int64(),
    "macs": pa.int64(),
}
_YES_OR_NO = ("averages_measured", "test_measured")
_DOUBLE = ("training_macs",)


def write_table(maker: TableMaker, file: Path, *, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is finished, and return the card.

    Args:
        maker: Knows the plan, the data and the results.
        file: The parquet file; the card is written beside it, with the suffix `.card.yaml`.
        notes: Further entries of the card.

    Raises:
        ValueError: No training is finished, or the topology of a finished one has no scores yet.
    """
    plan = maker.plan
    cells = cells_of(plan)
    records = [record for cell in cells if (record := maker.results.training(maker.key(cell))) is not None]
    if not any(record.epochs for record in records):
        raise ValueError("a table needs at least 1 finished training, but there is none. Let the command run longer.")
    topologies = {
        text: scored
        for text in plan.topologies
        if (scored := maker.results.topology(maker.topology_key(text))) is not None
    }
    unscored = {record.cell.topology for record in records} - topologies.keys()
    if unscored:
        raise ValueError(
            f"a table needs the scores of the topologies of all finished trainings, but those of {len(unscored)} are "
            "missing. Let the command run longer; the file is left as it was."
        )
    rows = pa.table(_columns(records, topologies))
    card = make_card(maker, records, topologies, num_planned=len(cells), notes=notes)
    card["noise"] = _noise(BenchmarkTable(epochs=rows.to_pandas(), card=card))
    rows = rows.replace_schema_metadata({CARD_KEY: json.dumps(card).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    parquet.write_table(rows, part, compression="zstd", compression_level=19, use_dictionary=list(_TEXTS))
    part.replace(file)
    file.with_suffix(".card.yaml").write_text(
        yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8"
    )
    return card


def _columns(records: Sequence[TrainingRecord], topologies: Mapping[str, TopologyRecord]) -> dict[str, pa.Array]:
    """The columns of the table; those of a topology are repeated in each row, which costs nothing in the file."""
    rows = []
    environments = list(_environments(records))
    for record in records:
        scored = topologies[record.cell.topology]
        of_training = {
            **record.cell.model_dump(),
            "space": record.cell.topology.partition(":")[0],
            "state": record.state,
            "reason": record.reason,
            "device": record.environment.device,
            "environment": environments.index(record.environment),
            "pack_size": record.pack_size,
            "measuring_s": record.measuring_s,
            "parameters": scored.parameters,
            "macs": scored.macs,
        }
        assert of_training.keys() == {*OF_TRAINING, *OF_TOPOLOGY}
        scores = {f"{PROXY}{name}": score for name, score in sorted(scored.scores.items())}
        rows += [{**of_training, **epoch, **scores} for epoch in record.epochs]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: pa.array([_value(name, row.get(name)) for row in rows], type=_type(name)) for name in names}


def _environments(records: Sequence[TrainingRecord]) -> Counter[Environment]:
    """Numbers of trainings by environment, in the order of the column `environment`."""
    return Counter(record.environment for record in records)


def _value(name: str, value: Any) -> Any:
    """A value in the type of its column; records have all numbers as floats."""
    if name in _YES_OR_NO:
        return bool(value)
    return int(value) if name in _WHOLE else value


def _type(name: str) -> pa.DataType:
    if name in _TEXTS:
        return pa.string()
    if name in _YES_OR_NO:
        return pa.bool_()
    if name in _DOUBLE or name.startswith(PROXY):
        return pa.float64()
    return _WHOLE.get(name, pa.float32())


def make_card(
    maker: TableMaker,
    records: Sequence[TrainingRecord],
    topologies: Mapping[str, TopologyRecord],
    *,
    num_planned: int,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """What a reader must know about the table."""
    failures: Counter[str] = Counter(name for one in topologies.values() for name in one.failures)
    return {
        "table": maker.plan.table,
        "partial": len(records) < num_planned,
        "num_trainings": len(records),
        "num_planned": num_planned,
        "num_diverged": sum(record.state == "failed" for record in records),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "images": {
            "name": "CIFAR-10" if maker.data.task.num_classes == 10 else maker.data.name,
            "train": len(maker.data.train),
            "validation": len(maker.data.validation),
            "test": len(maker.test),
            "task": maker.data.task.model_dump(),
            "digest": maker.data.digest,
            "test_digest": _test_digest(maker),
        },
        "note_on_test": "recorded for look-ups only; no choice in making the table used the test part",
        "plan_digest": maker.plan.digest,
        "environments": [{**one.model_dump(), "num_trainings": count} for one, count in _environments(records).items()],
        "seconds": {
            "training": _spent(records),
            "measuring": sum(record.measuring_s for record in records),
            "scoring": sum(record.wall_time_s for record in topologies.values()),
        },
        "proxies_without_score": dict(failures),
        **notes,
        "plan": maker.plan.model_dump(mode="json", exclude_defaults=True),
    }


def estimate_s(plan: TablePlan, table: BenchmarkTable) -> float:
    """Estimated seconds of the trainings of a plan that a table lacks, as if one was computed at a time.

    A training costs a constant plus an amount that is proportional to the MACs of its topology, by least squares on the
    relative errors of the trainings in the table; with trainings of a single topology, it costs in proportion.

    Args:
        plan: The plan.
        table: A part of the table, or its pilot.
    """
    known = table.epochs.groupby(list(TRAINING), observed=True, sort=False).agg(
        macs=("macs", "first"),
        pack_size=("pack_size", "first"),
        training_s=("wall_time_s", "sum"),
        measuring_s=("measuring_s", "first"),
    )
    macs = known["macs"].to_numpy(float)
    spent = (known["training_s"] / known["pack_size"] + known["measuring_s"]).to_numpy(float)
    task = ImageTask.model_validate(table.card["images"]["task"])
    missing = np.array(
        [
            topology_costs(cell.topology, task).macs
            for cell in cells_of(plan)
            if (cell.topology, cell.recipe, cell.seed) not in known.index
        ],
        dtype=float,
    )
    if len(set(macs)) < 2:
        return float((missing * (spent / macs).mean()).sum())
    slope, constant = np.polyfit(macs, spent, 1, w=1 / spent)
    return float((max(constant, 0.0) + max(slope, 0.0) * missing).sum())


def _spent(records: Sequence[TrainingRecord]) -> float:
    """Seconds of trainings; those of a pack share its wall time."""
    return sum(float(epoch["wall_time_s"] or 0) / record.pack_size for record in records for epoch in record.epochs)


def _noise(table: BenchmarkTable) -> dict[str, Any]:
    """Variance components of the metrics after the last epoch, as standard deviations with 95 % intervals."""
    found: dict[str, Any] = {}
    for metric in ("val_accuracy", "test_accuracy"):
        try:
            components = table.variance_components(metric)
        except ValueError as error:
            found[metric] = str(error)
            continue
        found[metric] = {
            "mean": round(components.mean, 4),
            **{
                one.source: {
                    "standard_deviation": round(one.deviation, 5),
                    "low": round(one.low**0.5, 5),
                    "high": round(one.high**0.5, 5),
                    "share": round(one.share, 3),
                }
                for one in components.components
            },
        }
    return found


def _test_digest(maker: TableMaker) -> str:
    digest = hashlib.sha256(maker.test.images.numpy().tobytes())
    digest.update(maker.test.labels.numpy().tobytes())
    return digest.hexdigest()
