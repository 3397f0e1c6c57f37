"""The interfaces of samplers."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from plugins.protocols.cards import PluginCard
from search_spaces.dimensions import Dimension, Point


class Sampler(Protocol):
    """Builds a new Optuna sampler for every suggestion, so that a suggestion depends on the seed and the results only.

    A sampler may read only the trials of `plugins.samplers.history.finished_trials` and, like Optuna's own samplers,
    complete trials. Other trials may be refused suggestions, which are lost when a study is rebuilt.
    """

    card: ClassVar[PluginCard]

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """Why the sampler does not support these dimensions, and what to do about it; `None` if it does."""
        ...

    def build(self, seed: int, *, study_seed: int) -> Any:
        """Build an `optuna.samplers.BaseSampler`.

        Args:
            seed: Seed of this suggestion, different for each suggestion.
            study_seed: Seed of the search, the same for all its suggestions.
        """
        ...


@runtime_checkable
class FinalChoice(Protocol):
    """An optional part of a sampler that recommends a final point, such as the argmax of a policy."""

    def final_choice(self, study: Any, *, study_seed: int, num_trials: int) -> Point | None:
        """The recommended point; `None` if no trial has finished.

        Args:
            study: The `optuna.Study` with the finished trials.
            study_seed: Seed of the search, as in `Sampler.build`.
            num_trials: Trials with this number or a higher one are ignored.
        """
        ...


@runtime_checkable
class Enumeration(Protocol):
    """A sampler that lists all points in a fixed order, regardless of results. It has `points` instead of `build`."""

    def points(self, dimensions: Sequence[Dimension]) -> Iterator[Point]:
        """All points, in order. The caller skips points that were tried before or are not allowed."""
        ...
