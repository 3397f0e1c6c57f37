"""Tree-structured Parzen estimator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard
from search_spaces.dimensions import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class Tpe:
    """Multivariate TPE for one or more objectives, with conditional dimensions modelled in groups."""

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127; Optuna's TPESampler. Differences: the model uses "
            "at most `max_trials` trials; candidates that are known points are skipped"
        ),
        cost="about 2 ms per suggestion of twelve choices, 8 ms with real numbers; the same at 1,000 and 10,000 trials",
    )
    num_startup_trials: int = 10
    """Number of random suggestions before the model is used, at least 1."""
    max_trials: Annotated[int, Field(ge=200)] = 1000
    """Maximum number of trials in the model. If there are more, it uses the 100 best and the newest of the others."""

    def __post_init__(self) -> None:
        if self.num_startup_trials < 1:
            raise ValueError(f"`num_startup_trials` must be at least 1, but got {self.num_startup_trials}. Raise it.")

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """`None`: all dimensions are supported."""
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":  # noqa: ARG002 - the protocol's signature
        from plugins.samplers.bounded_tpe import BoundedTpe

        return BoundedTpe(seed=seed, num_startup_trials=self.num_startup_trials, max_trials=self.max_trials)
