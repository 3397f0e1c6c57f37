"""The cost of a bounded model in TPE: best values found with and without the bound, and by random search.

`python -m benchmarks.samplers` takes about twenty minutes on one core; `--quick` takes two. Nothing is trained: the
scores are formulas. "ours" is the plug-in `tpe` with its defaults; "unbounded" uses all trials in its model. Both are
identical until the number of trials reaches the bound.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from benchmarks._machine import processor
from benchmarks._timing import print_table
from orchestrator.engines.interfaces import Objective
from orchestrator.engines.suggester import OptunaSuggester
from orchestrator.store.records import TrialRecord
from search_spaces.as_vit import AsViTSpace
from search_spaces.base import ImageTask
from search_spaces.dimensions import Choice, Condition, Dimension, Integer, Point, Real
from search_spaces.recipes import PluginChoice

SCORE = Objective("score", "minimize")
SAMPLERS: dict[str, PluginChoice] = {
    "random": PluginChoice(name="random"),
    "unbounded": PluginChoice(name="tpe", settings={"max_trials": 10**9}),
    "ours": PluginChoice(name="tpe"),
}


class Problem(NamedTuple):
    """A function to minimise, whose minimum is 0 or close to 0."""

    name: str
    dimensions: tuple[Dimension, ...]
    score: Callable[[Point], float]


def problems() -> list[Problem]:
    """Standard test functions, a recipe-like problem with choices and conditions, and a screen of As-ViT topologies."""
    reals = tuple(Real(name=f"x{index}", low=-5.0, high=5.0) for index in range(5))
    unit = tuple(Real(name=f"x{index}", low=0.0, high=1.0) for index in range(6))
    return [
        Problem("rosenbrock, 5 reals", reals, lambda point: _rosenbrock(_numbers(point))),
        Problem("rastrigin, 5 reals", reals, lambda point: _rastrigin(_numbers(point))),
        Problem("hartmann, 6 reals", unit, lambda point: 3.32237 + _hartmann(_numbers(point))),
        _recipe(),
        _topologies(),
    ]


def _numbers(point: Point) -> list[float]:
    return [float(value) for value in point.values() if isinstance(value, int | float)]


def _rosenbrock(x: Sequence[float]) -> float:
    return sum(100 * (after - now**2) ** 2 + (1 - now) ** 2 for now, after in pairwise(x))


def _rastrigin(x: Sequence[float]) -> float:
    shifted = [value - 1.3 for value in x]
    return 10 * len(x) + sum(value**2 - 10 * math.cos(2 * math.pi * value) for value in shifted)


def _hartmann(x: Sequence[float]) -> float:
    """Source: Hartmann 1972, as in Dixon and Szegö 1978; its minimum is -3.32237."""
    weights = (1.0, 1.2, 3.0, 3.2)
    slopes = (
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    )
    centres = (
        (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
        (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
        (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
        (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
    )
    return -sum(
        weight * math.exp(-sum(a * (value - c) ** 2 for a, c, value in zip(slope, centre, x, strict=True)))
        for weight, slope, centre in zip(weights, slopes, centres, strict=True)
    )


def _recipe() -> Problem:
    """A recipe-like problem: a rate on a log scale, choices that shift its optimum, and a conditional setting."""
    dimensions: tuple[Dimension, ...] = (
        Real(name="rate", low=1e-5, high=1e-1, log=True),
        Real(name="decay", low=1e-6, high=1e-1, log=True),
        Choice(name="schedule", options=("constant", "cosine", "linear", "steps")),
        Choice(name="augmentation", options=("none", "flip", "crop", "mix")),
        Choice(name="method", options=("plain", "paced", "mixed")),
        Real(name="start", low=0.0, high=1.0, when=Condition(name="method", equals="paced")),
        Integer(name="warmup", low=0, high=20),
    )
    best_rate = {"constant": -4.0, "cosine": -2.6, "linear": -3.0, "steps": -3.5}
    lost = {"none": 0.5, "flip": 0.2, "crop": 0.1, "mix": 0.0, "plain": 0.2, "mixed": 0.3}

    def score(point: Point) -> float:
        rate, decay = math.log10(float(str(point["rate"]))), math.log10(float(str(point["decay"])))
        schedule, method = str(point["schedule"]), str(point["method"])
        paced = 4 * (float(str(point["start"])) - 0.37) ** 2 if "start" in point else lost[method]
        off = 0.3 * (rate - best_rate[schedule]) ** 2 + 0.1 * (decay + 2 + 0.5 * (rate + 3)) ** 2
        return off + paced + lost[str(point["augmentation"])] + 0.002 * (int(str(point["warmup"])) - 7) ** 2

    return Problem("recipe, 7 with a condition", dimensions, score)


def _topologies() -> Problem:
    """As-ViT topologies: the distance of their closed-form costs from few parameters and many MACs."""
    space, task = AsViTSpace(), ImageTask(image_size=32, in_channels=3, num_classes=10)

    def score(point: Point) -> float:
        costs = AsViTSpace.costs(space.decode(point), task)
        return abs(math.log(costs.parameters / 1.0e6)) + abs(math.log(costs.macs / 6.0e6))

    return Problem("As-ViT topologies", space.dimensions(), score)


def main() -> None:
    options = _options()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    head = {
        "processor": processor(),
        "python": platform.python_version(),
        "optuna": optuna.__version__,
        "load": os.getloadavg()[0],
        "seeds": options.seeds,
        "trials": options.trials,
    }
    print(f"{head['processor']}, Python {head['python']}, Optuna {head['optuna']}, load average {head['load']:.1f}")
    print(f"best of {options.trials} trials: median and worst of {options.seeds} seeds; lower is better")
    rows = [_compare(problem, options) for problem in problems()]
    print_table("TPE with and without a bound on its model", rows, medians=False)
    if options.json:
        options.json.write_text(json.dumps({**head, "rows": rows}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two seeds, 1,500 trials")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.seeds = 1500, 2
    return options


def _compare(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": problem.name}
    for name, sampler in SAMPLERS.items():
        started = time.process_time()
        found = [_best(problem, sampler, options.trials, seed) for seed in range(options.seeds)]
        row[name] = statistics.median(found)
        row[f"{name}, worst"] = max(found)
        row[f"{name}, CPU ms/trial"] = 1000 * (time.process_time() - started) / options.trials / options.seeds
    return row


def _best(problem: Problem, sampler: PluginChoice, num_trials: int, seed: int) -> float:
    suggester = OptunaSuggester(problem.dimensions, objectives=(SCORE,), sampler=sampler, seed=seed)
    best = math.inf
    for number in range(num_trials):
        suggestion = suggester.ask(number)
        if suggestion is None:
            break
        score = problem.score(suggestion.point)
        best = min(best, score)
        suggester.tell(ended_trial(number, suggestion.point, suggestion.sampler_state, {"score": score}))
    return best


def ended_trial(number: int, point: Point, sampler_state: dict[str, Any], metrics: dict[str, float]) -> TrialRecord:
    """A complete trial in the form of a database record."""
    return TrialRecord(
        id=number,
        stage_id=0,
        number=number,
        state="complete",
        point=point,
        sampler_state=sampler_state,
        seed=0,
        metrics=metrics,
        details={},
        reason=None,
        error=None,
        started_at=0.0,
        ended_at=0.0,
    )


if __name__ == "__main__":
    main()
