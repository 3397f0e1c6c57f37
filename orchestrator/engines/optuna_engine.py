"""Engine `optuna`: asks the suggester, lets the pool evaluate, and tells."""

from orchestrator.engines.base import Control, Ledger, Pool, Search
from orchestrator.store.records import FINISHED, TrialRecord


class OptunaEngine:
    """Ask, evaluate, tell; several trials at once where the pool has room."""

    def run(self, search: Search, pool: Pool, ledger: Ledger, control: Control) -> list[TrialRecord]:
        """Run a search from wherever its rows say that it stands."""
        trials = {trial.number: trial for trial in ledger.trials()}
        for trial in trials.values():
            if trial.state in FINISHED:
                search.suggester.tell(trial)
        waiting = [trial for trial in trials.values() if trial.state not in FINISHED]
        while True:
            while pool.has_room() and not control.should_stop():
                if waiting:
                    trial = ledger.resume(waiting.pop(0))
                elif len(trials) < search.num_trials:
                    suggestion = search.suggester.ask(len(trials))
                    if suggestion is None:
                        break  # nothing new now; asked again after the next outcome
                    trial = ledger.begin(len(trials), suggestion)
                else:
                    break
                trials[trial.number] = trial
                if trial.state in FINISHED:
                    search.suggester.tell(trial)
                    continue
                pool.submit(trial.number, search.make_task(trial), ledger.reporter(trial))
            if not pool.is_busy():
                return [trials[number] for number in sorted(trials)]
            number, outcome = pool.wait()
            trials[number] = ledger.finish(trials[number], outcome)
            if trials[number].state in FINISHED:
                search.suggester.tell(trials[number])
