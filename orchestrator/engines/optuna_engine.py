"""Engine `optuna`: starts trials while the pool has room, and takes their outcomes as they come."""

from dataclasses import replace

from orchestrator.engines.interfaces import Control, Ledger, Lost, Pool, Search
from orchestrator.engines.ordered_suggester import OrderedSuggester
from orchestrator.engines.trial_queue import TrialQueue, num_left
from orchestrator.store.records import TrialRecord


class OptunaEngine:
    """Evaluates one trial after another, or several at a time if the pool has room for them."""

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """Run a search; finished trials in its rows are kept."""
        if not control.should_stop():
            sizes = search.sizes() if search.epochs is not None else ()
            pool.prepare(sizes, num_tasks=num_left(search, ledger.trials()))
        if pool.lookahead:
            search = replace(search, suggester=OrderedSuggester(search.suggester, lookahead=pool.lookahead))
        queue = TrialQueue(search, ledger, control)
        while True:
            while pool.has_room() and (started := queue.start()) is not None:
                pool.submit(started.record.number, started.task, started.reporter)
            queue.settle()
            if not pool.is_busy():
                return queue.trials()
            number, outcome = pool.wait()
            if isinstance(outcome, Lost):
                queue.lose(number, outcome.reason)
            else:
                queue.finish(number, outcome)
