"""Ends a search that has not improved for some trials."""

from collections.abc import Sequence

from orchestrator.engines.interfaces import Objective, Suggester, Suggestion
from orchestrator.store.records import TrialRecord


class PatientSuggester:
    """Suggests points until the last `patience` trials have brought no improvement.

    With several objectives, a trial improves the search if no earlier trial is as good in all of them.

    Args:
        suggester: Proposes the points.
        objectives: Metrics to optimise.
        patience: Number of ended trials without improvement after which no further one begins.
        least: Number of trials that begin in any case.
    """

    def __init__(self, suggester: Suggester, objectives: Sequence[Objective], *, patience: int, least: int = 0) -> None:
        self._suggester = suggester
        self._objectives = tuple(objectives)
        self._patience = patience
        self._least = least
        self._front: list[tuple[float, ...]] = []
        self._num_without = 0

    @property
    def has_given_up(self) -> bool:
        """Whether no further trial begins unless a running one improves the search."""
        return self._num_without >= self._patience

    @property
    def shortage(self) -> str | None:
        if self.has_given_up:
            return f"the last {self._num_without} trials have brought no improvement (`no_improvement`)"
        return self._suggester.shortage

    def ask(self, number: int) -> Suggestion | None:
        return None if self.has_given_up and number >= self._least else self._suggester.ask(number)

    def expect(self, trial: TrialRecord) -> None:
        self._suggester.expect(trial)

    def tell(self, trial: TrialRecord) -> None:
        self._suggester.tell(trial)
        values = self._values(trial)
        if values is None or any(_covers(other, values) for other in self._front):
            self._num_without += 1
            return
        self._front = [other for other in self._front if not _covers(values, other)] + [values]
        self._num_without = 0

    def _values(self, trial: TrialRecord) -> tuple[float, ...] | None:
        """The objectives of a trial, oriented so that higher is better; `None` without a result."""
        if not trial.is_usable:
            return None
        signs = (1.0 if objective.direction == "maximize" else -1.0 for objective in self._objectives)
        return tuple(sign * trial.metrics[one.metric] for sign, one in zip(signs, self._objectives, strict=True))


def with_patience(
    suggester: Suggester, objectives: Sequence[Objective], patience: int | None, *, least: int = 0
) -> Suggester:
    """The suggester with a limit on trials without improvement, if there is one; see `PatientSuggester`."""
    if patience is None:
        return suggester
    return PatientSuggester(suggester, objectives, patience=patience, least=least)


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether the first point is at least as good in every objective."""
    return all(mine >= theirs for mine, theirs in zip(one, other, strict=True))
