"""Makes the suggestions of concurrent trials independent of the order in which the trials end."""

from orchestrator.engines.interfaces import Suggester, Suggestion
from orchestrator.store.records import TrialRecord


class OrderedSuggester:
    """Passes results on by trial number: suggestion `n` uses those of the trials before `n - lookahead`, and no others.

    The other trials count as running, although some have ended. The same trials therefore lead to the same suggestions,
    in one execution or several. If a trial before `n - lookahead` has not ended, there is no suggestion for now.

    Args:
        suggester: Makes the suggestions.
        lookahead: Number of newest trials whose results are not used, at least the number of concurrent trials. With
            twice as many, a slow trial rarely keeps others waiting.
    """

    def __init__(self, suggester: Suggester, *, lookahead: int) -> None:
        self._suggester = suggester
        self._lookahead = lookahead
        self._unfinished: set[int] = set()
        self._held: dict[int, TrialRecord] = {}

    @property
    def shortage(self) -> str | None:
        return self._suggester.shortage

    def ask(self, number: int) -> Suggestion | None:
        first = number - self._lookahead
        if any(unfinished < first for unfinished in self._unfinished):
            return None
        self._pass_on(first)
        suggestion = self._suggester.ask(number)
        if suggestion is None and self._held and not self._unfinished:
            self._pass_on(number)  # there may be a point once all results are known
            suggestion = self._suggester.ask(number)
        if suggestion is not None:
            self._unfinished.add(number)
        return suggestion

    def expect(self, trial: TrialRecord) -> None:
        self._unfinished.add(trial.number)
        self._suggester.expect(trial)

    def tell(self, trial: TrialRecord) -> None:
        if trial.number in self._unfinished:
            self._unfinished.remove(trial.number)
        else:
            self._suggester.expect(trial)  # of an earlier execution
        self._held[trial.number] = trial

    def _pass_on(self, first: int) -> None:
        """Tell the results of the trials before `first`, in order."""
        for number in sorted(number for number in self._held if number < first):
            self._suggester.tell(self._held.pop(number))
