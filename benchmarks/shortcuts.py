"""CPU time of our shortcuts around libraries, each compared with the library calls that it replaces.

`python -m benchmarks.shortcuts` takes half a minute. "suggest" compares `orchestrator.engines.suggester` on
`TrialStorage` with Optuna's own `ask`, `suggest_categorical` and `tell`; "rows" compares
`orchestrator.store.prepared_statements` with SQLAlchemy's `insert` and `update`, on SQLite.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import bindparam, insert, update

from benchmarks._timing import print_table
from benchmarks.engines import CHOICES, SCORE, score
from benchmarks.samplers import ended_trial
from orchestrator.engines.seeds import seed_for
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.database import open_database
from orchestrator.store.prepared_statements import prepared_insert, prepared_update
from orchestrator.store.tables import trials
from plugins import registry
from search_spaces.dimensions import Choice
from search_spaces.recipes import PluginChoice

_ENDED = {"state": "complete", "metrics": {"score": 1.0}, "details": {}, "reason": None, "error": None, "ended_at": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300, help="trials per run (300)")
    parser.add_argument("--runs", type=int, default=5, help="paired runs per shortcut (5)")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ways: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
        "suggest, random": (partial(_our_suggestions, "random"), partial(_optunas_suggestions, "random")),
        "suggest, tpe": (partial(_our_suggestions, "tpe"), partial(_optunas_suggestions, "tpe")),
        "rows": (_our_rows, _sqlalchemys_rows),
    }
    rows = []
    for name, (ours, theirs) in ways.items():
        pairs = [(ours(options.trials), theirs(options.trials)) for _ in range(options.runs)]
        ratios = [library / shortcut for shortcut, library in pairs]
        rows.append(
            {
                "shortcut": name,
                "ours ms": 1000 * statistics.median(pair[0] for pair in pairs) / options.trials,
                "library ms": 1000 * statistics.median(pair[1] for pair in pairs) / options.trials,
                "ratio": statistics.median(ratios),
                "least ratio": min(ratios),
                "most ratio": max(ratios),
            }
        )
    print_table(f"CPU time per trial, of {options.trials} trials", rows, medians=False)
    if options.json:
        options.json.write_text(json.dumps({"trials": options.trials, "shortcuts": rows}, indent=2) + "\n")


def _our_suggestions(sampler: str, num_trials: int) -> float:
    suggester = OptunaSuggester(CHOICES, objectives=(SCORE,), sampler=PluginChoice(name=sampler), seed=1)
    started = time.process_time()
    for number in range(num_trials):
        found = suggester.ask(number)
        assert found is not None
        suggester.tell(ended_trial(number, found.point, found.sampler_state, {SCORE.metric: score(found.point)}))
    return time.process_time() - started


def _optunas_suggestions(sampler: str, num_trials: int) -> float:
    plugin = registry.create("samplers", sampler)
    study = optuna.create_study(direction=SCORE.direction)
    started = time.process_time()
    for number in range(num_trials):
        study.sampler = plugin.build(seed_for(1, number, 0), study_seed=1)
        trial = study.ask()
        trial.set_user_attr("number", number)
        point: dict[str, Any] = {
            one.name: trial.suggest_categorical(one.name, one.options) for one in CHOICES if isinstance(one, Choice)
        }
        study.tell(trial, ended_trial(number, point, {}, {SCORE.metric: score(point)}).metrics[SCORE.metric])
    return time.process_time() - started


def _our_rows(num_trials: int) -> float:
    fixed = {"state": "running", "metrics": {}, "details": {}}
    begin = prepared_insert(trials, *_begun(0), key=trials.c.id, fixed=fixed)
    end = prepared_update(trials, trials.c.id == bindparam("trial_id"), columns=tuple(_ENDED))
    ended = {f"new_{name}": value for name, value in _ENDED.items()}

    def write(connection: Any, number: int) -> None:
        end.count(connection, trial_id=begin.key(connection, **_begun(number)), **ended)

    return _rows(write, num_trials)


def _sqlalchemys_rows(num_trials: int) -> float:
    def write(connection: Any, number: int) -> None:
        row = insert(trials).values(state="running", metrics={}, details={}, **_begun(number))
        (key,) = connection.execute(row).inserted_primary_key
        connection.execute(update(trials).where(trials.c.id == key).values(**_ENDED))

    return _rows(write, num_trials)


def _begun(number: int) -> dict[str, Any]:
    return {"stage_id": 1, "number": number, "point": {}, "sampler_state": {}, "seed": number, "started_at": 1.0}


def _rows(write: Callable[[Any, int], None], num_trials: int) -> float:
    """Begin and end trials, each in a transaction."""
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/vitsearch.db")
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # the trials have no stage
            connection.commit()
            started = time.process_time()
            for number in range(num_trials):
                with connection.begin():
                    write(connection, number)
            spent = time.process_time() - started
        engine.dispose()
    return spent


if __name__ == "__main__":
    main()
