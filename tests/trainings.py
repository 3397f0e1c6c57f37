"""A small made table of trainings, like those that `python -m benchmarks.tables` makes."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from plugins.registry import load, parse_topology
from search_spaces.base import ImageTask
from vitsearch.tables import CARD_KEY

TASK = ImageTask(image_size=32, in_channels=3, num_classes=5)
TEXTS = (
    "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8",
    "as-vit:4,8,2,1|2,2,6,1|3,2,3,1|2,1,4,1|16,8",
    "as-vit:6,4,2,1|4,2,6,1|4,1,3,1|2,1,6,1|16,8",
)


def rows(
    topologies: Sequence[str] = TEXTS, *, num_epochs: int = 3, num_repeated: int = 1, noise: float = 0.005
) -> list[dict[str, Any]]:
    """Two recipes; with `base`, the first topologies have two seeds; with `fast`, the last one failed after an epoch.

    The test part is measured at the last epoch but one.
    """
    rng, found = random.Random(0), []
    for place, topology in enumerate(topologies):
        costs = load("spaces", "as-vit").costs(parse_topology(topology), TASK)
        for recipe, seed in (("base", 0), ("fast", 0), *((("base", 1),) if place < num_repeated else ())):
            failed = (recipe, place) == ("fast", len(topologies) - 1)
            for epoch in range(1, 2 if failed else num_epochs + 1):
                accuracy = 0.2 + 0.03 * place + 0.1 * epoch / num_epochs + noise * rng.random()
                found.append(
                    {
                        "topology": topology,
                        "recipe": recipe,
                        "seed": seed,
                        "epoch": epoch,
                        "space": "as-vit",
                        "state": "failed" if failed else "complete",
                        "parameters": costs.parameters,
                        "macs": costs.macs,
                        "val_loss": 1.0,
                        "val_accuracy": accuracy,
                        "test_accuracy": accuracy if epoch == num_epochs - 1 else None,
                    }
                )
    return found


def card() -> dict[str, Any]:
    """What the table says of its images and trainings."""
    return {
        "partial": False,
        "images": {"train": 800, "validation": 400, "test": 1000, "task": TASK.model_dump()},
        "plan": {"recipes": {"base": {}, "fast": {"learning_rate": 0.004}}},
    }


def write_trainings(
    file: Path, given: Sequence[Mapping[str, Any]] | None = None, *, metadata: object | None = None
) -> Path:
    """Write the rows, by default those of `rows()`, and the card, by default that of `card()`."""
    chosen = rows() if given is None else list(given)
    schema = pa.Table.from_pylist(rows()).schema
    content = pa.Table.from_pylist(chosen, schema=schema)
    text = json.dumps(card() if metadata is None else metadata)
    parquet.write_table(content.replace_schema_metadata({CARD_KEY: text.encode()}), file)
    return file
