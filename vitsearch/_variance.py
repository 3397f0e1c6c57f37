"""Variance components of an unbalanced two-way layout with random effects, in NumPy alone.

`T` topologies, `R` recipes and several seeds give `N` trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCES = ("topology", "recipe", "interaction", "seed")
"""Sources of variance, in the order of their estimates."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class VarianceComponent:
    """The variance that one source adds to a metric."""

    source: str
    """One of `SOURCES`."""
    variance: float
    low: float
    """Ends of the 95 % interval of `variance`."""
    high: float
    share: float
    """Share of the sum of all components."""

    @property
    def deviation(self) -> float:
        """Standard deviation, in the unit of the metric."""
        return float(np.sqrt(self.variance))


@dataclass(frozen=True, kw_only=True)
class VarianceComponents:
    """Estimates for all sources. An estimate below 0, which chance can cause, is set to 0."""

    components: tuple[VarianceComponent, ...]
    mean: float
    num_topologies: int
    num_recipes: int
    num_trainings: int
    num_repeated: int
    """Number of pairs of topology and recipe with several seeds."""

    def __getitem__(self, source: str) -> VarianceComponent:
        """The component of a source."""
        return self.components[SOURCES.index(source)]

    def __str__(self) -> str:
        lines = [
            f"{self.num_trainings} trainings of {self.num_topologies} topologies and {self.num_recipes} recipes, "
            f"{self.num_repeated} pairs with several seeds; mean {self.mean:.4g}",
            f"{'source':<12}{'standard deviation':>20}{'95 % interval':>22}{'share':>8}",
        ]
        for one in self.components:
            interval = f"{one.low**0.5:.4f} to {one.high**0.5:.4f}"
            lines.append(f"{one.source:<12}{one.deviation:>20.4f}{interval:>22}{100 * one.share:>6.0f} %")
        return "\n".join(lines)


def estimate_components(
    topologies: Sequence[str], recipes: Sequence[str], values: Any, *, num_bootstraps: int = 1000, seed: int = 0
) -> VarianceComponents:
    """Variance components of an unbalanced two-way layout with random effects.

    The model of a training is `mean + topology + recipe + interaction + seed`. The estimates are Henderson's third
    method: sums of squares of nested fits are set equal to their expected values, which are linear in the components.
    They are unbiased before truncation at 0, whatever the numbers of trainings per pair, 0 included. The intervals are
    percentiles of a parametric bootstrap with normal effects.

    Args:
        topologies: Topology of each training, (N,).
        recipes: Recipe of each training, (N,).
        values: The metric of each training, (N,).
        num_bootstraps: Number of bootstrap samples.
        seed: Seed of the samples.

    Raises:
        ValueError: A component cannot be told apart from another: at least 2 topologies, 2 recipes and 1 pair with 2
            seeds are needed, and enough pairs that the interaction is not part of a fit without it.

    Source: Henderson 1953, Biometrics 9 (2), method 3.
    """
    observed = np.asarray(values, dtype=np.float64)
    design = _Design.of(topologies, recipes)
    design.check()
    estimates = design.estimate(observed[:, None])[:, 0]
    generator = np.random.default_rng(seed)
    samples = design.estimate(design.sample(estimates, num_bootstraps, generator))
    low, high = np.quantile(samples, [0.025, 0.975], axis=1)
    total = float(estimates.sum())
    return VarianceComponents(
        components=tuple(
            VarianceComponent(
                source=source,
                variance=float(estimates[number]),
                low=float(low[number]),
                high=float(high[number]),
                share=float(estimates[number]) / total if total else 0.0,
            )
            for number, source in enumerate(SOURCES)
        ),
        mean=float(observed.mean()),
        num_topologies=design.effects[0].shape[1],
        num_recipes=design.effects[1].shape[1],
        num_trainings=len(observed),
        num_repeated=int((design.effects[2].sum(0) > 1).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class _Design:
    """Which training belongs to which topology, recipe and pair."""

    effects: tuple[Array, Array, Array]
    """Indicator matrices (N, levels) of topology, recipe and pair."""
    bases: tuple[Array, Array, Array, Array]
    """Orthonormal columns (N, degrees of freedom) on which the sums of squares of the sources are measured."""

    @classmethod
    def of(cls, topologies: Sequence[str], recipes: Sequence[str]) -> "_Design":
        first, second = _indicators(topologies), _indicators(recipes)
        pairs = _indicators([f"{one}\n{two}" for one, two in zip(topologies, recipes, strict=True)])
        both = np.hstack([first, second])
        bases = (
            _beyond(second, both),
            _beyond(first, both),
            _beyond(both, pairs),
            _beyond(pairs, np.eye(len(first))),
        )
        return cls(effects=(first, second, pairs), bases=bases)

    def check(self) -> None:
        """Raise ValueError unless each source has a degree of freedom."""
        for source, base in zip(SOURCES, self.bases, strict=True):
            if not base.shape[1]:
                need = {
                    "topology": "2 topologies with a common recipe",
                    "recipe": "2 recipes with a common topology",
                    "interaction": "2 topologies that were trained with the same 2 recipes",
                    "seed": "1 pair of topology and recipe with 2 seeds",
                }[source]
                raise ValueError(
                    f"the variance of {source} cannot be estimated from {len(base)} trainings: at least {need} are "
                    "needed. Make more of the table, or loosen the conditions."
                )

    @cached_property
    def expected(self) -> Array:
        """Factors (4, 4) of the components in the expected sum of squares of each source."""
        units = [*self.effects, np.eye(len(self.effects[0]))]
        return np.array([[float(((base.T @ unit) ** 2).sum()) for unit in units] for base in self.bases])

    def estimate(self, values: Array) -> Array:
        """Components (4, K), at least 0, of K samples (N, K)."""
        squares = np.array([((base.T @ values) ** 2).sum(0) for base in self.bases])
        found: Array = np.linalg.solve(self.expected, squares).clip(min=0.0)
        return found

    def sample(self, components: Array, count: int, generator: np.random.Generator) -> Array:
        """Samples (N, count) of the model with mean 0 and normal effects."""
        units = [*self.effects, np.eye(len(self.effects[0]))]
        total = np.zeros((len(units[0]), count))
        for variance, unit in zip(components, units, strict=True):
            total += variance**0.5 * (unit @ generator.standard_normal((unit.shape[1], count)))
        return total


def _indicators(labels: Sequence[str]) -> Array:
    """Matrix (N, levels) with a 1 in the column of each label."""
    _, numbers = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    return np.eye(int(numbers.max()) + 1)[numbers]


def _beyond(smaller: Array, larger: Array) -> Array:
    """Orthonormal basis of what the columns of `larger` span orthogonally to those of `smaller`, which they contain."""
    base = _orthonormal(smaller)
    return _orthonormal(larger - base @ (base.T @ larger))


def _orthonormal(columns: Array) -> Array:
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    kept: Array = left[:, singular > 1e-8 * max(1.0, float(singular.max()))]
    return kept
