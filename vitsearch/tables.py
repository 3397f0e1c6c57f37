"""Reads tables of trainings: topologies times recipes with whole learning curves. Needs pandas and pyarrow, not torch.

`python -m benchmarks.tables` makes such a table. It has one row per training and epoch; docs/table.md explains the
columns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitsearch._variance import SOURCES, VarianceComponent, VarianceComponents, estimate_components

__all__ = [
    "CARD_KEY",
    "DEFAULT",
    "PROXY",
    "SOURCES",
    "TRAINING",
    "BenchmarkTable",
    "VarianceComponent",
    "VarianceComponents",
    "estimate_components",
    "load",
]

CARD_KEY = b"vitsearch.card"
"""Key of the card in the metadata of the parquet file."""
TRAINING = ("topology", "recipe", "seed")
"""Columns that identify a training."""
DEFAULT = Path(__file__).resolve().parents[1] / "benchmarks" / "tables" / "cifar10-32.parquet"
"""The table of a checkout of the repository."""
PROXY = "proxy."
"""Prefix of the columns of scores."""
_OF_TOPOLOGY = ("space", "parameters", "macs")


def load(path: str | Path | None = None) -> "BenchmarkTable":
    """Read a table.

    Args:
        path: A parquet file; `None` reads the table in a checkout of the repository.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a table of trainings.
    """
    import pyarrow.parquet as parquet

    file = DEFAULT if path is None else Path(path)
    if not file.is_file():
        hint = "Make it with `python -m benchmarks.tables`, or give the path of another."
        raise FileNotFoundError(f"a table of trainings must be a parquet file, but {file} does not exist. {hint}")
    content = parquet.read_table(file)
    card = (content.schema.metadata or {}).get(CARD_KEY)
    if card is None:
        raise ValueError(
            f"{file} must be a table made by `python -m benchmarks.tables`, but its metadata have no "
            f"{CARD_KEY.decode()!r}. Give another file."
        )
    return BenchmarkTable(epochs=content.to_pandas(), card=json.loads(card))


@dataclass(frozen=True, kw_only=True)
class BenchmarkTable:
    """A table of trainings."""

    epochs: Any
    """pandas table with one row per training and epoch."""
    card: Mapping[str, Any]
    """What the table consists of: settings, hardware, versions, digests, noise, and whether it is complete."""

    @property
    def is_partial(self) -> bool:
        """Whether planned trainings are missing."""
        return bool(self.card["partial"])

    @cached_property
    def topologies(self) -> Any:
        """pandas table with one row per topology: space, parameters, MACs, and the score of each proxy."""
        columns = [*_OF_TOPOLOGY, *(name for name in self.epochs.columns if name.startswith(PROXY))]
        return self.epochs.groupby("topology", observed=True, sort=False)[columns].first()

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """The fields of each recipe that differ from the defaults of vitsearch, by the name of the recipe."""
        return {name: dict(fields) for name, fields in self.card["plan"]["recipes"].items()}

    def find(
        self,
        *,
        space: str | None = None,
        topology: str | Sequence[str] | None = None,
        recipe: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        epoch: int | Literal["last"] | None = None,
        max_macs: float | None = None,
        max_parameters: float | None = None,
    ) -> Any:
        """Look up epochs; conditions that are `None` do not apply.

        Args:
            space: Name of a search space.
            topology: One topology or several, as `space:text`.
            recipe: One name or several.
            seed: One seed or several.
            epoch: A number, starting at 1, or the last epoch of each training.
            max_macs: Largest number of multiply-accumulates of a forward pass.
            max_parameters: Largest number of parameters.

        Returns:
            The matching rows of `epochs`.

        Raises:
            ValueError: The table has no such space, topology, recipe or seed.
        """
        rows = self.epochs
        for name, wanted in {"space": space, "topology": topology, "recipe": recipe, "seed": seed}.items():
            if wanted is None:
                continue
            values = [wanted] if isinstance(wanted, str | int) else list(wanted)
            known = set(self.epochs[name])
            unknown = [value for value in values if value not in known]
            if unknown:
                shown = ", ".join(map(str, sorted(known)[:8]))
                raise ValueError(f"`{name}` must be in the table, but {unknown[0]!r} is not. It has {shown}, ...")
            rows = rows[rows[name].isin(values)]
        if max_macs is not None:
            rows = rows[rows["macs"] <= max_macs]
        if max_parameters is not None:
            rows = rows[rows["parameters"] <= max_parameters]
        if epoch == "last":
            return rows.loc[rows.groupby(list(TRAINING), observed=True, sort=False)["epoch"].idxmax()]
        return rows if epoch is None else rows[rows["epoch"] == epoch]

    def curves(self, metric: str = "val_accuracy", **conditions: Any) -> Any:
        """The values of a column over time.

        Args:
            metric: Name of a column.
            conditions: Those of `find`, without `epoch`.

        Returns:
            pandas table with one row per training and one column per epoch; missing values are NaN.

        Raises:
            ValueError: The table has no such column, topology, recipe or seed.
        """
        self._check_metric(metric)
        rows = self.find(**conditions)
        return rows.pivot(index=list(TRAINING), columns="epoch", values=metric)

    def variance_components(
        self,
        metric: str = "val_accuracy",
        *,
        epoch: int | Literal["last"] = "last",
        num_bootstraps: int = 1000,
        seed: int = 0,
        **conditions: Any,
    ) -> "VarianceComponents":
        """How much of a metric's variance comes from topology, recipe, their interaction, and the seed.

        Trainings that failed, and those without a value in this epoch, are left out.

        Args:
            metric: Name of a column.
            epoch: A number, or the last epoch of each training.
            num_bootstraps: Number of bootstrap samples for the intervals.
            seed: Seed of the samples.
            conditions: Those of `find`.

        Raises:
            ValueError: The table has no such column, or too few trainings; see `estimate_components`.
        """
        self._check_metric(metric)
        rows = self.find(epoch=epoch, **conditions)
        rows = rows[(rows["state"] != "failed") & rows[metric].notna()]
        return estimate_components(
            list(rows["topology"]),
            list(rows["recipe"]),
            rows[metric].to_numpy(dtype=np.float64),
            num_bootstraps=num_bootstraps,
            seed=seed,
        )

    def _check_metric(self, metric: str) -> None:
        if metric not in self.epochs.columns:
            names = ", ".join(name for name in self.epochs.columns if not name.startswith(PROXY))
            raise ValueError(f"`metric` must be a column of the table, but got {metric!r}. It has {names}.")
